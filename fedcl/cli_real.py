"""`fedcl server` and `fedcl client`: the commands of a federation on real machines."""

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedcl import addresses, cli_help, completion, files, foreign
from fedcl.errors import LOSSY, ConfigError, nearest
from fedcl.names import WARDS

if TYPE_CHECKING:
    from fedcl import config

OK = 0
PORT = 8000


class _Server(cli_help.Group):
    """`fedcl server nodes ...` is about nodes; whatever else follows `fedcl server` starts one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] and args[0] in self.commands else ["run", *args])


server = typer.Typer(
    cls=_Server,
    rich_markup_mode=None,
    help="Serve a federation to real machines (fedcl server nodes: who may take part).",
)
nodes = typer.Typer(
    cls=cli_help.Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Who may take part, where nodes prove who they are (--auth).",
)
server.add_typer(nodes, name="nodes")


def _defaults(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options that a YAML file names as this command's defaults."""
    if path is None:
        return None
    from fedcl.config import parse

    names = {_typed(each): str(each.name) for each in context.command.params if each.name != "file"}
    given = {}
    for key, value in parse(files.text(path, "--config"), str(path)).items():
        key = str(key).replace("_", "-")
        if key not in names:
            raise ConfigError(f"{path}: {key!r} is no option of {context.command_path}{nearest(key, names)}")
        given[names[key]] = value
    context.default_map = given
    return path


def _typed(parameter: click.Parameter) -> str:
    """Return what a user types for a parameter, without dashes in front."""
    return max(parameter.opts, key=len).lstrip("-")


_CONFIG = typer.Option(
    "--config", metavar="FILE", is_eager=True, callback=_defaults, help="YAML with any of these options by name."
)
Config = Annotated[Path | None, _CONFIG]
State = Annotated[Path, typer.Option(metavar="DIR", help="All that is kept; created, for this user alone.")]


def _say(text: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')}  {foreign.line(text)}")


def _made(state: Path) -> Path:
    """Return a folder of state, made if it is not there, that nobody but this user can look into.

    One that others may read is closed to them if it is empty or ours, which its file `lock` tells.

    Raises:
        ConfigError: it cannot be made, or is somebody else's, or holds something else.
    """
    what = f"--state {str(state)!r}"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = state.stat()
        if found.st_uid != os.geteuid():
            raise ConfigError(f"{what}: it is another user's; name a folder of your own")
        if found.st_mode & 0o077:
            if any(state.iterdir()) and not (state / "lock").is_file():
                mode = stat.S_IMODE(found.st_mode)
                raise ConfigError(f"{what}: others may look into it (mode {mode:o}): chmod 700, or name a new folder")
            state.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{what}: cannot be made or closed to others ({error.strerror})") from error
    return state.absolute()


def _there(option: str, path: Path | None, *names: str) -> Path | None:
    """Return a path as absolute after a look whether it, or what must be in it, is a file that can be read."""
    for each in [path / name for name in names] if path and names else [path] if path else []:
        if not os.path.lexists(each):
            raise ConfigError(f"{option} {str(path)!r}: there is no {str(each)!r}; fedcl certs makes it")
        files.checked(each, option, files.KEY)
    return path.absolute() if path else None


def _run_directory(state: Path, scenario: "config.Scenario | None", resume: bool) -> Path:
    """Return the run directory of a server: the one that is there, or a new one."""
    from fedcl import config, result, rundir, track
    from fedcl.engine import choice

    folder = state / "run"
    if (folder / "config.yaml").exists():
        if not resume:
            raise ConfigError(f"--state {str(state)!r} holds a federation already: --resume goes on with it")
        kept = result.read(folder).config
        if scenario and config.config_hash(choice.resolve(scenario)[0]) != config.config_hash(kept):
            raise ConfigError(
                f"--resume: {str(folder / 'config.yaml')!r} is another scenario; leave out SCENARIO and settings"
            )
        track.check(kept.track)
        return folder
    if scenario is None:
        raise ConfigError(f"--state {str(state)!r} holds no federation yet: name a SCENARIO (fedcl list scenarios)")
    return rundir.create(choice.resolve(scenario)[0], folder)


@server.command("run", hidden=True)
def _serve(
    state: State,
    scenario: Annotated[str | None, completion.scenario()] = None,
    overrides: Annotated[list[str] | None, completion.settings("Settings to change: server.deadline=600")] = None,
    port: Annotated[int, typer.Option(help="Where it listens.", min=1, max=65535)] = PORT,
    host: Annotated[str, typer.Option(help="Address at which it listens; 0.0.0.0: at all of them.")] = "127.0.0.1",
    tls: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of fedcl certs; without: plain text.")] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Nodes must prove who they are (needs --tls).")] = False,
    wards: Annotated[int, typer.Option(help="Clients that one node may have at most.", min=1)] = WARDS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --state, if anything is.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the run directory and errors only.")] = False,
    file: Config = None,
) -> int:
    """Serve a federation: start a SuperLink, wait for nodes, run the scenario; go on after any crash.

    The run directory is DIR/run. Exit 0: finished; 2: bad configuration; 1: failed; 75: stopped, --resume goes on;
    3: training diverged, or updates were lost to errors.
    `fedcl server nodes` tells who may take part.
    """
    from fedcl import config
    from fedcl.lock import Lock

    if auth and not tls:
        raise ConfigError("--auth: nodes prove who they are over TLS only; add --tls DIR (fedcl certs makes it)")
    if wrong := addresses.host_problem(host):
        raise ConfigError(f"--host {host!r}: {wrong}")
    chosen = config.load(scenario, overrides or ()) if scenario else None
    state, tls = _made(state), _there("--tls", tls, "ca.crt", "server.crt", "server.key")
    with Lock(state):
        folder = _run_directory(state, chosen, resume)
        return _supervise(state, folder, quiet, wards, host=host, port=port, tls=tls, auth=auth)


