"""When a run of a search is given up: its any-time accuracy is behind a quarter of those that have gone to their end.

Optuna's pruners compare a trial's best value so far. In continual learning that is the accuracy on the first task, the
only one there is at the beginning, whatever is forgotten later; so this rule compares what runs have come to by the
same round with the same seed. It is plain data when a run begins, so what comes of the run does not depend on which
other runs happen to go on beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedcl.interrupt import Stopped
from fedcl.journal import read_events
from fedcl.log import collect
from fedcl.results import any_time

LEAST = 4  # finished trials without which none is pruned
QUANTILE = 0.25  # of their any-time accuracies, which a run must reach
Curve = Mapping[int, float]  # round -> any-time accuracy up to it


def curve(folder: Path) -> dict[int, float]:
    """Return the any-time accuracy of a run after each of its evaluations so far."""
    return any_time(collect(read_events(folder)))


def floors(curves: Sequence[Curve]) -> dict[int, float]:
    """Return what a run must have reached, by round; nothing for the last round, where nothing is left to save.

    Args:
        curves: of the finished trials' runs with the same seed.
    """
    if len(curves) < LEAST:
        return {}
    rounds = sorted(set.intersection(*(set(each) for each in curves)))[:-1]
    return {round: float(np.quantile([each[round] for each in curves], QUANTILE)) for round in rounds}


def behind(reached: Curve, least: Mapping[int, float]) -> int | None:
    """Return the first round at which a run is below what it must have reached, None if it is nowhere."""
    return next((round for round, value in sorted(reached.items()) if value < least.get(round, -np.inf)), None)


class Watch:
    """A listener of a run, which ends it once it is behind."""

    def __init__(self, folder: Path, least: Mapping[int, float]) -> None:
        self._folder, self._least = folder, least

    @property
    def behind(self) -> bool:
        """Whether the run is behind, by its journal."""
        return bool(self._least) and behind(curve(self._folder), self._least) is not None

    def __call__(self, event: dict[str, Any]) -> None:
        """Look at the run whenever it has been evaluated.

        Raises:
            Stopped: it is behind; what it has done can be resumed.
        """
        if event["event"] == "evaluation" and self.behind:
            raise Stopped
