"""Runs of a sweep as Ray tasks: what is in work, how each has ended, and what the sweep's journal says of it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedcl import config, kept
from fedcl.config import Scenario
from fedcl.engine import cluster
from fedcl.engine.pool import CANCELLED, Ended, Pool
from fedcl.engine.survey import survey
from fedcl.errors import LOSSY, ConfigError
from fedcl.interrupt import STOPPED, Stopped
from fedcl.journal import EVENTS, Journal, finished, read_events
from fedcl.lock import holder
from fedcl.sweeps.axes import Point
from fedcl.sweeps.folder import run_folder, write_plan
from fedcl.sweeps.pruning import Watch
from fedcl.sweeps.spec import Limits
from fedcl.sweeps.state import DONE, FAILED, HELD, HOPELESS, PRUNED, RUNNING, WAITING, State
from fedcl.world import as_text, scenario_of

KEY = 12  # letters of a configuration's hash that name a run's folder
LOOK = 0.5  # seconds between two looks at the runs
PATIENCE = 60.0  # seconds for which a run waits until a process that a killed sweep has left behind is gone
CUT, NOTHING = -1, 1  # what `one` returns of them; 1 is `fedcl run`'s: the federation could not go on
ENDS = {0: DONE, STOPPED: HELD, CUT: PRUNED}
Listener = Callable[[State], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: everything that a sweep asks for with this configuration."""

    key: str
    points: tuple[Point, ...]  # several, if they come to the same configuration
    scenario: Scenario

    @classmethod
    def of(cls, point: Point, scenario: Scenario | None = None) -> "Run":
        """Return the run of a point.

        Raises:
            ConfigError: there is no such scenario.
        """
        scenario = scenario or config.load(point.scenario, point.overrides)
        return cls(key=config.config_hash(scenario)[:KEY], points=(point,), scenario=scenario)

    @property
    def title(self) -> str:
        """The run in a line."""
        return self.points[0].title

    @property
    def trial(self) -> bool:
        """Whether it is only tried, in a search."""
        return self.points[0].trial is not None

    def folder(self, out: Path) -> Path:
        """Return its run directory."""
        return run_folder(out, self.key)


