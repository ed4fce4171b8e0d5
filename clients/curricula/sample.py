"""Sample curriculum in federated learning (Vahidian et al., ICCV 2023, arXiv:2212.12712).

The pool is the g(t) easiest samples, g a pacing function, t the steps so far; it is chosen anew after each pass over
it. Difficulty is the cross-entropy under G | L | LG | E (clients.curricula.scores), measured once at the start of a
visit. `curr` takes the easiest first, `anti` the hardest; `rand` has the same pacing and no order: the control without
which a gain of pacing reads like a gain of order.

Departs from the paper: a visit has vanilla's steps, epochs * ceil(N / B), while T in the pacing is the paper's
(floor(N / B) + 1) * epochs; the last pass is cut short. `over: task` lets the pool grow over all visits of a position
of the client's own stream instead of starting small at every visit: t counts the steps of the visits before this one by
the client's own clock, those that it was not asked for among them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clients.curricula import Bools, Curriculum, Ints, Pools, Visit, ranks
from fedcl import keys
from fedcl.pacing import Pacing, pool_sizes
from fedcl.settings import setting


def progress(visit: Visit, done: Ints, *, a: float, over: str) -> NDArray[np.float64]:
    """Return x = t / (a T) of each client after `done` (k,) steps of the visit."""
    if over == "visit":
        return done / (a * visit.steps)
    return (visit.number * visit.steps + done) / (a * visit.steps * visit.visits)


@dataclass(frozen=True, kw_only=True)
class Sample(Curriculum):
    """What the three orders have in common."""

    pacing: Pacing = setting("linear", "how the pool grows from b N to N")
    score: Literal["G", "L", "LG", "E"] = setting(
        "G", "difficulty under the global model, the client's last, both, or an expert (rand reads none)"
    )
    a: float = setting(0.8, "fraction of the steps until all data is in the pool", above=0, high=1)
    b: float = setting(0.2, "fraction of the data in the pool at first", low=0, high=1)
    min_pool: int = setting(32, "smallest pool, if there are so many samples", low=1)
    over: Literal["visit", "task"] = setting("visit", "what the pool grows over: each visit, or all of a task")

    @property
    def needs(self) -> str:
        """The models that the score names."""
        return self.score

    def difficulty(self, visit: Visit) -> NDArray[np.float64]:
        """Return (k, w): what comes into the pool first is lowest."""
        raise NotImplementedError

    def pools(self, visit: Visit) -> Pools:
        """Return the g(t) items of lowest difficulty."""
        rank, lengths = ranks(self.difficulty(visit), visit.inside), visit.lengths

        def pool(number: int, done: Ints) -> Bools:
            x = progress(visit, done, a=self.a, over=self.over)
            return rank < pool_sizes(self.pacing, x, lengths, b=self.b, min_pool=self.min_pool)[:, None]

        return pool

    def notes(self, epochs: int) -> list[str]:
        """Tell who asks for pacing inside a visit of one pass."""
        if self.over == "task" or epochs > 1 or self.b == 1:
            return []
        return [
            "client.curriculum paces inside a visit, but with client.epochs = 1 a visit is over when its pool has "
            "hardly grown: set client.epochs higher, or client.curriculum.over = task"
        ]


def measured(visit: Visit) -> NDArray[np.float64]:
    """Return the losses (k, w) that a curriculum asked for.

    Raises:
        ValueError: nobody has measured them.
    """
    if visit.losses is None:
        raise ValueError("the curriculum needs the losses of a visit's items, and they were not measured")
    return visit.losses


@dataclass(frozen=True, kw_only=True)
class Curr(Sample):
    """Sample curriculum, the easiest first."""

    def difficulty(self, visit: Visit) -> NDArray[np.float64]:
        """Return the loss."""
        return measured(visit)


@dataclass(frozen=True, kw_only=True)
class Anti(Sample):
    """Sample curriculum, the hardest first."""

    def difficulty(self, visit: Visit) -> NDArray[np.float64]:
        """Return the loss, negated."""
        return -measured(visit)


@dataclass(frozen=True, kw_only=True)
class Rand(Sample):
    """Sample curriculum's control: the same pacing in a random order, drawn anew at every visit."""

    @property
    def needs(self) -> str:
        """No model."""
        return ""

    def difficulty(self, visit: Visit) -> NDArray[np.float64]:
        """Return draws."""
        return keys.bits(visit.keys, visit.inside.shape[1]).astype(np.float64)
