"""Cyclical curriculum (Kesgin, Amasyali, IEEE TNNLS 2023, arXiv:2202.05531): small, large, small sets.

The fraction of the data in an epoch goes up and down between sp and ep: rising n <- min(n / alpha, ep), falling
n <- max(n alpha, sp). Each epoch draws n N samples without replacement, p proportional to 1 / loss of a vanilla model.

Whose loss: the paper trains a vanilla model on the task first. Here `score: E` is nearest to it, an expert trained
without a curriculum on all clients' data of the task (simulation only); the default `G` takes the global model that
the round began with, which has itself learned under this curriculum; `L` and `LG` as in the sample curriculum.

Departs from the paper: epochs go on until vanilla's steps are used up, and the last is cut short. `over: task` moves
one size on at every visit of a position instead of at every pass of a visit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clients.curricula import Bools, Curriculum, Ints, Pools, Visit, ranks
from clients.curricula.sample import measured
from fedcl import keys
from fedcl.keys import Bits
from fedcl.pacing import ROUNDING
from fedcl.settings import OutOfRange, setting

SMALLEST = 1e-8  # of a loss: what a model is sure of has a large chance, not an infinite one


def fractions(sp: float, ep: float, alpha: float, n: int) -> list[float]:
    """Return the fraction of the data in each of n epochs: sp, sp / alpha, ... ep, ep * alpha, ... sp, ..."""
    found, rising = [sp], True
    while len(found) < n:
        rising = found[-1] < ep if rising else found[-1] <= sp
        found.append(min(found[-1] / alpha, ep) if rising else max(found[-1] * alpha, sp))
    return found[:n]


def drawn(own: Bits, losses: NDArray[np.float64], inside: Bools, sizes: Ints) -> Bools:
    """Return which items (k, w) are drawn: sizes (k,) of each client, without replacement, p proportional to 1 / loss.

    Item i arrives after an exponential time of rate 1 / loss_i; the first to arrive are those drawn one by one.
    """
    uniform = ((keys.bits(own, losses.shape[1]) >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    arrival = -np.log(uniform) * np.maximum(losses, SMALLEST)
    return ranks(arrival, inside) < sizes[:, None]


@dataclass(frozen=True, kw_only=True)
class Cyclical(Curriculum):
    """Cyclical curriculum: small, large, small sets, easy items preferred."""

    sp: float = setting(0.25, "smallest fraction of the data, and the first", above=0, high=1)
    ep: float = setting(1.0, "largest fraction of the data", above=0, high=1)
    alpha: float = setting(0.5, "ratio of one fraction to the next", above=0, below=1)
    score: Literal["G", "L", "LG", "E"] = setting("G", "whose loss a draw goes by; E is nearest to the paper")
    over: Literal["visit", "task"] = setting("visit", "what moves on to the next fraction: each pass, or each visit")

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            OutOfRange: a number outside its range, or sp above ep.
        """
        super().__post_init__()
        if self.sp > self.ep:
            raise OutOfRange("sp", self.sp, f"must be at most ep = {self.ep}")

    @property
    def needs(self) -> str:
        """The models that the score names."""
        return self.score

    def pools(self, visit: Visit) -> Pools:
        """Return n N items, drawn anew in each pass."""
        losses = measured(visit)

        def pool(number: int, done: Ints) -> Bools:
            turn = visit.number if self.over == "task" else np.full_like(visit.number, number)
            share = np.array(fractions(self.sp, self.ep, self.alpha, int(turn.max(initial=0)) + 1))[turn]
            sizes = np.maximum(np.floor(share * visit.lengths + ROUNDING), 1).astype(np.int64)
            return drawn(keys.at(visit.keys, np.array(number)), losses, visit.inside, sizes)

        return pool
