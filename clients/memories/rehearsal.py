"""Which entries of the memory a replay draw takes: the chance of each.

uniform         every entry alike
class-balanced  every class that is held alike, its entries alike
power-law       phase j with p_j proportional to (i - j)^-alpha over the past phases j < i (Gandhi et al., 2024,
                arXiv:2401.10393), its entries alike; alpha = 0 is the control in which all past phases are alike
exponential     the control with p_j proportional to e^(-alpha (i - j))
random          the control with the power law's chances dealt to the past phases at random, anew in each phase i

A phase is a position of the client's own stream; an entry belongs to the first position that has its task. Entries of
the current phase and of later ones are not rehearsed: while there are no others, nothing is replayed. A phase of which
the memory holds nothing takes no part.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.keys import Bits

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Reals = NDArray[np.float64]
Rehearsal = Literal["uniform", "class-balanced", "power-law", "exponential", "random"]


def first_positions(order: Ints, tasks: Ints) -> Ints:
    """Return the first position (k, m) of each entry's task in its client's own stream.

    Args:
        order: (k, positions) task ids.
        tasks: (k, m) tasks of the entries, each of them somewhere in the client's order.
    """
    found: Ints = np.argmax(order[:, None, :] == tasks[:, :, None], axis=2)
    return found


def phase_weights(rehearsal: Rehearsal, alpha: float, position: Ints, phases: int, own: Bits) -> Reals:
    """Return the chance (k, phases) of each phase, not normalised; 0 for the current and later ones.

    Args:
        position: (k,) current position i.
        own: (k,) keys of client and position, which `random` deals by.
    """
    age = position[:, None] - np.arange(phases)
    past = age > 0
    if rehearsal == "random":
        dealt = np.argsort(np.where(past, keys.bits(own, phases) >> np.uint64(1), np.iinfo(np.uint64).max), axis=1)
        np.put_along_axis(age, dealt, np.broadcast_to(np.arange(1, phases + 1), age.shape).copy(), axis=1)
    age = np.maximum(age, 1)
    weights = np.exp(-alpha * (age - 1.0)) if rehearsal == "exponential" else age.astype(np.float64) ** -alpha
    return np.where(past, weights, 0.0)


def shared_out(weights: Reals, groups: Ints, filled: Bools) -> Reals:
    """Return the chance (k, m) of each entry, rows adding up to 1 (to 0 where no entry has a chance).

    Args:
        weights: (k, g) chance of each group of entries, not normalised.
        groups: (k, m) group of each entry.
        filled: (k, m) False in empty slots.
    """
    held = np.zeros(weights.shape)
    rows = np.broadcast_to(np.arange(len(groups))[:, None], groups.shape)
    np.add.at(held, (rows[filled], groups[filled]), 1.0)
    each = np.divide(weights, held, out=np.zeros_like(held), where=held > 0)
    chances = np.where(filled, np.take_along_axis(each, groups, axis=1), 0.0)
    total = chances.sum(axis=1, keepdims=True)
    found: Reals = np.divide(chances, total, out=np.zeros_like(chances), where=total > 0)
    return found


def draw(chances: Reals, bits: Bits) -> Ints:
    """Return slots (k, n) drawn with these chances (k, m); slot 0 where no entry has a chance."""
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    found = np.zeros(bits.shape, np.int64)
    for row, own in enumerate(chances):
        slots = np.flatnonzero(own)
        if len(slots):
            edges = np.cumsum(own[slots])
            place = np.searchsorted(edges, uniform[row] * edges[-1], side="right")
            found[row] = slots[np.minimum(place, len(slots) - 1)]  # a product may be rounded up to the last edge
    return found
