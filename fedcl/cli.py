"""The command line. Each command imports what it needs, so that `fedcl --help` stays fast."""

import errno
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedcl import (
    __version__,
    cli_bench,
    cli_explain,
    cli_help,
    cli_list,
    cli_real,
    cli_report,
    cli_sweep,
    cli_watch,
    completion,
)
from fedcl.certs import SERVER_DAYS
from fedcl.errors import LOSSY, ConfigError, Diverged, FederationError, shortened
from fedcl.interrupt import STOPPED
from fedcl.output import guarded

if TYPE_CHECKING:
    from fedcl import config
    from fedcl.certfolder import File
    from fedcl.result import Result

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
RUNS = Path("runs")
PRINTING = ("list", "show", "predict", "explain")  # commands of which nothing but what they print remains
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)  # by the machine, not by a fault of ours
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)  # of what a user has typed

app = typer.Typer(
    name="fedcl",
    cls=cli_help.Group,
    help="Federated continual learning: many clients, each with its own stream of tasks and its own replay memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,  # click does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedcl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Scenario = Annotated[str, completion.scenario()]
OptionalScenario = Annotated[str | None, completion.scenario()]
Overrides = Annotated[list[str] | None, completion.settings("Settings to change: client.optimizer.lr=0.05")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]


def _finish(outcome: "Result", quiet: bool) -> int:
    """Print the table of figures, where the run lies, and why it has not ended well, if it has not; return the code."""
    from rich.console import Console

    from fedcl.console import table

    if outcome.events and not quiet:  # what has not begun has no figures
        Console(highlight=False).print(table(outcome.results))
    typer.echo(str(outcome.directory))
    if outcome.error:
        _complain(outcome.error)
    if outcome.code == STOPPED:
        _complain(f"stopped; fedcl run --resume {shlex.quote(str(outcome.directory))} goes on")
    return int(outcome.code or OK)


def _asked(
    scenario: str | None, overrides: list[str], out: Path | None, resume: Path | None
) -> "config.Scenario | Path":
    """Return the scenario to run, or the run directory to go on with. Read before torch and Flower are imported."""
    if resume and (scenario or out):
        raise ConfigError("--resume goes on with the run as it was configured: leave out SCENARIO, settings and --out")
    if resume:
        return resume
    if not scenario:
        raise ConfigError("name a SCENARIO (fedcl list scenarios shows them) or --resume DIR")
    from fedcl.config import load

    return load(scenario, overrides)


def _note(scenario: "config.Scenario") -> None:
    """Tell what is allowed but will hardly do what its user wants."""
    from fedcl.contradictions import notes

    for note in notes(scenario):
        _complain(f"note: {note}")


@app.command("run")
def _run(
    context: typer.Context,
    scenario: OptionalScenario = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Exactly this run directory.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with a stopped run.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the run directory and errors only.")] = False,
    profile: Annotated[
        bool, typer.Option(help="Write where the time goes: profile.json, trace.json (Chrome).")
    ] = False,
) -> int:
    """Run a federation.

    Exit 0: finished; 2: bad configuration; 1: failed; 75: stopped, resumable; 3: training diverged, or updates were
    lost to errors (the table and results.json tell how many; what was refused or did not come leaves it at 0).
    """
    target = _asked(scenario, overrides or [], out, resume)
    if not (quiet or isinstance(target, Path)):
        _note(target)
    from fedcl import api, kept, result
    from fedcl.console import Progress
    from fedcl.journal import EVENTS

    with Progress(quiet=quiet) as progress:
        if isinstance(target, Path):
            with kept.sound(target / EVENTS):
                progress.catch_up(result.read(target).readable)
            outcome = api.resume(
                target, command=context.obj, listeners=[progress], profile=profile, check=False, progress=False
            )
        else:
            outcome = api.run(
                target, out=out, command=context.obj, listeners=[progress], profile=profile, check=False, progress=False
            )
    if profile and not quiet:
        from fedcl import timing

        typer.echo(timing.table(json.loads((outcome.directory / "profile.json").read_text())))
    return _finish(outcome, quiet)


@app.command("show")
def _show(
    scenario: Scenario,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Draw who is at which task when.")] = False,
) -> int:
    """Print a scenario with every setting resolved and what each is for, or its plan."""
    from fedcl.config import as_dict, load

    chosen = load(scenario, overrides or ())
    _note(chosen)
    if plan:
        from fedcl.chart import plan_chart

        typer.echo(plan_chart(chosen, shutil.get_terminal_size().columns))
    else:
        typer.echo(cli_explain.commented(as_dict(chosen)))
    return OK


@app.command("doctor")
def _doctor() -> int:
    """Examine this machine: versions, cores, GPU, disk, data. Exit 1 if something is broken."""
    from fedcl.doctor import examine

    broken = False
    for finding in examine(Path.cwd() / RUNS):
        typer.echo(f"{finding.level:6} {finding.what}" + (f"; {finding.remedy}" if finding.remedy else ""))
        broken |= finding.level == "broken"
    return FAILED if broken else OK


@app.command("predict")
def _predict(
    directory: Directory,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Pictures, .csv, .parquet, .npz (array x), .npy, or folders of them."),
    ],
    task: Annotated[int | None, typer.Option(help="The task that the inputs come from, if it is known.")] = None,
) -> int:
    """Print a CSV table: file, row, class by name, its probability, and the probability of every class (p_NAME).

    Inputs are in the data set's own units (digits: 0 to 16), tables with the columns of the training in any order.
    """
    import csv
    from contextlib import nullcontext

    from fedcl import kept, result
    from fedcl.predict import known_task, predict, read_given
    from fedcl.streams.walk import printable

    run = result.read(directory)
    model, stream, classifier = run.model(), run.outline, run.classifier()
    task = known_task(task, stream)
    given = read_given(files, run.config, stream.dataset)
    for note in given.notes:
        _complain(f"note: {note}")
    names = [printable(name) for name in stream.dataset.class_names]
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("file", "row", "class", "probability", *(f"p_{name}" for name in names)))
    with kept.sound(directory / result.CLASSIFIER, result.ANEW) if classifier else nullcontext():
        known = list(predict(model, stream, given.x, task, classifier))
    for (path, row), found in zip(given.places(), known, strict=True):
        chances = (f"{each:.6f}" for each in (found.probability, *found.probabilities))
        lines.writerow((path, row, names[found.label], *chances))
    return OK


