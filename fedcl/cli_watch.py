"""`fedcl watch`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedcl.errors import LOSSY
from fedcl.interrupt import STOPPED

INTERRUPTED = 130
CODES = {"": 0, "finished": 0, "failed": 1, "died": 1, "diverged": LOSSY, "stopped": STOPPED}
LOOK = 0.5  # seconds between two looks


def watch(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, a sweep, or a server's --state.")],
    once: Annotated[bool, typer.Option("--once", help="Print how it stands now, and end.")] = False,
) -> int:
    """Show a running federation or sweep, from any terminal or machine that sees its folder; ends with it.

    Reads only. Exit 0: finished (with --once: or running); 1: failed, or its process has died; 3: diverged; 75:
    stopped, resumable.
    """
    from rich.console import Console

    from fedcl import watch as watching
    from fedcl.interrupt import listening

    seen = watching.watch(directory, once=once)
    with listening() as stop, seen.view:
        status = seen.look()
        while not (status or once or stop.asked):
            time.sleep(LOOK)
            status = seen.look()
    if stop.asked and not status:
        return INTERRUPTED
    seen.tell(status, Console(highlight=False))
    return CODES[status]
