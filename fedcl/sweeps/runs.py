"""A sweep carried out: what is finished stays, what was interrupted goes on, what fails is noted and stops nobody.

DIR/sweep.json says what the sweep is, DIR/events.jsonl what has happened to its runs, DIR/runs/KEY holds one each.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedcl import config, track
from fedcl.config import Scenario
from fedcl.engine import cluster
from fedcl.engine.pool import CANCELLED, Ended, Pool
from fedcl.engine.survey import survey
from fedcl.errors import ConfigError
from fedcl.interrupt import STOPPED, Stopped, listening
from fedcl.journal import Journal, finished, read_events
from fedcl.lock import Lock, holder
from fedcl.sweeps.folder import run_folder, write_plan
from fedcl.sweeps.spec import Point, Sweep, checked
from fedcl.sweeps.state import DONE, FAILED, HELD, RUNNING, WAITING, State
from fedcl.world import as_text, scenario_of

KEY = 12  # letters of a configuration's hash that name a run's folder
LOOK = 0.5  # seconds between two looks at the runs
PATIENCE = 60.0  # seconds for which a run waits until a process that a killed sweep has left behind is gone
Listener = Callable[[State], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: everything that a sweep asks for with this configuration."""

    key: str
    points: tuple[Point, ...]  # several, if they come to the same configuration
    scenario: Scenario

    @property
    def title(self) -> str:
        """The run in a line."""
        return self.points[0].title

    def folder(self, out: Path) -> Path:
        """Return its run directory."""
        return run_folder(out, self.key)


def planned(sweep: Sweep) -> dict[str, Run]:
    """Return the runs of a sweep by key, in its order.

    Raises:
        ConfigError: a combination is impossible.
    """
    found: dict[str, Run] = {}
    for point, scenario in zip(sweep.points, checked(sweep), strict=True):
        key = config.config_hash(scenario)[:KEY]
        known = found.get(key)
        found[key] = replace(known, points=(*known.points, point)) if known else Run(
            key=key, points=(point,), scenario=scenario
        )  # fmt: skip
    return found


