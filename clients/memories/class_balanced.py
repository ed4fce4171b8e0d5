"""Class-balancing reservoir sampling (Chrysakis, Moens, ICML 2020, PMLR:v119/chrysakis20a), algorithm 1.

While there is room every item is kept. Then an item of a class that never was the largest displaces a random item of
the largest class; an item of a class that is or was the largest ("full") displaces one of its own class with
probability m_c / n_c (held / seen of the class). Several classes can be the largest: all of them are full, and the
displaced item is drawn from all of theirs. Which class is the largest counts from when the memory is filled.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.memories import Ints, Memory, RecordField, Records
from fedcl.keys import Bits, at, below


def _nth(matches: NDArray[np.bool_], n: Ints) -> Ints:
    """Return the column of the n-th (from 0) True of each row (k, m)."""
    column: Ints = np.argmax(np.cumsum(matches, axis=1) == (n + 1)[:, None], axis=1)
    return column


@dataclass(frozen=True, kw_only=True)
class ClassBalanced(Memory):
    """Evict from the largest class, keep a uniform sample inside each class."""

    def fields(self, classes: int) -> list[RecordField]:
        """Return how many of each class were seen, and which classes ever were the largest."""
        return [("class_seen", "<i8", (classes,)), ("class_full", "?", (classes,))]

    def slots(self, records: Records, labels: Ints, valid: NDArray[np.bool_], keys: Bits) -> Ints:
        """Walk the offered items in stream order, all clients at once."""
        slots = np.full(labels.shape, -1, np.int64)
        held = records["labels"].copy()
        for column in np.flatnonzero(valid.any(axis=0)):
            rows = np.flatnonzero(valid[:, column])
            slots[rows, column] = self._place(records, held, rows, labels[rows, column], keys[rows])
        return slots

    def _place(self, records: Records, held: Ints, rows: Ints, label: Ints, keys: Bits) -> Ints:
        """Place one item for each of `rows`; `held` (k, size) follows the labels in the slots."""
        classes = records["class_seen"].shape[1]
        count, number = records["count"][rows], records["seen"][rows]
        filled = np.arange(self.size) < count[:, None]
        sizes = ((held[rows][:, :, None] == np.arange(classes)) & filled[:, :, None]).sum(axis=1)
        room = count < self.size
        largest = sizes == sizes.max(axis=1, keepdims=True)
        full = records["class_full"][rows] | (largest & ~room[:, None])
        records["class_full"][rows] = full
        records["class_seen"][rows, label] += 1
        records["seen"][rows] += 1
        records["count"][rows] = np.minimum(count + 1, self.size)

        of_largest = np.take_along_axis(largest, held[rows], axis=1)
        own = full[np.arange(len(rows)), label]
        matches = np.where(own[:, None], held[rows] == label[:, None], of_largest) & filled
        victims = matches.sum(axis=1)
        taken = ~own | (below(at(keys, 2 * number), records["class_seen"][rows, label]) < victims)
        place = _nth(matches, below(at(keys, 2 * number + 1), victims))
        slot = np.where(room, count, np.where(taken & (victims > 0), place, -1))
        kept = slot >= 0
        held[rows[kept], slot[kept]] = label[kept]
        return slot
