"""Replay memories: which samples of its stream a client keeps.

A memory is columns of the client's record: `items`, `tasks`, `labels` (and `logits` where a term wants them) of `size`
slots, `count` filled slots and `seen` offered items. An entry is (sample, transform id, label as seen). A policy only
decides, for whole cohorts at once, into which slot each offered item goes; the decision is a hash of the client and the
item's number in the client's own stream, so it is the same alone, stacked or on a real node.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.memories.rehearsal import Rehearsal
from fedcl.keys import Bits
from fedcl.settings import Settings, setting

Ints = NDArray[np.int64]
Records = NDArray[np.void]
RecordField = tuple[str, Any, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Memory(Settings):
    """What every policy has."""

    size: int = setting(0, "items kept by a client", low=0, high=10_000_000)
    admit: Literal["first_seen", "every_pass"] = setting(
        "first_seen", "offer an item when it is first seen, or again in every pass over it"
    )

    draw: Rehearsal = setting("uniform", "which entries a replay draw takes: all alike, or by class or phase")
    alpha: float = setting(1.0, "how fast an entry's chance falls with the phases since (by phase only)", low=0)

    def fields(self, classes: int) -> list[RecordField]:
        """Return the columns that this policy needs beside those of every memory."""
        return []

    def slots(self, records: Records, labels: Ints, valid: NDArray[np.bool_], keys: Bits) -> Ints:
        """Decide where each offered item goes; counters in `records` are brought up to date.

        Args:
            records: (k,) one record a client.
            labels: (k, o) labels of the offered items, in stream order.
            valid: (k, o) which of them are really offered.
            keys: (k,) one key a client, the same for all its visits.

        Returns:
            (k, o) slot of each item, -1 where it is not kept. Of two items for one slot the later stays.
        """
        raise NotImplementedError
