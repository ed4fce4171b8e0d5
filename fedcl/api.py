"""Run a federation in simulation, go on with one, sweep, load: what the command line and Python programs call.

A setting is changed by a keyword: its name is the setting's key, its value what a scenario file would hold there. So
`run("split-digits", seed=1, client={"method": "er"})` is `run("split-digits", **{"seed": 1, "client.method": "er"})`.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcl import config, rundir, timing
from fedcl.config import Scenario
from fedcl.console import Progress
from fedcl.engine import choice
from fedcl.errors import LOSSY, ConfigError, Diverged, FederationError
from fedcl.interrupt import STOPPED, Stopped, listening
from fedcl.journal import finished, read_results
from fedcl.overrides import given_texts, plain
from fedcl.process import settled
from fedcl.result import Result, read
from fedcl.results import lossy
from fedcl.sweeps.folder import default_folder, is_sweep
from fedcl.sweeps.result import SweepResult
from fedcl.world import as_text, world

Listener = Callable[[dict[str, Any]], None]
Name = str | os.PathLike[str]  # of what fedcl ships, or the path of a file
SERVER_APP = "server.app:app"


def load(directory: Path | str) -> Result | SweepResult:
    """Return the run of a run directory, or the sweep of a sweep's folder.

    Raises:
        ConfigError: it is neither.
    """
    return SweepResult(Path(directory).absolute()) if is_sweep(Path(directory)) else read(directory)


@settled()
def run(
    scenario: Name | Mapping[str, Any] | Scenario, *, out: Path | str | None = None, command: str = "",
    listeners: Sequence[Listener] = (), profile: bool = False, check: bool = True, progress: bool | None = None,
    **overrides: Any,
) -> Result:  # fmt: skip
    """Run a scenario in simulation and write its run directory.

    Args:
        scenario: a shipped name, the path of a file, what such a file holds, or a `Scenario`.
        out: exactly this run directory; default: runs/NAME/YYYYMMDD-HHMMSS-hash.
        command: what the run directory says that the run was started with.
        listeners: are called with every event of the journal.
        profile: write down where the time goes (`fedcl.timing`).
        check: raise if the run fails or is stopped; False: the result's `code` and `error` say so.
        progress: show how far it is; None: in a notebook or a terminal.
        overrides: settings to change, by key: `seed=1`, `client={"method": "er"}`, `**{"client.method": "er"}`;
            `group="joint"` applies a group of them first.

    Raises:
        ConfigError: a setting is impossible, the scenario contradicts its data, or `out` cannot be used.
        FederationError: the run has failed; `resume` goes on with it.
        Diverged: it could not go on because training diverged. (One that diverged and went on has status "diverged".)
        Stopped: it was asked to end by SIGTERM or Ctrl-C; `resume` goes on with it.
    """
    chosen, _ = choice.resolve(_scenario(scenario, overrides))
    if getattr(chosen.stream.dataset, "elsewhere", False):
        where = "the clients' data lies in folders on their own machines"
        raise ConfigError(
            f"stream.dataset.name = 'local': {where}; fedcl server and fedcl client run it, there or here"
        )
    folder = rundir.create(chosen, None if out is None else Path(out))
    with _shown(progress) as shown:
        return _ended(_go(chosen, folder, command, (*listeners, *shown), profile), check)


@settled()
def resume(
    directory: Path | str, *, command: str = "", listeners: Sequence[Listener] = (), profile: bool = False,
    check: bool = True, progress: bool | None = None,
) -> Result:  # fmt: skip
    """Go on with a run from its last checkpoint; one that had finished stays as it is. Arguments as those of `run`.

    Raises:
        ConfigError: the directory holds no run.
        FederationError: it has failed again.
        Stopped: it was asked to end.
    """
    found = read(directory)
    if finished(found.directory):
        return Result(found.directory, _code(found.directory))
    with _shown(progress) as shown:
        for each in shown:
            each.catch_up(found.readable)
        return _ended(_go(found.config, found.directory, command, (*listeners, *shown), profile), check)


@contextmanager
def _shown(progress: bool | None) -> Iterator[list[Progress]]:
    """Show how far a run is while the block runs, where that is wanted: by default where somebody looks."""
    if progress is None:
        progress = sys.stdout.isatty() or "ipykernel" in sys.modules
    if not progress:
        yield []
        return
    with Progress() as shown:
        yield [shown]


@settled()
def sweep(
    sweep: Name | Mapping[str, Any], *, out: Path | str | None = None, retry_failed: bool = False,
    address: str | None = None, command: str = "", **overrides: Any,
) -> SweepResult:  # fmt: skip
    """Run scenarios x settings x seeds; called again, it goes on where it was stopped, and what is finished stays.

    Args:
        sweep: a shipped name, the path of a sweep file, or what such a file holds.
        out: its folder; default: runs/sweeps/NAME.
        retry_failed: run again what has failed before.
        address: of a Ray cluster; None: this machine.
        command: what the folder says that the sweep was started with.
        overrides: settings to change in every run, as those of `run`.

    Returns:
        The sweep; runs that have failed stand in its `failed`.

    Raises:
        ConfigError: the sweep or a combination is impossible, or another process works in the folder.
        Stopped: it was asked to end.
    """
    from fedcl.sweeps import runs, spec, tables

    texts = given_texts(overrides)
    asked = spec.of_plain(plain(sweep), "unnamed", texts) if isinstance(sweep, Mapping) else spec.read(
        os.fspath(sweep), texts
    )  # fmt: skip
    folder = Path(out) if out is not None else default_folder(asked.name)
    runs.carry_out(asked, folder.absolute(), command=command, address=address, retry_failed=retry_failed)
    tables.write(tables.collect(folder), folder)
    return SweepResult(folder.absolute())


def _scenario(scenario: Name | Mapping[str, Any] | Scenario, overrides: Mapping[str, Any]) -> Scenario:
    """Return the scenario that is meant, with its overrides."""
    if isinstance(scenario, Scenario):
        return config.load(config.as_dict(scenario), overrides) if overrides else scenario
    return config.load(plain(scenario), overrides)


def _ended(result: Result, check: bool) -> Result:
    """Return a result, or raise what its caller must not overlook."""
    if not (check and result.code) or (result.code == LOSSY and not result.error):
        return result
    kind = Diverged if result.code == LOSSY else FederationError
    error = Stopped("the run was asked to stop") if result.code == STOPPED else kind(result.error)
    error.add_note(f"The run lies in {str(result.directory)!r}; fedcl.resume goes on with it.")
    raise error


def _go(scenario: Scenario, folder: Path, command: str, listeners: Sequence[Listener], profile: bool) -> Result:
    """Start the engine and hand it to the ServerApp."""
    from fedcl.engine import flower

    tokens = rundir.LISTENERS.set(tuple(listeners)), rundir.COMMAND.set(command)
    code, message, grid = 0, "", None
    if profile:
        timing.start()
    try:
        with listening() as stop:  # a stop that is asked for while Ray starts counts too
            grid = _grid(scenario, folder, stop.check)
            stop.check()
            module, _, name = SERVER_APP.partition(":")
            context = flower.context({"directory": str(folder), "state": str(folder / "state")}, {})
            getattr(importlib.import_module(module), name)(grid, context)
    except Stopped:
        code = STOPPED
    except FederationError as error:
        code, message = LOSSY if isinstance(error, Diverged) else 1, str(error)
    else:
        code = _code(folder)
    finally:
        if grid is not None:
            grid.close()
        rundir.LISTENERS.reset(tokens[0])
        rundir.COMMAND.reset(tokens[1])
        if profile:
            timing.write(folder, timing.stop())
    return Result(folder, code, message)


def _code(folder: Path) -> int:
    """Return the exit code of a run that has come to its end."""
    return LOSSY if lossy(read_results(folder) or {}) else 0


def _grid(scenario: Scenario, folder: Path, check: Callable[[], None]) -> Any:
    """Return the grid that the scenario asks for.

    Raises:
        ConfigError: there is no room for its workers, or not every machine sees the run directory.
        Stopped: somebody asked for it meanwhile.
    """
    if choice.kind(scenario) == "inline":
        from fedcl.engine.inline import InlineGrid

        return InlineGrid()
    from fedcl.engine import cluster, survey
    from fedcl.engine.ray_grid import RayGrid, fitting

    engine, text, (workers, gpus) = scenario.engine, as_text(scenario), choice.workers(scenario)
    cluster.start_ray(engine.address)
    check()
    if engine.address:
        survey.survey(folder, "--out", check)
    workers = fitting(workers, engine.workers != "auto", gpus, everywhere=engine.address is not None)
    grid = RayGrid(text, world(text)[1], workers=workers, gpus=gpus)
    try:
        grid.begin(check, lambda here: _queued(here, workers))
    except BaseException:
        grid.close()
        raise
    return grid


def _queued(here: int, needed: int) -> None:
    """Tell who watches that workers wait until others free their cores."""
    for listener in rundir.LISTENERS.get():
        listener({"event": "queued", "here": here, "needed": needed})
