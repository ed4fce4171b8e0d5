"""A client's state as data: one record of a numpy structured dtype, the same in a pack and on a real node."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clients.memories import Memory, RecordField, Records
from clients.optimizers import Optimizer
from fedcl.answers import Layout


def record_dtype(
    *, tasks: int, classes: int, memory: Memory | None, logits: bool, optimizer: Optimizer, parameters: Layout,
    personal: int, real: str, local: bool = False, shown: int = 0, kept: Sequence[tuple[str, int]] = (),
    path: bool = False, position: bool = False, of_visits: Sequence[tuple[str, int]] = (),
    samples: tuple[np.dtype[Any], tuple[int, ...]] | None = None,
) -> np.dtype[np.void]:  # fmt: skip
    """Return the fields of a client's record.

    Args:
        memory: the replay memory, None where the method draws nothing.
        logits: whether remembered logits are kept with the items.
        personal: number of parameters that stay on the client.
        real: dtype of parameters and logits ("<f4" or "<f8").
        local: whether the parameters at the end of the client's last visit are kept.
        shown: number of items for which it is kept whether a visit has shown them.
        kept: names and lengths of what is kept of the tasks that the client has left (`clients.losses.Kept`).
        path: whether a regulariser needs the path of the task that it has not left yet.
        position: whether it is kept at which position of its stream the client was.
        of_visits: names and lengths of what is kept of every visit, whatever its task.
        samples: dtype and shape of an input, where the memory keeps the inputs themselves.
    """
    fields: list[RecordField] = [("visits", "<i8", ()), ("cursor", "<i8", (tasks + 1,))]
    if memory:
        columns = [("items", "<i8"), ("tasks", "<i4"), ("labels", "<i8")]
        fields += [("count", "<i8", ()), ("seen", "<i8", ()), *((name, kind, (memory.size,)) for name, kind in columns)]
        fields += memory.fields(classes)
        fields += [("logits", real, (memory.size, classes))] if logits else []
        fields += [("x", samples[0], (memory.size, *samples[1]))] if samples else []
    if optimizer.keep:
        fields += [("optimizer.steps", "<i8", ())]
        fields += [(f"optimizer.{name}", real, (parameters.size,)) for name in optimizer.buffers]
    if personal:
        fields += [("personal", real, (personal,))]
    fields += [("local", real, (parameters.size,))] if local else []
    fields += [("shown", "?", (shown,))] if shown else []
    fields += [("position", "<i8", ())] if kept or position else []
    fields += [(name, real, (length,)) for name, length in kept]
    fields += [(name, real, (parameters.size,)) for name in ("path", "moved")] if path else []
    fields += [(name, real, (length,)) for name, length in of_visits]
    return np.dtype(fields)


def fresh(dtype: np.dtype[np.void]) -> Records:
    """Return the record of a client that was never visited: all zeros."""
    return np.zeros(1, dtype)
