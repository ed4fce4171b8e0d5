"""Which items of a visit enter the memory, settled before training; only their logits are filled in while it runs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.memories import Ints, Memory, Records
from clients.visits import Local, Walk
from fedcl import keys
from fedcl.keys import Purpose
from fedcl.orders import TrainOrder


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """The entries that a visit leaves in the memories, in the order of the steps at which they come by."""

    rows: Ints  # (a,) client's row
    slots: Ints  # (a,) memory slot; each (row, slot) once: of several items the last stays
    steps: Ints  # (a,) step at which the item comes by: its remembered logits are those of this step
    columns: Ints  # (a,) column in that step's batch
    evicted: Ints  # (k,) entries displaced, those of this visit among them


NOTHING = np.zeros(0, np.int64)


def none_admitted(k: int) -> Admitted:
    """Return the admission of clients without a memory."""
    return Admitted(rows=NOTHING, slots=NOTHING, steps=NOTHING, columns=NOTHING, evicted=np.zeros(k, np.int64))


def _offered(memory: Memory, local: Local, walked: Walk, seen: Ints) -> tuple[Ints, NDArray[np.bool_], int]:
    """Return index (k, o) and validity (k, o) of the offered items in stream order, and the passes offered."""
    passes = walked.index.shape[1] if memory.admit == "every_pass" else 1
    index = walked.index[:, :passes].reshape(len(seen), -1)
    valid = walked.real[:, :passes].reshape(len(seen), -1)
    if memory.admit == "first_seen":
        valid = valid & (index + local.offsets[:, None] >= seen[:, None])
    return index, valid, passes


def admit(
    memory: Memory, records: Records, labels: Ints, local: Local, walked: Walk, order: TrainOrder, seed: int
) -> Admitted:
    """Offer the visit's new items to the memories and write all columns but the logits into `records`.

    Args:
        records: (k,) changed in place: counters, cursor, items, tasks, labels.
        labels: (n,) labels of the whole training split.
    """
    rows = np.arange(len(records))
    index, valid, passes = _offered(memory, local, walked, records["cursor"][rows, order.tasks])
    items, before = local.items[rows[:, None], index], records["count"].copy()
    slots = memory.slots(records, labels[items], valid, keys.key(seed, Purpose.ADMIT, order.clients))
    last = np.full((len(records), memory.size), -1, np.int64)
    row, place = np.nonzero(slots >= 0)
    last[row, slots[row, place]] = place  # stream order: of two items for one slot the later is written last
    row, slot = np.nonzero(last >= 0)
    place = last[row, slot]
    chosen = (row, index[row, place])
    records["items"][row, slot], records["tasks"][row, slot] = local.items[chosen], local.tasks[chosen]
    records["labels"][row, slot] = labels[local.items[chosen]]
    steps = walked.step[:, :passes].reshape(len(records), -1)[row, place]
    columns = walked.column[:, :passes].reshape(len(records), -1)[row, place]
    by_step = np.argsort(steps, kind="stable")
    return Admitted(
        rows=row[by_step],
        slots=slot[by_step],
        steps=steps[by_step],
        columns=columns[by_step],
        evicted=(slots >= 0).sum(axis=1) - (records["count"] - before),
    )


def move_cursor(records: Records, local: Local, tasks: Ints) -> None:
    """Note how far into each task's data a client has come; what lies before is no longer new to it.

    In an online stream that includes slices that passed while the client was not asked: they are gone.
    """
    rows = np.arange(len(records))
    records["cursor"][rows, tasks] = np.maximum(records["cursor"][rows, tasks], local.offsets + local.lengths)
