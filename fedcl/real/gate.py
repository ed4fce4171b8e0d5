"""What runs in the place of Flower's commands, on a node and on the server: no app but the one that is installed here.

An executor of Flower's starts `flwr-clientapp` or `flwr-serverapp` (or `flwr-agentapp`, `flwr-model`, ...: whatever the
run is) by its name. fedcl puts a folder in front of its PATH in which each of these names leads here. The app's command
checks the app that came and then runs the one of this installation; every other is refused. The servers themselves, the
executor and Flower's command line are started here too: behind a gate (`fedcl.real.superlink`), or with the secret that
it asks for (`fedcl.real.secret`). What is started in another way has no secret, and so gets nothing.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from fedcl import writing
from fedcl.errors import FederationError
from fedcl.real import bundle
from fedcl.real.secret import show_secret
from fedcl.real.superlink import guard_superlink, guard_supernode, require

NODE, SERVER = "node", "server"  # which of the two sides a machine is
CLIENT_COMMAND, SERVER_COMMAND, EXECUTOR, COMMAND_LINE = (
    "flwr-clientapp", "flwr-serverapp", "flower-superexec", "flwr",
)  # fmt: skip
CLIENT_APP, SERVER_APP = "clients.app:app", "server.app:app"
# Flower's modules that run an app, each with what is replaced in it.
CLIENT_RUNTIME = ("flwr.supernode.runtime.run_clientapp", "install_from_fab", "get_load_client_app_fn")
SERVER_RUNTIME = ("flwr.superlink.runtime.run_serverapp", "install_from_fab", "run_")


class Refused(FederationError):
    """Somebody asks for something that this machine does not run."""


def command_line(side: str, command: str) -> list[str]:
    """Return what runs one of Flower's commands here."""
    # -P: modules come from the installation, never from the folder in which fedcl was started.
    return [sys.executable, "-P", "-m", "fedcl.real.gate", side, command]


def write_commands(folder: Path, side: str, home: Path) -> None:
    """Write one executable for each command that Flower starts into a folder that is to stand first in PATH.

    Args:
        home: Flower's files of this machine, where its secret is.
    """
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for command in sorted({*TASK_TYPE_TO_COMMAND.values(), EXECUTOR} | ({COMMAND_LINE} if side == SERVER else set())):
        line = f'FLWR_HOME={shlex.quote(str(home))} exec {shlex.join(command_line(side, command))} "$@"'
        path = folder / command
        writing.write(path, f"#!/bin/sh\n{line}\n", 0o700)
        path.chmod(0o700)


def checked(content: bytes, who: str = "the server sends", **_: Any) -> Path:
    """Take the place of Flower's installation of an app: look at it, and install nothing.

    Raises:
        Refused: it is not the app of the fedcl that is installed here.
    """
    found = bundle.problem(content, who)
    if found:
        raise Refused(found)
    return Path(os.devnull)


def _app(name: str) -> Any:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def _looked_at(module: str, *names: str) -> Any:
    """Return a module of Flower's that still has what is about to be replaced."""
    runtime = importlib.import_module(module)
    require(runtime, *names)
    return runtime


def own_app(**_: Any) -> Callable[..., Any]:
    """Take the place of Flower's loader: whatever the app's name, it is the one that is installed here."""
    return lambda *_: _app(CLIENT_APP)


def guard_clientapp(home: Path) -> None:
    """Put the gate into Flower's ClientApp process.

    Raises:
        FederationError: this version of Flower is built otherwise, so the gate would stand in the wrong place.
    """
    runtime = _looked_at(*CLIENT_RUNTIME)
    runtime.install_from_fab = checked
    runtime.get_load_client_app_fn = own_app
    guard_executor(home)


def guard_serverapp(home: Path) -> None:
    """Put the gate into Flower's ServerApp process.

    The bundle is installed there, because Flower reads settings from it; its code is that of this installation.

    Raises:
        FederationError: this version of Flower is built otherwise.
    """
    runtime = _looked_at(*SERVER_RUNTIME)
    install, run = runtime.install_from_fab, runtime.run_

    def install_own(content: bytes, **named: Any) -> Any:
        checked(content, "somebody submitted")
        return install(content, **named)

    def run_own(*, grid: Any, context: Any, **_: Any) -> Any:
        return run(grid=grid, context=context, server_app_dir="", loaded_server_app=_app(SERVER_APP))

    runtime.install_from_fab = install_own
    runtime.run_ = run_own
    guard_executor(home)


def guard_executor(home: Path) -> None:
    """Let the executor, or the process of an app, show the secret to the server that it works for."""
    from flwr.supercore.runtime import RuntimeHttpClient

    show_secret(RuntimeHttpClient, home)


def guard_command_line(home: Path) -> None:
    """Let Flower's command line show the secret."""
    from flwr.supercore.control import ControlHttpClient

    show_secret(ControlHttpClient, home)


def guard_node(home: Path) -> None:
    """Put the gate before the SuperNode, after a look whether the one in the ClientApp's process would stand right."""
    _looked_at(*CLIENT_RUNTIME)
    guard_supernode(home)


def guard_server(home: Path) -> None:
    """Put the gate before the SuperLink, after a look whether the one in the ServerApp's process would stand right."""
    _looked_at(*SERVER_RUNTIME)
    guard_superlink(home)


# What may run on which side, and what is done to Flower before.
GUARDS: dict[str, dict[str, Callable[[Path], None]]] = {
    NODE: {"flower-supernode": guard_node, EXECUTOR: guard_executor, CLIENT_COMMAND: guard_clientapp},
    SERVER: {
        "flower-superlink": guard_server, EXECUTOR: guard_executor, SERVER_COMMAND: guard_serverapp,
        COMMAND_LINE: guard_command_line,
    },
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run a command of Flower's behind its guard, if this side runs it at all."""
    side, command, rest = arguments[0], arguments[1], arguments[2:]
    guard = GUARDS[side].get(command)
    if guard is None:
        who = "the server asks this node" if side == NODE else "somebody asks this server"
        app = CLIENT_COMMAND if side == NODE else SERVER_COMMAND
        print(f"fedcl: refused: {who} to run {command!r}; it runs {app!r} alone")
        return 1
    sys.argv = [command, *rest]
    try:
        guard(Path(os.environ["FLWR_HOME"]))
        for point in distribution("flwr").entry_points.select(group="console_scripts", name=command):
            point.load()()
    except FederationError as error:
        print(f"fedcl: refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
