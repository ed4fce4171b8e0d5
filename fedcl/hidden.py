"""Draws that protect: from a secret, by SHAKE-256 (FIPS 202); who does not know the secret cannot tell them from noise.

A node makes its secret once (`clients.versions`) and never sends it. In simulation there is nobody to hide from: there
the secret comes from the seed, so that a run can be repeated.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def of_seed(seed: int) -> bytes:
    """Return the secret that stands for every node's own in simulation."""
    return hashlib.sha256(f"fedcl simulation {seed}".encode()).digest()


class Hidden:
    """A sequence of draws that belongs to a secret and to what it is for."""

    def __init__(self, secret: bytes, *parts: int | str) -> None:
        """Begin the sequence for these parts, `Hidden(secret, client, round, "body.1.weight")`."""
        self._key = hashlib.sha256(secret + repr(parts).encode()).digest()
        self._used = 0

    def _fractions(self, n: int) -> NDArray[np.float64]:
        """Return n draws, uniform and strictly between 0 and 1."""
        block = hashlib.shake_256(self._key + self._used.to_bytes(8, "little")).digest(4 * n)
        self._used += 1
        return (np.frombuffer(block, "<u4") + 0.5) * 2.0**-32

    def uniform(self, *shape: int) -> Floats:
        """Return the next draws, uniform in [-1, 1]."""
        return (2 * self._fractions(math.prod(shape)) - 1).reshape(shape).astype(np.float32)

    def normal(self, *shape: int) -> Floats:
        """Return the next draws, of N(0, 1) (Box and Muller, 1958)."""
        n = math.prod(shape)
        u, v = self._fractions(2 * ((n + 1) // 2)).reshape(2, -1)
        radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape).astype(np.float32)
