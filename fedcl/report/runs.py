"""What a run directory holds, turned into what its page shows: words, and numbers as text."""

import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedcl.errors import ConfigError, FederationError
from fedcl.journal import ERRORS, EVENTS, read_events, read_results
from fedcl.kept import Damaged
from fedcl.log import Log, collect
from fedcl.report import text
from fedcl.report.svg import Points
from fedcl.results import FIGURES, client_figures, summarise
from fedcl.yamltext import read_yaml

# What each figure is called, what it says, and whether it is a difference of accuracies.
MEANING: dict[str, tuple[str, str, bool]] = {
    "acc": ("ACC", "mean accuracy on all tasks after the last one", False),
    "aia": ("AIA", "mean over task ends, on the tasks so far", False),
    "forgetting": ("Forgetting", "best since learnt minus last, old tasks", True),
    "bwt": ("BWT", "last minus when just learnt, old tasks", True),
    "fwt": ("FWT", "accuracy before anyone trains on a task minus the fresh model's", True),
    "plasticity": ("Plasticity", "accuracy of each task when just learnt", False),
    "first_minus_last": ("First − last", "when just learnt minus last, old tasks", True),
    "intransigence": ("Intransigence", "joint training minus when just learnt", True),
    "pm": ("PM", "performance maintenance: mean change since learnt", True),
    "min_acc": ("min-ACC", "lowest accuracy since learnt, old tasks", False),
    "wc_acc": ("WC-ACC", "worst case: current task and old tasks' minima", False),
    "a_auc": ("A-AUC", "any-time: mean over evaluations, tasks begun so far", False),
    "wf10": ("WF-10", "largest drop within 10 evaluations", True),
    "wp10": ("WP-10", "largest rise within 10 evaluations", True),
}
STATUS = {"finished": "✓", "running": "●", "stopped": "■", "failed": "✕", "diverged": "≈"}
LOG_TAIL = 20_000


@dataclass(frozen=True)
class Row:
    """One line of a table of figures: `absent` is the reason where there is no value."""

    name: str
    value: str
    meaning: str = ""
    absent: str = ""


@dataclass(frozen=True)
class Failure:
    """Client errors of one kind."""

    error: str
    times: int
    clients: str
    first: Any
    traceback: str