def outcomes(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last event of each run of a sweep that has ended, by key."""
    with kept.sound(out / EVENTS):
        return {event["key"]: event for event in read_events(out, strict=False) if event["event"] == "run_end"}


def status(out: Path, run: Run, last: dict[str, dict[str, Any]]) -> str:
    """Return how far a run is: `done`, `failed` or `waiting`."""
    if finished(run.folder(out)):
        return DONE
    return FAILED if last.get(run.key, {}).get("status") == FAILED else WAITING


def describe(out: Path, name: str, command: str, runs: Iterable[Run], search: dict[str, Any] | None = None) -> None:
    """Write what the sweep is, for tables and reports."""
    points = [
        {"key": run.key, "labels": dict(point.labels), "seed": point.seed, "overrides": list(point.overrides)}
        for run in runs
        for point in run.points
    ]
    write_plan(out, name, command, points, search)


class Sitting:
    """One sitting of a sweep; Ray is started for its first run."""

    def __init__(
        self, out: Path, state: State, journal: Journal, limits: Limits, *, address: str | None, nodes: int,
        command: str, retry_failed: bool, listeners: Sequence[Listener], check: Callable[[], None],
    ) -> None:  # fmt: skip
        """Take up a sweep in its folder.

        Args:
            address: of a Ray cluster; None: this machine.
            nodes: that the cluster has to have before the first run begins.
            command: what the run directories say that they were started with.
            retry_failed: run again what has failed before.
            listeners: are told whenever something has changed, and every half second.
            check: raises Stopped if somebody has asked for it.
        """
        self.out, self.state, self.listeners = out, state, listeners
        self._journal, self._limits, self._command = journal, limits, command
        self._address, self._nodes = address, nodes
        self._check, self._retry, self._last = check, retry_failed, outcomes(out)
        self._pool: Pool | None = None
        self._runs: dict[str, Run] = {}
        state.runs = self._runs

    def take(self, run: Run) -> None:
        """Queue a run, unless it is done, or has failed before and nobody wants it again."""
        now = status(self.out, run, self._last)
        self.note(run, now)
        if now == FAILED:
            self.state.errors[run.key] = str(self._last[run.key]["error"])
        if now == WAITING or (now == FAILED and self._retry):
            self.submit(run)

    def note(self, run: Run, now: str) -> None:
        """Keep how far a run is."""
        self._runs.setdefault(run.key, run)
        self.state.status[run.key] = now

    def submit(self, run: Run, least: Mapping[int, float] | None = None) -> None:
        """Queue a run.

        Args:
            least: any-time accuracy, by round, without which it is given up.

        Raises:
            ConfigError: a node of the cluster cannot take part, or none is large enough for a run.
            FederationError: no cluster answers at the address.
        """
        if self._pool is None:
            self._pool = self._started()
        self.note(run, WAITING)
        arguments = (str(run.folder(self.out)), as_text(_here(run)), self._command, dict(least or {}))
        self._pool.submit(run.key, f"{__name__}:one", *arguments)

    def _started(self) -> Pool:
        """Start Ray, or join a cluster and see that all nodes of it can take part."""
        cluster.start_ray(self._address, "--address")
        self._check()
        if self._address:
            cluster.gather(self._nodes, self._check)
            there = survey(self.out, "--out", self._check)
            self._journal.write({"event": "nodes", "nodes": [asdict(each) for each in there]})
        limits = self._limits
        return Pool(cpus=limits.cpus, gpus=limits.gpus, at_once=limits.at_once)

    def work_off(self, then: Callable[[str], None] = lambda key: None) -> None:
        """Wait until all runs have ended.

        Args:
            then: is told the key of each that has; it may submit more.

        Raises:
            FederationError: no node of the cluster is left that is large enough.
            Stopped: somebody asked for it; everything can be resumed.
        """
        while (pool := self._pool) and pool.busy:
            self.state.most = max(1, pool.most)
            for key in set(pool.running) - self.state.started.keys():
                self.state.started[key] = time.monotonic()
                self.state.status[key] = RUNNING
                self._journal.write({"event": "run_start", "key": key, "title": self.state.runs[key].title})
            self.tell()
            try:
                self._check()
            except Stopped:
                for each in pool.stop():
                    self._ended(each)
                raise
            for each in pool.wait(LOOK):
                self._ended(each)
                then(each.key)

    def tell(self) -> None:
        """Tell the listeners how it goes."""
        for listener in self.listeners:
            listener(self.state)

    def _ended(self, call: Ended) -> None:
        """Write down how a run has ended."""
        state, key, now = self.state, call.key, time.monotonic()
        run, seconds = self._runs[key], now - state.started.pop(key, now)
        status, error = _end(run, call.result)
        state.status[key] = status
        state.errors.pop(key, None)
        told = (error.strip().splitlines() or ["no reason given"])[-1] if status in (FAILED, HOPELESS) else None
        if told:
            self._journal.error(f"{key}, {run.title}: {error}")
        if status == FAILED:
            state.errors[key] = str(told)
        elif status != HELD:
            state.seconds.append(seconds)
        self._journal.write({
            "event": "run_end", "key": key, "title": run.title, "status": status, "seconds": round(seconds, 3),
            "error": told, "node": call.node,
        })  # fmt: skip


def _end(run: Run, result: Any) -> tuple[str, str]:
    """Return how a run has ended, and why, from what has come of its task."""
    if result == CANCELLED:  # it has left its last checkpoint
        return HELD, ""
    if not isinstance(result, tuple):
        return FAILED, f"{type(result).__name__}: {result}"
    code, error = result
    if code == LOSSY and not error:  # all its rounds were run: what it has come to stands in its figures
        return DONE, ""
    return HOPELESS if code in (NOTHING, LOSSY) and run.trial else ENDS.get(code, FAILED), error


def _here(run: Run) -> Scenario:
    """Return a run's scenario as it runs beside others: in one process, whatever the scenario file says.

    Workers of its own would wait for the cores that the runs of the sweep have, and these for them.
    """
    return replace(run.scenario, engine=replace(run.scenario.engine, kind="inline"))


def one(folder: str, text: str, command: str, least: Mapping[int, float]) -> tuple[int, str]:
    """Run a scenario in its folder, or go on with what is there; return exit code and error. A Ray task.

    Args:
        least: any-time accuracy, by round, without which it is given up: the code is CUT.
    """
    from fedcl import api

    path, end = Path(folder), time.monotonic() + PATIENCE
    while path.is_dir() and holder(path) is not None and time.monotonic() < end:
        time.sleep(LOOK)
    watch = Watch(path, least)
    if not finished(path) and watch.behind:
        return CUT, ""
    try:
        again = (path / "config.yaml").is_file()
        how: dict[str, Any] = {"command": command, "listeners": [watch], "check": False, "progress": False}
        outcome = api.resume(path, **how) if again else api.run(scenario_of(text), out=path, **how)
    except ConfigError as error:
        return 2, str(error)
    return CUT if outcome.code == STOPPED and watch.behind else int(outcome.code or 0), outcome.error