def _supervise(state: Path, folder: Path, quiet: bool, wards: int, **listening_at: Any) -> int:
    """Serve until the federation is done and print its figures."""
    from rich.console import Console

    from fedcl import result
    from fedcl.console import Progress, table
    from fedcl.interrupt import STOPPED, Stopped, listening
    from fedcl.real.nodes import link_of
    from fedcl.real.serving import Server
    from fedcl.results import lossy

    code = OK
    with listening() as stop, Progress(quiet=quiet) as progress:
        progress.catch_up(result.read(folder).readable)
        say = (lambda text: None) if quiet else _say
        link = link_of(state, **listening_at)
        try:
            Server(state=state, folder=folder, link=link, say=say, listener=progress, wards=wards).serve(stop)
            code = LOSSY if lossy(result.read(folder).results) else OK
        except Stopped:
            code = STOPPED
    if not quiet:
        Console(highlight=False).print(table(result.read(folder).results))
    typer.echo(str(folder))
    if code == STOPPED:
        typer.echo(f"fedcl: stopped; fedcl server --state {state} --resume goes on", err=True)
    return code


@nodes.command("add")
def _add(
    keys: Annotated[
        list[Path], typer.Argument(metavar="NAME.pub...", help="Public keys (fedcl certs: nodes/NAME.pub).")
    ],
    state: State,
) -> int:
    """Let nodes take part, now or when the server starts."""
    from fedcl.real.nodes import Nodes, read_link

    known = Nodes(_made(state))
    added = known.add(keys)
    running = (known.state / "server.json").exists() and read_link(known.state).listens()
    if running:
        known.register(read_link(known.state))
    typer.echo(f"added {', '.join(added)}" + ("" if running else ": registered when fedcl server --auth starts"))
    return OK


@nodes.command("remove")
def _remove(names: Annotated[list[str], typer.Argument(metavar="NAME...")], state: State) -> int:
    """Let nodes take part no more."""
    from fedcl.real.nodes import Nodes, read_link

    known = Nodes(state.absolute())
    running = (known.state / "server.json").exists() and read_link(known.state).listens()
    known.remove(names, read_link(known.state) if running else None)
    typer.echo(f"removed {', '.join(names)}")
    return OK


@nodes.command("free")
def _free(
    state: State,
    clients: Annotated[
        list[str] | None, typer.Argument(metavar="CLIENT...", help="Names or numbers, as nodes list shows them.")
    ] = None,
    unseen: Annotated[
        int | None, typer.Option(metavar="ROUNDS", help="All whose answer counted in none of the last so many.", min=1)
    ] = None,
) -> int:
    """Give the numbers of clients back that will not return; the server must be stopped for it."""
    from fedcl import result
    from fedcl.lock import Lock
    from fedcl.real import numbers

    if bool(clients) == bool(unseen):
        raise ConfigError("nodes free: name clients (fedcl server nodes list), or --unseen ROUNDS")
    folder = state.absolute() / "run"
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"--state {str(state)!r} holds no federation: there is no number to free")
    with Lock(state.absolute()), Lock(folder):
        held = numbers.read(folder, result.read(folder).config.stream.clients)
        gone = clients or numbers.unseen(held, folder, unseen or 0)
        numbers.write(folder, numbers.without(held, gone, numbers.checkpointed(folder)))
    typer.echo(f"freed {', '.join(gone)}" if gone else "nobody: all have answered since")
    return OK


