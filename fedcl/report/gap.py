"""The stability gap: how far an old task falls in the rounds after a task switch, and how much of it comes back.

De Lange, van de Ven, Tuytelaars (Continual evaluation for lifelong learning, ICLR 2023, arXiv:2205.13452).
"""

from dataclasses import dataclass

import numpy as np

from fedcl.log import Log

BEFORE, AFTER = 4, 12  # evaluations around the switch that a close look shows


@dataclass(frozen=True)
class Gap:
    """The largest drop of a task after a switch.

    Attributes:
        task: the old task.
        switch: the round after which the federation left a task.
        before: the old task's accuracy then.
        lowest: its lowest accuracy until the next switch.
        at: the round of the lowest.
        after: its accuracy at the next switch, or at the last evaluation.
        rounds: the evaluations around it, ascending.
        ended: the tasks that had ended by the switch, each with the round in which it had first.
    """

    task: int
    switch: int
    before: float
    lowest: float
    at: int
    after: float
    rounds: list[int]
    ended: dict[int, int]

    @property
    def old(self) -> list[int]:
        """The tasks that had ended, ascending."""
        return sorted(self.ended)

    @property
    def drop(self) -> float:
        """How far it fell."""
        return self.before - self.lowest

    @property
    def recovered(self) -> float:
        """How much of it came back before the next switch."""
        return self.after - self.lowest


def largest(log: Log) -> Gap | None:
    """Return the largest drop of an old task between a switch and the next; None where no task fell after one."""
    rounds, series = log.series
    switches = sorted(set(log.ends.rounds))
    found: list[Gap] = []
    for switch, stop in zip(switches, [*switches, max(rounds, default=0)][1:], strict=True):
        ends = reversed(list(zip(log.ends.ended, log.ends.rounds, strict=True)))
        old = {task: end for task, end in ends if end <= switch}
        places = [i for i, round in enumerate(rounds) if switch < round <= stop]
        if not places or switch not in rounds:
            continue
        at = rounds.index(switch)
        shown = rounds[max(0, at - BEFORE) : min(at + AFTER, places[-1]) + 1]
        for task in old:
            values = series[places, task]
            if not np.isnan([series[at, task], *values]).any():
                low = int(values.argmin())
                found.append(
                    Gap(
                        task, switch, float(series[at, task]), float(values[low]), rounds[places[low]],
                        float(values[-1]), shown, old,
                    )
                )  # fmt: skip
    deepest = max(found, key=lambda gap: gap.drop, default=None)
    return deepest if deepest and deepest.drop > 0 else None
