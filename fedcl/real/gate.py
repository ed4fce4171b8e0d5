"""What runs on a node in the place of Flower's task commands: only the ClientApp that is installed here.

A SuperNode's executor starts `flwr-clientapp` (or `flwr-agentapp`, `flwr-model`, ...: whatever the server's run is) by
its name. `fedcl client` puts a folder in front of its PATH in which each of these names leads here. The ClientApp's
command checks the app that came from the server and then runs this node's own; every other is refused.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedcl.errors import FederationError
from fedcl.real import bundle

CLIENT_COMMAND = "flwr-clientapp"
CLIENT_APP = "clients.app:app"


class Refused(FederationError):
    """The server asks for something that this node does not run."""


def write_commands(folder: Path) -> None:
    """Write one executable for each of Flower's task commands into a folder that is to stand first in PATH."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for command in sorted(set(TASK_TYPE_TO_COMMAND.values())):
        # -P: modules come from the installation, never from the folder in which the node was started.
        line = f'exec {shlex.quote(sys.executable)} -P -m fedcl.real.gate {shlex.quote(command)} "$@"'
        path = folder / command
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o700)


def checked(content: bytes, **_: Any) -> Path:
    """Take the place of Flower's installation of an app: look at it, and install nothing.

    Raises:
        Refused: it is not the app of the fedcl that is installed here.
    """
    found = bundle.problem(content)
    if found:
        raise Refused(found)
    return Path(os.devnull)


def own_app(**_: Any) -> Callable[..., Any]:
    """Take the place of Flower's loader: whatever the app's name, it is the one that is installed here."""

    def load(*_: Any) -> Any:
        module, name = CLIENT_APP.split(":")
        return getattr(importlib.import_module(module), name)

    return load


def guard() -> Callable[[], None]:
    """Put the gate into Flower's ClientApp process and return that process's main function.

    Raises:
        Refused: this version of Flower is built otherwise, so the gate would stand in the wrong place.
    """
    import flwr.supernode.runtime.run_clientapp as runtime
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    for name, ours in (("install_from_fab", checked), ("get_load_client_app_fn", own_app)):
        if not callable(getattr(runtime, name, None)):
            raise Refused(f"Flower's {name} is not where it was: nothing runs until fedcl knows this version of Flower")
        setattr(runtime, name, ours)
    return flwr_clientapp


def main(arguments: Sequence[str]) -> int:
    """Run a task command of Flower's, if it is the ClientApp's."""
    command, rest = arguments[0], arguments[1:]
    if command != CLIENT_COMMAND:
        print(f"fedcl: refused: the server asks this node to run {command!r}; it runs {CLIENT_COMMAND!r} alone")
        return 1
    sys.argv = [command, *rest]
    guard()()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
