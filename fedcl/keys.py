"""Counter-based randomness: every draw is a hash of what it is for. The one place that seeds.

splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over (seed, purpose, client, task, round) gives a key, and key + position
gives the draw, so a draw is the same alone, in a stacked cohort, on any worker or on a real node. All arithmetic is
modulo 2^64 in numpy, vectorised over clients. Not cryptographic: draws that protect need a secret of the node.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_A, MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw is for: two purposes never share a draw. Append only; the numbers are part of every result."""

    MODEL = 1
    TASKS = 2
    PARTITION = 3
    SCHEDULE = 4
    SELECT = 5
    SHUFFLE = 6
    REPLAY = 7
    ADMIT = 8
    EVALUATE = 9
    DATA = 10
    CURRICULUM = 11
    SKETCH = 12
    REHEARSAL = 13
    FEATURES = 14
    DROPOUT = 15


def _mix(z: Bits) -> Bits:
    z = (z ^ (z >> np.uint64(30))) * MIX_A
    z = (z ^ (z >> np.uint64(27))) * MIX_B
    return z ^ (z >> np.uint64(31))


def key(seed: int, purpose: Purpose, *parts: Any) -> Bits:
    """Hash (seed, purpose, *parts) to a key.

    Args:
        parts: integers or integer arrays (clients, tasks, rounds), broadcast against each other.

    Returns:
        uint64 array of the broadcast shape (0-d for plain integers).
    """
    with np.errstate(over="ignore"):
        h = _mix(np.asarray(seed, np.int64).astype(np.uint64) + GOLDEN)
        for value in (int(purpose), *parts):
            h = _mix(np.uint64(3) * h + GOLDEN + np.asarray(value, np.int64).astype(np.uint64) * GOLDEN)
    return np.asarray(h, np.uint64)


def at(keys: Bits, positions: NDArray[np.int64]) -> Bits:
    """Return the draw at each position of each key's sequence (keys and positions broadcast)."""
    with np.errstate(over="ignore"):
        return _mix(keys + GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))


def bits(keys: Bits, n: int) -> Bits:
    """Return n draws of 64 bits for each key: shape (*keys.shape, n). Draw i never depends on n."""
    return at(np.asarray(keys)[..., None], np.arange(n))


def below(draws: Bits, limit: Any) -> NDArray[np.int64]:
    """Map draws to integers in [0, limit), limit < 2^31, broadcast; limit 0 gives 0. Bias below 2^-32 * limit."""
    top = draws >> np.uint64(32)
    return ((top * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutations(keys: Bits, lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return for each key a permutation of range(length), padded behind with the columns length..width-1.

    Args:
        keys: (k,) one key each.
        lengths: (k,) real lengths, at most `width`.

    Returns:
        (k, width) int64; row i's first lengths[i] entries depend on keys[i] and lengths[i] alone.
    """
    draws = bits(keys, width)
    draws[np.arange(width) >= lengths[:, None]] = np.iinfo(np.uint64).max
    return np.argsort(draws, axis=1, kind="stable")


def generator(seed: int, purpose: Purpose, *parts: Any) -> np.random.Generator:
    """Return a numpy generator for set-up draws that need a distribution (Dirichlet, normal)."""
    return np.random.Generator(np.random.Philox(key=int(key(seed, purpose, *parts))))


@contextmanager
def seeded(seed: int, purpose: Purpose, *parts: Any) -> Iterator[None]:
    """Seed torch's global generator for the block (model initialisation) and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the accelerators' generators too, which are not put back.
        torch.default_generator.manual_seed(int(key(seed, purpose, *parts) >> np.uint64(1)))
        yield