@app.command("check")
def _check(
    reference: Annotated[str, typer.Argument(metavar="PACKAGE:NAME", help="A part of one's own.")],
) -> int:
    """Run the conformance tests on a method, memory, dataset or model of one's own. Exit 1 if one fails."""
    from fedcl.testing import check_reference

    failed = False
    for result in check_reference(reference):
        typer.echo(
            f"{'failed' if result.problem else 'passed'} {result.name}" + f": {result.problem}" * bool(result.problem)
        )
        failed |= bool(result.problem)
    return FAILED if failed else OK


class _SeveralNodes(cli_help.Command):
    """--nodes takes several names: `--nodes a b` is read as `--nodes a --nodes b`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        naming = False
        for each in args:
            option = each.startswith("-")
            if naming and not option and spread[-1] != "--nodes":
                spread.append("--nodes")
            spread.append(each)
            naming = each == "--nodes" if option else naming
        return super().parse_args(ctx, spread)


def _columns(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(file: "File", folder: Path) -> tuple[str, ...]:
    until = f"until {file.until:%Y-%m-%d}" if file.until else ""
    return file.path.relative_to(folder).as_posix(), file.state, until, file.note


@app.command("certs", cls=_SeveralNodes)
def _certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make or to bring up to date.")],
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A name or address of the SuperLink, as often as need be; localhost always."),
    ] = None,
    nodes: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="SuperNodes that need a key (after DIR).")
    ] = None,
    days: Annotated[int, typer.Option(help="How long a new server certificate is valid.")] = SERVER_DAYS,
) -> int:
    """Make the CA, server certificate and node keys of a federation over TLS, or bring them up to date.

    Keys are never overwritten. The server's certificate is renewed if it is for other hosts, or ends within 30 days.
    """
    from fedcl.certfolder import next_step, update_folder

    files = update_folder(directory, hosts=host or (), nodes=nodes or (), days=days)
    typer.echo("\n".join(_columns([_cells(file, directory) for file in files])))
    typer.echo(f"next: {next_step(directory, files)}")
    return OK


app.command("list")(cli_list.listed)
app.command("explain")(cli_explain.explain)
app.add_typer(cli_real.server, name="server")
app.command("client")(cli_real.client)
app.command("bench")(cli_bench.bench)
app.command("sweep")(cli_sweep.sweep)
app.command("watch")(cli_watch.watch)
app.command("report")(cli_report.report)
app.command("help")(cli_help.help_on)
for _each in (app, cli_real.server, cli_real.nodes):
    cli_help.dressed(_each)


def _complain(message: object) -> None:
    for line in str(message).splitlines():  # several mistakes in a scenario are a line each
        print(f"fedcl: {shortened(line)}", file=sys.stderr)


def _usage(error: click.ClickException) -> str:
    """Say what was wrong with the arguments in one sentence."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fedcl"
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one sentence on stderr, never a traceback.

    An output that fails ends no command; only where what is printed is all that was asked for, the code says so.
    """
    typed = sys.argv[1:] if arguments is None else list(arguments)
    with guarded() as out:
        code = _main(typed)
        out.flush()
        if out.lost and out.lost != os.strerror(errno.EPIPE):  # a reader that has left (| head) has what it wanted
            _complain(f"what was printed is lost, the output failed: {out.lost}")
            return FAILED if code == OK and typed[:1] and typed[0] in PRINTING else code
    return code


def _main(typed: list[str]) -> int:
    try:
        code: Any = app(typed, prog_name="fedcl", standalone_mode=False, obj=shlex.join(["fedcl", *typed]))
        return int(code or OK)
    except ConfigError as error:
        _complain(error)
        return USAGE
    except FederationError as error:
        _complain(error)
        return LOSSY if isinstance(error, Diverged) else FAILED
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        _complain(_usage(error))
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except OSError as error:
        if error.errno in NO_PATH:
            _complain(f"{error.filename or 'a file'}: no file can be there ({error.strerror})")
            return USAGE
        if error.errno not in DENIED:
            raise
        _complain(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")
        return FAILED
