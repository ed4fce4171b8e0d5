"""What a process that takes part is told, and what it tells: two small JSON files."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcl.bench import workloads
from fedcl.bench.work import Work
from fedcl.config import Scenario
from fedcl.memory import peaks
from fedcl.process import ALLOCATOR, ONE_THREAD

# The same for everybody, set before a process begins: what fedcl's own workers have.
ENVIRONMENT = {
    **ONE_THREAD,
    **ALLOCATOR,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONDONTWRITEBYTECODE": "",  # unset: else every process compiles what is not installed anew, in its first round
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a process is to do, and where it finds and leaves things."""

    workload: str
    clients: int
    registered: int
    rounds: int
    workers: int
    folder: str  # of this process alone
    work: str  # file of `Work`
    overrides: list[str] = field(default_factory=list)
    started: float | None = None  # when the process was started, in seconds since 1970

    @cached_property
    def scenario(self) -> Scenario:
        """The federation."""
        return workloads.scenario(self.workload, self.clients, self.registered, self.rounds, self.overrides)

    def loaded(self) -> Work:
        """Return the work."""
        return Work.load(Path(self.work))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2))

    @staticmethod
    def read(path: Path) -> "Spec":
        """Read what `write` has written."""
        return Spec(**json.loads(path.read_text()))


class Watch:
    """The times at which rounds ended, in seconds since the process began."""

    def __init__(self, started: float | None) -> None:
        """Begin; `started` is when the process was started, by the clock on the wall."""
        self._origin = time.monotonic() - (time.time() - started if started else 0.0)
        self.marks: list[float] = []
        self.ready: float | None = None

    def now(self) -> float:
        """Return the seconds since the process began."""
        return time.monotonic() - self._origin

    def begin(self) -> None:
        """Note that everything is there and the first round begins."""
        self.ready = self.now()

    def mark(self) -> None:
        """Note that a round has ended, with all that belongs to it."""
        self.marks.append(self.now())


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What a run has come to."""

    updates: list[int]  # client updates that were aggregated, round by round
    weights: Mapping[str, NDArray[Any]]
    memory: dict[str, Any] = field(default_factory=peaks)  # while everything is still up


def tell(spec: Spec, name: str, watch: Watch, told: Told) -> Path:
    """Write what came out of a run as JSON, and its weights beside it; return the JSON file."""
    weights, out = Path(spec.folder) / "weights.npz", Path(spec.folder) / "told.json"
    np.savez(weights, allow_pickle=False, **told.weights)
    seconds = np.diff([0.0, *watch.marks]).tolist()
    plain = {
        "name": name, "spec": asdict(spec), "seconds": seconds, "first_round_seconds": watch.marks[0],
        "start_seconds": watch.ready, "updates": told.updates, "memory": told.memory, "weights": str(weights),
        "environment": {each: os.environ.get(each) for each in ENVIRONMENT},
    }  # fmt: skip
    out.write_text(json.dumps(plain, indent=2))
    return out
