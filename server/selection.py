"""Who is asked in a round, from the clients that are there and have something to train on.

A selection without a memory overrides `select`. One with a memory says what it starts with (`begin`), whose losses it
wants to know before it chooses (`wants`, `scored`), and overrides `choose`; its memory is part of every checkpoint.

Client curriculum (Vahidian et al., ICCV 2023, arXiv:2212.12712): clients are ranked by their mean sample loss under the
global model, the g(round) first of them are the pool, g a pacing function with x = round / (a * rounds of the run). The
pool is walked in groups of as many clients as a round asks; when it is used up, all are scored anew and a new walk
begins. `curr` walks from the easiest client, `anti` from the hardest; `rand` has the same pools in an order drawn for
each walk and scores nobody: the control without which a gain of pacing reads like a gain of order.

The paper has every client there in every round and says nothing of the rest, so: the pool is cut from the clients that
are there when its walk begins; who is away when its turn comes is asked when it is back, in the same walk; a walk is
over when nobody is left who is there; its last group may be a small one. A client that was asked counts as met,
whether its answer came or not. Who could not be scored keeps its last score. Who never was scored, in the limits of
`score_clients` or by a failure, comes last in every order; such clients are ranked among each other by draws.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl import keys
from fedcl.answers import Tensors
from fedcl.keys import Purpose
from fedcl.pacing import Pacing, pool_sizes
from fedcl.settings import Settings, setting

Ints = NDArray[np.int64]
NOBODY: Ints = np.zeros(0, np.int64)
RANKS, SCORED = 1, 2  # draws of a round beside the one that `Uniform` chooses by
MET = -1  # place of a client that is not, or no longer, waiting in the pool


@dataclass(frozen=True, kw_only=True)
class Selection(Settings):
    """What every selection has."""

    def begin(self, clients: int) -> Tensors:
        """Return what the selection remembers before the first round of a federation of so many clients."""
        return {}

    def wants(self, memory: Tensors, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        """Return which of the available clients to score before `choose`; usually nobody."""
        return NOBODY

    def scored(self, memory: Tensors, clients: Ints, losses: NDArray[np.float64]) -> Tensors:
        """Take in the mean losses (k,) of the clients (k,) that answered, of those that it wanted."""
        return memory

    def choose(
        self, memory: Tensors, available: Ints, n: int, *, seed: int, round: int, rounds: int
    ) -> tuple[Ints, Tensors]:
        """Return whom to ask in this round, ascending, and what to remember.

        Args:
            memory: as `begin`, `scored` or the round before left it; never changed in place.
            available: clients that are there and have something to train on, ascending.
            n: how many a round asks.
            round: from 1.
            rounds: of the whole run.
        """
        return self.select(available, n, seed=seed, round=round), memory

    def select(self, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        """Return whom to ask where that depends on nothing but the round."""
        raise NotImplementedError(f"{type(self).__name__} chooses with a memory: call choose")


@dataclass(frozen=True, kw_only=True)
class Uniform(Selection):
    """Every available client is equally likely, without replacement."""

    def select(self, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        """Return n of the available clients (all, where there are no more), ascending.

        Each client draws its own number, so who is chosen does not depend on how the others are listed.
        """
        if n >= len(available):
            return np.sort(available)
        draws = keys.key(seed, Purpose.SELECT, round, available)
        last = np.partition(draws, n - 1)[n - 1]  # sorting all for the lowest few would take as long as training them
        lower = np.flatnonzero(draws < last)
        return np.sort(available[np.append(lower, np.flatnonzero(draws == last)[: n - len(lower)])])


@dataclass(frozen=True, kw_only=True)
class Curriculum(Selection):
    """Client curriculum (Vahidian et al., ICCV 2023, arXiv:2212.12712): easy clients first, from a growing pool."""

    order: Literal["curr", "anti", "rand"] = setting("curr", "easiest clients first, hardest first, or by draws")
    pacing: Pacing = setting("linear", "how the pool grows from b N to N clients")
    a: float = setting(0.8, "fraction of the rounds until all clients are in the pool", above=0, high=1)
    b: float = setting(0.2, "fraction of the clients from which the pool grows", low=0, high=1)
    min_pool: int = setting(1, "smallest pool; never less than what a round asks, if there are so many", low=1)
    score_clients: int | None = setting(
        None, "most clients scored when a walk begins, drawn anew each time; default: all that are there", low=1
    )

    def begin(self, clients: int) -> Tensors:
        """Return `place` (clients,) int64: turn in the walk, MET: none; `loss` (clients,) float64, NaN: never scored.

        `rand` has no losses.
        """
        place = {"place": torch.full((clients,), MET)}
        return place if self.order == "rand" else place | {"loss": torch.full((clients,), np.nan, dtype=torch.float64)}

    def wants(self, memory: Tensors, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        """Return all available clients, or `score_clients` of them by draws, where a walk is about to begin."""
        if self.order == "rand" or (_places(memory)[available] != MET).any():
            return NOBODY
        draws = keys.key(seed, Purpose.SELECT, round, available, SCORED)
        return np.sort(available[np.argsort(draws, kind="stable")[: self.score_clients]])

    def scored(self, memory: Tensors, clients: Ints, losses: NDArray[np.float64]) -> Tensors:
        """Keep the losses; one that is no number counts as the largest there is."""
        loss, largest = memory["loss"].clone(), np.finfo(np.float64).max
        loss[torch.from_numpy(clients.copy())] = torch.from_numpy(np.nan_to_num(losses, nan=largest, posinf=largest))
        return {**memory, "loss": loss}

    def choose(
        self, memory: Tensors, available: Ints, n: int, *, seed: int, round: int, rounds: int
    ) -> tuple[Ints, Tensors]:
        """Return the next n of the walk that are there, ascending; begin a new walk where nobody is left."""
        if not len(available):
            return NOBODY, memory
        place = _places(memory).copy()
        if (place[available] == MET).all():
            place[:] = MET
            pool = self._ranked(memory, available, seed, round)[: self.pool(len(available), n, round, rounds)]
            place[pool] = np.arange(len(pool))
        waiting = available[place[available] != MET]
        chosen = waiting[np.argsort(place[waiting])[:n]]
        place[chosen] = MET
        return np.sort(chosen), {**memory, "place": torch.from_numpy(place)}

    def pool(self, clients: int, n: int, round: int, rounds: int) -> int:
        """Return how many of so many clients are in the pool of a walk that begins in a round that asks n."""
        x = np.array(round / (self.a * rounds))
        return int(pool_sizes(self.pacing, x, np.array(clients), b=self.b, min_pool=max(self.min_pool, n)))

    def _ranked(self, memory: Tensors, clients: Ints, seed: int, round: int) -> Ints:
        """Return the clients in the order of a walk: by score, those without one behind, ties by draws."""
        draws = keys.key(seed, Purpose.SELECT, round, clients, RANKS)
        if self.order == "rand":
            return clients[np.lexsort((clients, draws))]
        loss = memory["loss"].numpy()[clients]
        unknown = np.isnan(loss)
        score = np.where(unknown, 0.0, loss if self.order == "curr" else -loss)
        return clients[np.lexsort((clients, draws, score, unknown))]


def _places(memory: Tensors) -> Ints:
    places: Ints = memory["place"].numpy()
    return places
