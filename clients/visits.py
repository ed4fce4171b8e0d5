"""A cohort's visit as index arrays: which sample and which replayed entry at which step.

Everything random or ragged is settled here, for all clients of the cohort at once, before a gradient is taken; training
then only gathers. Every draw is keyed by (client, round, position), never by the width that a cohort is padded to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.losses import Draw
from fedcl import keys
from fedcl.keys import Purpose
from fedcl.orders import Ints, TrainOrder
from fedcl.streams import Stream


@dataclass(frozen=True, kw_only=True)
class Local:
    """The data of k clients' visits, padded to the longest (w)."""

    items: Ints  # (k, w) indices into the training data
    tasks: Ints  # (k, w) how each is shown (permutation, mask)
    lengths: Ints  # (k,) real lengths
    offsets: Ints  # (k,) where the visit begins in the client's cell of the task (online streams)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Where each position of each epoch's shuffled pass comes by; all (k, epochs, w)."""

    index: Ints  # position in Local
    step: Ints
    column: Ints
    real: NDArray[np.bool_]  # False on padding

    @property
    def rows(self) -> Ints:
        """Row of each entry."""
        return np.broadcast_to(np.arange(len(self.index))[:, None, None], self.index.shape)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The stream's batches, step by step, padded to the longest client (s) and the full batch (b)."""

    count: Ints  # (k,) optimiser steps of each client
    items: Ints  # (k, s, b)
    tasks: Ints  # (k, s, b)
    weight: NDArray[np.float64]  # (k, s, b) 1 / real batch size, 0 on padding


def local_data(stream: Stream, order: TrainOrder) -> Local:
    """Look up the data of each client's visit."""
    starts, stops = stream.spans(order.clients, order.tasks, order.clocks)
    columns = (order.clients.tolist(), order.tasks.tolist(), starts.tolist(), stops.tolist())
    found = [stream.items(*visit) for visit in zip(*columns, strict=True)]
    lengths = np.array([len(items) for items, _ in found], np.int64)
    shape = (len(found), max(1, int(lengths.max(initial=0))))
    items, tasks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, (own, task) in enumerate(found):
        items[row, : len(own)], tasks[row, : len(own)] = own, task
    return Local(items=items, tasks=tasks, lengths=lengths, offsets=starts)


def walk(local: Local, seed: int, order: TrainOrder, *, epochs: int, batch: int) -> Walk:
    """Shuffle every epoch of every client and cut it into batches."""
    k, width = local.items.shape
    shuffle = keys.key(seed, Purpose.SHUFFLE, order.clients[:, None], order.round, np.arange(epochs))
    index = np.stack([keys.permutations(shuffle[:, e], local.lengths, width) for e in range(epochs)], axis=1)
    position, per_epoch = np.arange(width), -(-local.lengths // batch)
    step = np.arange(epochs)[None, :, None] * per_epoch[:, None, None] + position // batch
    return Walk(
        index=index,
        step=step,
        column=np.broadcast_to(position % batch, step.shape),
        real=np.broadcast_to((position < local.lengths[:, None])[:, None], (k, epochs, width)),
    )


def batches(local: Local, walked: Walk, *, batch: int) -> Steps:
    """Lay the walk out as (client, step, column)."""
    count = (walked.step.max(axis=(1, 2), initial=-1, where=walked.real) + 1).astype(np.int64)
    shape = (len(count), max(1, int(count.max(initial=0))), batch)
    real, rows = walked.real, walked.rows[walked.real]
    where, picked = (rows, walked.step[real], walked.column[real]), (rows, walked.index[real])
    items, tasks, weight = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    items[where], tasks[where], weight[where] = local.items[picked], local.tasks[picked], 1.0
    return Steps(count=count, items=items, tasks=tasks, weight=weight / np.maximum(weight.sum(2, keepdims=True), 1))


def replays(
    seed: int, order: TrainOrder, draws: Sequence[Draw], shape: tuple[int, int], filled: Ints
) -> dict[str, Ints]:
    """Draw memory slots with replacement: draw name -> (k, steps, replay batch), all 0 where nothing is remembered."""
    drawn = {}
    for number, draw in enumerate(draws):
        key = keys.key(seed, Purpose.REPLAY, order.clients, order.round, number)
        bits = keys.bits(key, shape[0] * shape[1])
        drawn[draw.name] = keys.below(bits, filled[:, None]).reshape(len(filled), *shape)
    return drawn
