"""A cohort's visit as index arrays: which sample and which replayed entry at which step.

Everything random or ragged is settled here, for all clients of the cohort at once, before a gradient is taken; training
then only gathers. Every draw is keyed by (client, round, position), never by the width that a cohort is padded to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.curricula import Pools
from clients.losses import Draw
from clients.memories import rehearsal
from fedcl import keys
from fedcl.keys import Bits, Purpose
from fedcl.orders import Ints, TrainOrder
from fedcl.streams import Stream
from fedcl.streams.stream import ALL_TASKS


@dataclass(frozen=True, kw_only=True)
class Local:
    """The data of k clients' visits, padded to the longest (w)."""

    items: Ints  # (k, w) indices into the training data
    tasks: Ints  # (k, w) how each is shown (permutation, mask)
    lengths: Ints  # (k,) real lengths
    offsets: Ints  # (k,) where the visit begins in the client's cell of the task (online streams)
    bases: Ints  # (k,) where that cell begins among all items of the client's own stream, task by task

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(k, w) False on padding."""
        inside: NDArray[np.bool_] = np.arange(self.items.shape[1]) < self.lengths[:, None]
        return inside


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Which item comes by when: pass after pass, in the order of the steps; all (k, l)."""

    index: Ints  # position in Local
    step: Ints
    column: Ints
    real: NDArray[np.bool_]  # False on padding
    first: NDArray[np.bool_]  # the item comes by for the first time in this visit

    @property
    def rows(self) -> Ints:
        """Row of each entry."""
        return np.broadcast_to(np.arange(len(self.index))[:, None], self.index.shape)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The stream's batches, step by step, padded to the longest client (s) and the fullest batch (b)."""

    count: Ints  # (k,) optimiser steps of each client
    items: Ints  # (k, s, b)
    tasks: Ints  # (k, s, b)
    index: Ints  # (k, s, b) position in Local
    weight: NDArray[np.float64]  # (k, s, b) 1 / real batch size, 0 on padding


def local_data(stream: Stream, order: TrainOrder) -> Local:
    """Look up the data of each client's visit."""
    starts, stops = stream.spans(order.clients, order.tasks, order.clocks)
    items, tasks = stream.visited(order.clients, order.tasks, starts, stops)
    return Local(items=items, tasks=tasks, lengths=stops - starts, offsets=starts, bases=_bases(stream, order))


def _bases(stream: Stream, order: TrainOrder) -> Ints:
    """Return where each client's cell begins among the items of its own stream (`Stream.items` of all tasks)."""
    rows, everything = np.arange(len(order.clients)), order.tasks == ALL_TASKS
    if everything.all() or stream.train.count.shape[1] == 1:
        return np.zeros_like(order.tasks)
    counts = np.where(stream.own[order.clients], stream.train.count[order.clients], 0)
    return np.where(everything, 0, (np.cumsum(counts, axis=1) - counts)[rows, order.tasks])


def walk(local: Local, shuffle: Callable[[int], Bits], pools: Pools, *, epochs: int, batch: int) -> Walk:
    """Shuffle pool after pool and cut each into batches, until every client has the steps of `epochs` whole passes.

    Args:
        shuffle: pass number (from 0) -> (k,) keys.
        pools: pass number, steps done (k,) -> (k, w) what the pass shows.
        epochs: passes over all of the data that the steps are counted by.
        batch: samples a step; the last of a pass may be smaller.

    Raises:
        ValueError: a pool is empty.
    """
    wanted, inside = epochs * -(-local.lengths // batch), local.inside
    done, seen = np.zeros_like(wanted), np.zeros_like(inside)
    passes = list[tuple[NDArray[Any], ...]]()
    while not passes or (done < wanted).any():
        number = len(passes)
        pool = pools(number, done) & inside
        sizes = pool.sum(axis=1)
        if ((sizes == 0) & (done < wanted)).any():
            raise ValueError(f"the curriculum shows nothing in pass {number}")
        index = _shuffled(shuffle(number), pool)[:, : sizes.max(initial=0)]
        position = np.arange(index.shape[1])
        step = done[:, None] + position // batch
        real = (position < sizes[:, None]) & (step < wanted[:, None])
        first = real  # of the first pass, which shows nothing twice
        if passes:
            shown, *_, new = passes[-1]
            rows, places = np.nonzero(new)
            seen[rows, shown[rows, places]] = True
            first = real & ~np.take_along_axis(seen, index, axis=1)
        passes.append(np.broadcast_arrays(index, step, position % batch, real, first))
        done = done + -(-sizes // batch)
    columns = zip(*passes, strict=True)
    index, step, column, real, first = (each[0] if len(each) == 1 else np.concatenate(each, axis=1) for each in columns)
    return Walk(index=index, step=step, column=column, real=real, first=first)


def _shuffled(shuffle: Bits, pool: NDArray[np.bool_]) -> Ints:
    """Return a permutation (k, w) of the positions, those of the pool first; a position's draw is its own."""
    draws = keys.bits(shuffle, pool.shape[1])
    draws[~pool] = np.iinfo(np.uint64).max
    return np.argsort(draws, axis=1, kind="stable")


def batches(local: Local, walked: Walk, *, width: int) -> Steps:
    """Lay the walk out as (client, step, column), so many columns a step."""
    count = (walked.step.max(axis=1, initial=-1, where=walked.real) + 1).astype(np.int64)
    shape = (len(count), max(1, int(count.max(initial=0))), width)
    real, rows = walked.real, np.arange(len(count))[:, None]
    where = ((rows * shape[1] + walked.step) * width + walked.column)[real]  # in the flat arrays: one index, not three
    picked, chosen = walked.index[real], (rows * local.items.shape[1] + walked.index)[real]
    items, tasks, index = (np.zeros(shape, np.int64) for _ in range(3))
    items[:] = local.items[:, :1, None] if local.items.size else 0  # what a padded row shows is the client's own
    columns = (local.items.reshape(-1)[chosen], local.tasks.reshape(-1)[chosen], picked)
    for laid, column in zip((items, tasks, index), columns, strict=True):
        laid.reshape(-1)[where] = column
    weight = np.zeros(shape)
    weight.reshape(-1)[where] = 1.0
    weight /= np.maximum(weight.sum(2, keepdims=True), 1)
    return Steps(count=count, items=items, tasks=tasks, index=index, weight=weight)


def replays(
    seed: int,
    order: TrainOrder,
    draws: Sequence[Draw],
    shape: tuple[int, int],
    filled: Ints,
    chances: NDArray[np.float64] | None = None,
) -> dict[str, Ints]:
    """Draw memory slots with replacement: draw name -> (k, steps, replay batch), all 0 where nothing can be drawn.

    Args:
        shape: steps and replay batch.
        filled: (k,) slots in use.
        chances: (k, m) chance of each slot; None: those in use alike.
    """
    drawn = {}
    for number, draw in enumerate(draws):
        key = keys.key(seed, Purpose.REPLAY, order.clients, order.round, number)
        bits = keys.bits(key, shape[0] * shape[1])
        slots = keys.below(bits, filled[:, None]) if chances is None else rehearsal.draw(chances, bits)
        drawn[draw.name] = slots.reshape(len(filled), *shape)
    return drawn