@dataclass(frozen=True)
class Run:
    """A run as its directory tells it."""

    directory: Path
    results: dict[str, Any]
    log: Log
    config: str
    error_log: str
    labels: dict[str, str] = field(default_factory=dict)  # of a run of a sweep: axis -> value

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.results.get("name") or self.directory.name)

    @property
    def status(self) -> str:
        """One of the known states of a run, as a safe CSS class."""
        status = str(self.results.get("status"))
        return status if status in STATUS else "running"

    @property
    def sign(self) -> str:
        """The status as a sign, for those who do not see its colour."""
        return STATUS[self.status]

    @property
    def facts(self) -> str:
        """The size of the federation in one line."""
        start = self.log.start
        words = (f"{text.count(start.get(each))} {each}" for each in ("clients", "tasks", "rounds"))
        return " · ".join((*words, f"seed {self.results.get('seed')}"))

    @property
    def repeat(self) -> str:
        """The command that repeats the run from its resolved configuration."""
        return f"fedcl run {shlex.quote(str(self.directory / 'config.yaml'))}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved configuration; {} where there is none that can be read."""
        try:
            plain = read_yaml(self.config)
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return plain if isinstance(plain, dict) else {}

    def metric(self, name: str) -> float | None:
        """Return a global figure as a number, None where it is absent."""
        return text.number(_block(self.results, "metrics").get(name))

    def figure(self, name: str) -> str:
        """Return a global figure as text."""
        value = self.metric(name)
        return text.points(value) if MEANING[name][2] else text.percent(value)

    def spread(self, figure: str, part: str) -> float | None:
        """Return a part (mean, std, worst, worst10) of the spread of the clients' own figure."""
        return text.number(_block(_block(self.results, "clients"), figure).get(part))

    def client(self, figure: str, part: str) -> str:
        """Return the same as text."""
        value = self.spread(figure, part)
        return text.points(value) if figure == "forgetting" or part == "std" else text.percent(value)

    def cost(self, name: str) -> Any:
        """Return one entry of the cost block, None if it is not there."""
        return _block(self.results, "cost").get(name)

    def absent(self, name: str) -> str:
        """Return why a figure is absent, "" if it is not."""
        return str(_block(self.results, "absent").get(name) or "")

    @cached_property
    def figures(self) -> list[Row]:
        """The global figures that are known."""
        return [Row(MEANING[n][0], self.figure(n), MEANING[n][1]) for n in FIGURES if not self.absent(n)]

    @cached_property
    def absences(self) -> dict[str, list[str]]:
        """The names of the absent global figures by the reason that they share."""
        reasons: dict[str, list[str]] = {}
        for name in FIGURES:
            if self.absent(name):
                reasons.setdefault(self.absent(name), []).append(MEANING[name][0])
        return reasons

    @cached_property
    def fairness(self) -> list[tuple[str, list[str], str]]:
        """The spread of the clients' own figures: name, mean, std, worst 10 %, worst; or the reason."""
        parts = ("mean", "std", "worst10", "worst")
        rows = (("accuracy", "acc"), ("forgetting", "forgetting"))
        return [(title, [self.client(n, each) for each in parts], self.absent(f"clients.{n}")) for title, n in rows]

    @cached_property
    def costs(self) -> list[Row]:
        """What the run took."""
        up, down, updates = (self.cost(name) for name in ("bytes_up", "bytes_down", "client_updates"))
        each = updates if text.number(updates) else None
        return [
            Row("rounds", text.count(self.cost("rounds"))),
            Row("client updates", text.count(updates), f"{text.count(self.cost('steps'))} steps"),
            Row("time in rounds", text.duration(self.cost("seconds")), _rate(self.cost("updates_per_second"))),
            Row("evaluation", text.duration(self.cost("evaluation_seconds")), "counted apart"),
            Row("checkpoints", text.duration(self.cost("checkpoint_seconds")), "counted apart"),
            Row("bytes up", text.size(up), f"{text.size(up / each)} an update" if each and up else ""),
            Row("bytes down", text.size(down), f"{text.size(down / each)} an update" if each and down else ""),
            Row("failed updates", text.count(self.cost("failed"))),
        ]

    @cached_property
    def identity(self) -> list[Row]:
        """What says that two runs are the same."""
        names = ("config_hash", "weights_sha256", "state_sha256", "clients_sha256")
        return [Row(n, str(self.results.get(n) or text.DASH), "", self.absent(n)) for n in names]

    @cached_property
    def versions(self) -> dict[str, str]:
        """What the run was made with."""
        return {str(name): str(version) for name, version in _block(self.results, "versions").items()}

    @cached_property
    def environment(self) -> list[Row]:
        """Where the run took place: device, the plan's arithmetic, memory at its peak, versions."""
        memory = self.cost("memory") if isinstance(self.cost("memory"), dict) else {}
        below = memory.get("below") if isinstance(memory.get("below"), list) else []
        rows = [Row(n, str(self.results.get(n) or text.DASH)) for n in ("device", "stack", "cohort")]
        rows.append(Row("memory, server", text.size(memory.get("process")), "at its peak"))
        if below:
            rows.append(Row("memory, worker", text.size(below[0]), f"the largest of {len(below)}, at its peak"))
        return [*rows, *(Row(*each) for each in self.versions.items())]

    @cached_property
    def failures(self) -> list[Failure]:
        """Client errors, those with the same words together, most frequent first."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for event in self.log.errors:
            groups.setdefault(str(event.get("error")), []).append(event)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        return [_failure(error, events) for error, events in ordered]

    @cached_property
    def marks(self) -> list[tuple[float, str]]:
        """The ends of tasks, for charts over rounds."""
        ends = self.log.ends
        return [(float(round), f"T{task}") for round, task in zip(ends.rounds, ends.ended, strict=True)]

    @cached_property
    def mean_line(self) -> Points:
        """Mean accuracy on the tasks begun so far, at each evaluation."""
        points: Points = []
        for round, event in sorted(self.log.evaluations.items()):
            pairs = zip(event.get("accuracy") or (), event.get("started") or (), strict=False)
            known = [value for value, started in pairs if started and value is not None]
            if known:
                points.append((float(round), float(np.mean(known))))
        return points

    @cached_property
    def spent(self) -> dict[str, dict[int, float]]:
        """The megabytes sent, both ways, and the seconds taken by the end of each round."""
        spent: dict[str, dict[int, float]] = {"megabytes": {0: 0.0}, "seconds": {0: 0.0}}
        megabytes = seconds = 0.0
        for round, event in sorted(self.log.rounds.items()):
            megabytes += ((text.number(event.get("bytes_up")) or 0) + (text.number(event.get("bytes_down")) or 0)) / 1e6
            seconds += text.number(event.get("seconds")) or 0
            spent["megabytes"][round], spent["seconds"][round] = megabytes, seconds
        return spent


def _block(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a block of results.json; a missing, absent or damaged one is empty."""
    block = values.get(name)
    return block if isinstance(block, dict) else {}


def _rate(value: Any) -> str:
    return f"{text.count(value)} updates a second" if text.number(value) else ""


def _failure(error: str, events: list[dict[str, Any]]) -> Failure:
    clients = sorted({event.get("client") for event in events}, key=str)
    first = events[0]
    return Failure(error, len(events), text.some(clients), first.get("round"), str(first.get("traceback") or ""))


def _optional(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _recorded(directory: Path) -> dict[str, Any] | None:
    """Return results.json if it is there, whole and of a known schema."""
    try:
        return read_results(directory)
    except Damaged:
        return None


def read_run(directory: Path, labels: dict[str, str] | None = None) -> Run:
    """Read a run directory; a run without results.json (killed, or still running) is summarised from its events.

    Args:
        labels: what a sweep calls the run's settings.

    Raises:
        ConfigError: there is no events.jsonl, or it is damaged.
    """
    path = directory / EVENTS
    if not path.is_file():
        raise ConfigError(
            f"{str(directory)!r} holds no run: it has no events.jsonl; name the folder that fedcl run wrote"
        )
    try:
        log = collect(read_events(directory))
        _ = log.series, log.ends, log.clients, client_figures(log)  # damage shows here, not in the middle of the page
        results = _recorded(directory) or summarise({"name": directory.name}, read_events(directory))
    except (FederationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged ({error!r}): restore it, or leave {directory.name!r} out"
        ) from error
    error_log = _optional(directory / ERRORS)[-LOG_TAIL:]
    return Run(directory, results, log, _optional(directory / "config.yaml"), error_log, labels or {})