def outcomes(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last event of each run of a sweep that has ended, by key."""
    return {event["key"]: event for event in read_events(out) if event["event"] == "run_end"}


def status(out: Path, run: Run, last: dict[str, dict[str, Any]]) -> str:
    """Return how far a run is: `done`, `failed` or `waiting`."""
    if finished(run.folder(out)):
        return DONE
    return FAILED if last.get(run.key, {}).get("status") == FAILED else WAITING


def carry_out(
    sweep: Sweep, out: Path, *, command: str = "", address: str | None = None, nodes: int = 1,
    retry_failed: bool = False, listeners: Iterable[Listener] = (),
) -> State:  # fmt: skip
    """Run what of a sweep is not finished.

    Args:
        out: the sweep's folder; one of an earlier sitting goes on.
        address: of a Ray cluster; None: this machine.
        nodes: that the cluster has to have before it begins.
        retry_failed: run again what has failed before.
        listeners: are told whenever something has changed, and every half second.

    Raises:
        ConfigError: a combination is impossible, a tracker is not installed, another process works in the folder, or a
            node cannot take part.
        FederationError: no cluster answers at the address, or no node of it is left that is large enough.
        Stopped: somebody asked for it; everything can be resumed.
    """
    runs = planned(sweep)
    for run in runs.values():
        track.check(run.scenario.track)
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out), Journal(out) as journal, listening() as stop:
        last = outcomes(out)
        state = State(
            runs=runs, status={key: status(out, run, last) for key, run in runs.items()}, began=time.monotonic(),
            errors={key: str(event["error"]) for key, event in last.items() if event["error"]},
        )  # fmt: skip
        if retry_failed:
            state.status |= {key: WAITING for key, each in state.status.items() if each == FAILED}
        _describe(sweep, out, runs, command)
        todo = [run for run in runs.values() if state.status[run.key] == WAITING]
        journal.write({"event": "sweep", "name": sweep.name, "runs": len(runs), "todo": len(todo), "command": command})
        if todo:
            _ready(out, journal, address, nodes, stop.check)
            _worked_off(sweep, out, todo, state, journal, command, tuple(listeners), stop.check)
        for listener in listeners:
            listener(state)
    return state


def _describe(sweep: Sweep, out: Path, runs: dict[str, Run], command: str) -> None:
    """Write what the sweep is, for tables and reports."""
    points = [
        {"key": run.key, "labels": dict(point.labels), "seed": point.seed, "overrides": list(point.overrides)}
        for run in runs.values()
        for point in run.points
    ]
    write_plan(out, sweep.name, command, points)


def _ready(out: Path, journal: Journal, address: str | None, nodes: int, check: Callable[[], None]) -> None:
    """Start Ray, or join a cluster and see that all nodes of it can take part."""
    cluster.start_ray(address, "--address")
    check()
    if address:
        cluster.gather(nodes, check)
        there = survey(out, "--out", check)
        journal.write({"event": "nodes", "nodes": [asdict(each) for each in there]})


def _worked_off(
    sweep: Sweep, out: Path, todo: Sequence[Run], state: State, journal: Journal, command: str,
    listeners: Sequence[Listener], check: Callable[[], None],
) -> None:  # fmt: skip
    limits = sweep.limits
    pool = Pool(cpus=limits.cpus, gpus=limits.gpus, at_once=limits.at_once)
    for run in todo:
        pool.submit(run.key, f"{__name__}:one", str(run.folder(out)), as_text(_here(run)), command)
    try:
        while pool.busy:
            state.most = max(1, pool.most)
            for key in set(pool.running) - state.started.keys():
                state.started[key] = time.monotonic()
                state.status[key] = RUNNING
                journal.write({"event": "run_start", "key": key, "title": state.runs[key].title})
            for listener in listeners:
                listener(state)
            check()
            for each in pool.wait(LOOK):
                _ended(each, state, journal)
    except Stopped:
        for each in pool.stop():
            _ended(each, state, journal)
        raise


def _here(run: Run) -> Scenario:
    """Return a run's scenario as it runs beside others: in one process, whatever the scenario file says.

    Workers of its own would wait for the cores that the runs of the sweep have, and these for them.
    """
    return replace(run.scenario, engine=replace(run.scenario.engine, kind="inline"))


def _ended(call: Ended, state: State, journal: Journal) -> None:
    """Write down how a run has ended."""
    key, result, now = call.key, call.result, time.monotonic()
    seconds = now - state.started.get(key, now)
    code, error = result if isinstance(result, tuple) else (1, f"{type(result).__name__}: {result}")
    code = STOPPED if result == CANCELLED else code  # it has left its last checkpoint
    state.status[key] = {0: DONE, STOPPED: HELD}.get(code, FAILED)
    state.errors.pop(key, None)
    if state.status[key] == FAILED:
        state.errors[key] = (str(error).strip().splitlines() or ["no reason given"])[-1]
        journal.error(f"{key}, {state.runs[key].title}: {error}")
    elif state.status[key] == DONE:
        state.seconds.append(seconds)
    journal.write({
        "event": "run_end", "key": key, "title": state.runs[key].title, "status": state.status[key],
        "seconds": round(seconds, 3), "error": state.errors.get(key), "node": call.node,
    })  # fmt: skip


def one(folder: str, text: str, command: str) -> tuple[int, str]:
    """Run a scenario in its folder, or go on with what is there; return exit code and error. A Ray task."""
    from fedcl import api

    path, end = Path(folder), time.monotonic() + PATIENCE
    while path.is_dir() and holder(path) is not None and time.monotonic() < end:
        time.sleep(LOOK)
    try:
        again = (path / "config.yaml").is_file()
        outcome = api.resume(path, command=command, check=False) if again else api.run(
            scenario_of(text), out=path, command=command, check=False
        )  # fmt: skip
    except ConfigError as error:
        return 2, str(error)
    return int(outcome.code or 0), outcome.error
