"""Who is asked in a round, from the clients that are there and have something to train on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.keys import Purpose
from fedcl.settings import Settings

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Uniform(Settings):
    """Every available client is equally likely, without replacement."""

    def select(self, available: Ints, n: int, *, seed: int, round: int) -> Ints:
        """Return n of the available clients (all, where there are no more), ascending.

        Each client draws its own number, so who is chosen does not depend on how the others are listed.
        """
        draws = keys.key(seed, Purpose.SELECT, round, available)
        return np.sort(available[np.argsort(draws, kind="stable")[:n]])