@nodes.command("list")
def _list(state: State) -> int:
    """Tell who may take part, and which clients have come."""
    from fedcl.real.nodes import Nodes

    known = Nodes(state.absolute())
    ids = known.registered
    for name, key in known.keys.items():
        typer.echo(f"{name}  {key}  {'registered as ' + ids[name] if name in ids else 'registered at the next start'}")
    if not known.names:
        typer.echo("no nodes: fedcl server nodes add NAME.pub --state DIR")
    _list_clients(state.absolute() / "run")
    return OK


def _list_clients(folder: Path) -> None:
    """Tell of a federation's clients when each of them was seen last, if there is one."""
    from fedcl import result
    from fedcl.real import numbers

    if not (folder / numbers.FILE).exists():
        return
    held, (seen, last) = numbers.read(folder, result.read(folder).config.stream.clients), numbers.answered(folder)
    whose = {**{number: name for name, number in held.names.items()}, **held.fixed}
    for number, name in sorted(whose.items()):
        when = f"answered last in round {seen[number]} of {last}" if number in seen else "no answer has counted yet"
        typer.echo(f"client {number}  {name or 'of a node without a key'}  {when}")


def _variables(**given: object) -> dict[str, str]:
    """Return what is given as variables of the environment of the node's processes."""
    return {name: str(value) for name, value in given.items() if value is not None}


def _check_node(server_at: str, tls: Path | None, key: Path | None, data: Path | None) -> None:
    """Refuse options with which no node can take part, before anything is made."""
    if wrong := addresses.server_problem(server_at, PORT):
        raise ConfigError(f"--server {server_at!r}: {wrong}")
    if key and not tls:
        raise ConfigError("--key: a node proves who it is over TLS only; add --tls ca.crt")
    if data and not data.exists():
        raise ConfigError(f"--data {str(data)!r}: is not there")


def client(
    server_at: Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The SuperLink.")],
    state: State,
    client: Annotated[
        list[str] | None,
        typer.Option(help="A ward's name, where this node hosts several (repeat it), or the fixed number of a client."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="Folder of data files (sets FEDCL_DATA).")] = None,
    tls: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ca.crt of fedcl certs; without: plain text.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="NAME.key, by which the node proves who it is.")
    ] = None,
    allow: Annotated[
        str | None, typer.Option(help="Statistics that may leave, by comma; others are refused. Default: all.")
    ] = None,
    min_count: Annotated[
        int,
        typer.Option(
            help="Samples that a figure must rest on to leave: a class's sum, a task's accuracy, a visit.", min=0
        ),
    ] = 5,
    audit: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to list what has left this node.")] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="A package that scenarios may name parts of; several: repeat it."),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="No warm worker: each message loads model and data anew.")
    ] = False,
    file: Config = None,
) -> int:
    """Take part in a federation until stopped, with one client or several (--client); go on after any crash."""
    from fedcl import names
    from fedcl.interrupt import STOPPED, Stopped, listening
    from fedcl.lock import Lock
    from fedcl.real.joining import Node, name_by
    from fedcl.trust import packages

    _check_node(server_at, tls, key, data)
    hosted = names.hosted(client or ())
    state, tls, key = _made(state), _there("--tls", tls), _there("--key", key)
    extra = _variables(
        FEDCL_MIN_COUNT=min_count, FEDCL_TRUST=",".join(packages(trust or (), "--trust")) or None, FEDCL_ALLOW=allow,
        FEDCL_DATA=data and data.absolute(), FEDCL_AUDIT=audit and audit.absolute(),
    )  # fmt: skip
    with Lock(state), listening() as stop:
        node = Node(
            server=server_at, state=state, hosted=hosted, name=name_by(key), tls=tls, key=key, extra=extra,
            warm=not cold, say=_say,
        )  # fmt: skip
        try:
            node.take_part(stop)
        except Stopped:
            typer.echo("fedcl: stopped", err=True)
            return STOPPED
    return OK
