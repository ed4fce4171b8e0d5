"""Curricula: which items of a visit are shown when.

A visit is a sequence of passes. Each pass shuffles a pool of the visit's items and cuts it into batches; when it is
over, the curriculum chooses the next pool. The number of steps is vanilla's, epochs * ceil(N / B), whatever the pools
(the last pass is cut short): a curriculum changes what is shown, never how much is trained, so nothing else in a round
has to know of it. Pools are chosen before a gradient is taken, for all clients of a cohort at once; whatever is random
in them is a hash of client, round and pass. Items that no pool of a visit holds are not offered to the memory in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcl.keys import Bits
from fedcl.settings import Settings

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# pools(number, done) -> (k, w) the items of pass `number` (from 0), `done` (k,) steps after the visit's beginning
Pools = Callable[[int, Ints], Bools]
HARDEST = 1e300  # above every loss that a model has, and finite still when a draw multiplies it or an order negates it


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a curriculum may look at: k clients, their items padded to the longest (w)."""

    inside: Bools  # (k, w) False on padding
    labels: Ints  # (k, w)
    # (k, w) cross-entropy of each item under the models that the curriculum needs; HARDEST where it is no number
    losses: NDArray[np.float64] | None
    steps: Ints  # (k,) T of one visit as published: (floor(N / B) + 1) * epochs
    number: Ints  # (k,) visits of the client's current position before this one, by its own clock
    visits: Ints  # (k,) length of that position
    keys: Bits  # (k,) one key a client and round

    @property
    def lengths(self) -> Ints:
        """Items of each client, N."""
        lengths: Ints = self.inside.sum(axis=1)
        return lengths


@dataclass(frozen=True, kw_only=True)
class Curriculum(Settings):
    """What every curriculum has."""

    @property
    def needs(self) -> str:
        """Under which models the items are scored before a visit (clients.curricula.scores); "": under none."""
        return ""

    def pools(self, visit: Visit) -> Pools:
        """Return the function that chooses the pools of a visit; an empty pool is an error."""
        raise NotImplementedError

    def problem(self, batch: int) -> str | None:
        """Return why these settings do not go with a batch size, one sentence; None: they do."""
        return None

    def notes(self, epochs: int) -> list[str]:
        """Return what a user should know of these settings before a run, one sentence each."""
        return []


@dataclass(frozen=True, kw_only=True)
class Vanilla(Curriculum):
    """No curriculum: every pass shows all of the visit's items."""

    def pools(self, visit: Visit) -> Pools:
        """Return everything, always."""
        return lambda number, done: visit.inside


def ranks(difficulty: NDArray[np.float64], inside: Bools) -> Ints:
    """Return the rank (k, w) of each item among its client's, 0 = lowest; ties by position, padding behind.

    Args:
        difficulty: (k, w) finite numbers.
        inside: (k, w) False on padding.
    """
    order = np.argsort(np.where(inside, difficulty, np.inf), axis=1, kind="stable")
    found = np.empty(order.shape, np.int64)
    np.put_along_axis(found, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return found
