"""Reservoir sampling (Vitter, ACM TOMS 1985, doi:10.1145/3147.3165), algorithm R: item i stays with chance size / i."""

from dataclasses import dataclass

import numpy as np

from clients.memories import Ints, Memory, Records
from fedcl.keys import Bits, at, below


@dataclass(frozen=True, kw_only=True)
class Reservoir(Memory):
    """A uniform sample of everything that the client has seen."""

    def slots(self, records: Records, labels: Ints, valid: np.ndarray, keys: Bits) -> Ints:
        """Give item number i slot i while there is room, then a draw below i + 1, dropped where beyond the size."""
        number = records["seen"][:, None] + np.cumsum(valid, axis=1) - 1
        draw = below(at(keys[:, None], number), number + 1)
        slot = np.where(number < self.size, number, draw)
        records["seen"] += valid.sum(axis=1)
        records["count"] = np.minimum(records["seen"], self.size)
        return np.where(valid & (slot < self.size), slot, -1)
