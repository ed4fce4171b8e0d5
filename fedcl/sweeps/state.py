"""How a sweep goes: which of its runs are done, running, waiting, and when it will end."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

DONE, FAILED, HELD, RUNNING, WAITING = "done", "failed", "stopped", "running", "waiting"
PRUNED, HOPELESS = "pruned", "hopeless"  # of a search: behind the others; training itself came to nothing


class Named(Protocol):
    """A run of a sweep, as far as somebody who watches has to know it."""

    @property
    def title(self) -> str:
        """The run in a line."""

    def folder(self, out: Path) -> Path:
        """Return its run directory."""


@dataclass(kw_only=True)
class State:
    """How a sweep goes."""

    runs: Mapping[str, Named]
    status: dict[str, str]
    errors: dict[str, str]
    began: float
    most: int = 1  # runs at the same time
    to_come: int = 0  # runs, at most, that a search has not chosen yet
    started: dict[str, float] = field(default_factory=dict)  # when runs that are in work have begun
    seconds: list[float] = field(default_factory=list)  # that runs of this sitting have taken

    @property
    def counts(self) -> Counter[str]:
        """How many runs have each status."""
        return Counter(self.status.values()) + Counter({WAITING: self.to_come})

    @property
    def left(self) -> float | None:
        """Seconds until the end, if the rest takes as long as what this sitting has finished; None: unknown."""
        waiting = self.counts[WAITING] + self.counts[RUNNING]
        if not waiting:
            return 0.0
        return sum(self.seconds) / len(self.seconds) * waiting / self.most if self.seconds else None
