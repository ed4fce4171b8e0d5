"""`fedcl sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcl import completion
from fedcl.addresses import problem
from fedcl.errors import ConfigError
from fedcl.interrupt import STOPPED, Stopped

if TYPE_CHECKING:
    from fedcl.sweeps.spec import Sweep
    from fedcl.sweeps.state import State

OK, FAILED = 0, 1
WIDE, WIDTH = ("iqm", "its interval", "test"), 140  # columns that only a wide terminal shows; the files have them


def sweep(
    context: typer.Context,
    sweep: Annotated[
        str,
        typer.Argument(metavar="SWEEP", help="A shipped sweep or a sweep file.", autocompletion=completion.sweeps),
    ],
    overrides: Annotated[list[str] | None, completion.settings("Settings to change in every run.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default: runs/sweeps/NAME.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and where they stand; run nothing.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what has failed before.")] = False,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster, or auto: that of this machine; default: no cluster."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Wait until the cluster has so many nodes.")] = 1,
    metric: Annotated[
        str | None,
        typer.Option(help="Figure of the table: acc, forgetting, clients.acc.worst; default: acc, or a search's own."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the folder and errors only.")] = False,
) -> int:
    """Run scenarios x settings x seeds, or search for settings and compare the best of them.

    The same command goes on where it was stopped; what is finished stays.

    Exit 0: all runs are finished; 1: some have failed; 75: stopped, the same command goes on.
    """
    from fedcl.sweeps.folder import default_folder
    from fedcl.sweeps.spec import read

    asked = read(sweep, overrides or ())
    if wrong := problem(address):
        raise ConfigError(f"--address {address!r}: {wrong}")
    if nodes > 1 and not address:
        raise ConfigError(f"--nodes {nodes}: without --address there is no cluster, and one machine")
    folder = (out or default_folder(asked.name)).absolute()
    if dry_run:
        return _listed(asked, folder)
    from fedcl.sweeps import runs
    from fedcl.sweeps.live import Watcher
    from fedcl.sweeps.tables import METRIC

    try:
        with Watcher(folder, quiet=quiet) as watcher:
            state = runs.carry_out(
                asked,
                folder,
                command=context.obj,
                address=address,
                nodes=nodes,
                retry_failed=retry_failed,
                listeners=[watcher],
            )
    except Stopped:
        typer.echo(f"stopped; the same command goes on in {folder}", err=True)
        return STOPPED
    _told(state, folder, metric or (asked.search.metric if asked.search else METRIC), quiet)
    return FAILED if state.errors else OK


def _listed(sweep: "Sweep", folder: Path) -> int:
    """Print the runs and how far they are; of a search its space and its budget."""
    from fedcl.sweeps import runs, sitting

    planned, last = runs.planned(sweep), sitting.outcomes(folder)
    for run in planned.values():
        typer.echo(f"{run.key}  {sitting.status(folder, run, last):8} {' = '.join(each.title for each in run.points)}")
    if not sweep.search:
        typer.echo(f"{len(planned)} runs in {folder}")
        return OK
    search, n = sweep.search, len(sweep.studies)
    for study in sweep.studies:
        typer.echo("\n  ".join([study.title, *(each.told for each in study.space)]))
    pruned = ", fewer where trials are pruned" if search.prune else ""
    runs_each = search.trials * len(search.seeds)
    typer.echo(
        f"{n} searches of {search.trials} trials with the seeds {', '.join(map(str, search.seeds))}, judged by "
        f"{search.metric}: {n * runs_each} runs{pruned}; then {n * len(sweep.seeds)} to compare the best; in {folder}"
    )
    return OK


def _told(state: "State", folder: Path, metric: str, quiet: bool) -> None:
    """Print what has come of a sweep, and write its tables."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedcl.sweeps import tables

    found = tables.collect(folder, metric)
    tables.write(found, folder)
    if not quiet:
        head, lines = tables.grid(found)
        console = Console(highlight=False)
        shown = [place for place, name in enumerate(head) if name not in WIDE or console.width >= WIDTH]
        if len({each[0] for each in lines}) == 1 and head[1] not in tables.HEAD:  # one scenario: the title names it
            shown.remove(0)
        title = f"{found.name}, {lines[0][0]}: {found.metric}" if 0 not in shown else f"{found.name}: {found.metric}"
        made = Table(title=escape(title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for place in shown:
            figure = head[place] in tables.HEAD  # a figure is never cut short, the name of a setting may be
            least = max(len(each[place]) for each in [head, *lines]) if figure else 8
            made.add_column(head[place], justify="right" if figure else "left", no_wrap=True, min_width=least)
        for each in lines:
            made.add_row(*(escape(each[place]) for place in shown))
        console.print(made)
        for note in tables.notes(found):
            console.print(escape(note), style="dim", soft_wrap=True)
    for key, error in state.errors.items():
        typer.echo(f"failed: {state.runs[key].title if key in state.runs else key}: {error}", err=True)
    typer.echo(str(folder))
