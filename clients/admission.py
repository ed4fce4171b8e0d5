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


def _offered(memory: Memory, records: Records, local: Local, walked: Walk, tasks: Ints) -> NDArray[np.bool_]:
    """Return which entries of the walk (k, l) are offered: all, or those that come by for the first time ever."""
    if memory.admit == "every_pass":
        return walked.real
    if "shown" in (records.dtype.names or ()):
        known: NDArray[np.bool_] = records["shown"][walked.rows, _numbers(local, walked)]
        return walked.first & ~known
    cursor: Ints = records["cursor"][np.arange(len(records)), tasks]
    return walked.first & (walked.index + local.offsets[:, None] >= cursor[:, None])


def _numbers(local: Local, walked: Walk) -> Ints:
    """Return the number (k, l) of each entry's item among all items of the client's own stream, 0 on padding."""
    return np.where(walked.real, walked.index + (local.bases + local.offsets)[:, None], 0)


def admit(
    memory: Memory, records: Records, labels: Ints, local: Local, walked: Walk, order: TrainOrder, seed: int
) -> Admitted:
    """Offer the visit's new items to the memories and write all columns but the logits into `records`.

    Args:
        records: (k,) changed in place: counters, cursor, items, tasks, labels.
        labels: (n,) labels of the whole training split.
    """
    rows = np.arange(len(records))
    valid, before = _offered(memory, records, local, walked, order.tasks), records["count"].copy()
    offered = np.flatnonzero(valid.any(axis=0))  # a policy need not walk over what nobody is offered
    items = local.items[rows[:, None], walked.index[:, offered]]
    slots = memory.slots(records, labels[items], valid[:, offered], keys.key(seed, Purpose.ADMIT, order.clients))
    last = np.full((len(records), memory.size), -1, np.int64)
    row, place = np.nonzero(slots >= 0)
    last[row, slots[row, place]] = offered[place]  # stream order: of two items for one slot the later is written last
    row, slot = np.nonzero(last >= 0)
    place = last[row, slot]
    chosen = (row, walked.index[row, place])
    records["items"][row, slot], records["tasks"][row, slot] = local.items[chosen], local.tasks[chosen]
    records["labels"][row, slot] = labels[local.items[chosen]]
    steps, columns = walked.step[row, place], walked.column[row, place]
    by_step = np.argsort(steps, kind="stable")
    return Admitted(
        rows=row[by_step],
        slots=slot[by_step],
        steps=steps[by_step],
        columns=columns[by_step],
        evicted=(slots >= 0).sum(axis=1) - (records["count"] - before),
    )


def move_cursor(records: Records, local: Local, walked: Walk, tasks: Ints) -> None:
    """Note how far into each task's data a client has come; what lies before is no longer new to it.

    In an online stream that includes slices that passed while the client was not asked: they are gone. Under a
    curriculum, which may leave items out of a visit, what was shown is noted item by item instead.
    """
    rows = np.arange(len(records))
    records["cursor"][rows, tasks] = np.maximum(records["cursor"][rows, tasks], local.offsets + local.lengths)
    if "shown" in (records.dtype.names or ()):
        first = walked.first
        records["shown"][walked.rows[first], _numbers(local, walked)[first]] = True
