"""Pacing functions (Vahidian et al., ICCV 2023, arXiv:2212.12712): how large the pool is after t of T steps.

A pool of samples grows over the steps of a client's training, a pool of clients over the rounds of a run. With N of
them, a = fraction of T until all are in, b = starting fraction, x = t / (a T):

    linear  bN + (N - bN) x            step  bN + N floor(x)
    quad    bN + (N - bN) x^2          exp   bN + (N - bN) (e^(10 x) - 1) / (e^10 - 1)
    sqrt    bN + (N - bN) x^0.5        log   bN + (N - bN) (1 + 0.1 ln(x + e^-10))

rounded down and clipped to [min(min_pool, N), N].
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Reals = NDArray[np.float64]
Pacing = Literal["linear", "quad", "sqrt", "step", "exp", "log"]

# How much of what is not in the pool at first has come in at x in [0, 1].
CURVES: dict[str, Callable[[Reals], Reals]] = {
    "linear": lambda x: x,
    "quad": np.square,
    "sqrt": np.sqrt,
    "step": np.floor,
    "exp": lambda x: np.expm1(10 * x) / np.expm1(10.0),
    "log": lambda x: 1 + 0.1 * np.log(x + np.exp(-10.0)),
}
ROUNDING = 1e-9  # 0.29 * 100 is a little below 29


def pool_sizes(pacing: Pacing, x: Reals, n: Ints, *, b: float, min_pool: int) -> Ints:
    """Return how many are in each pool.

    Args:
        pacing: one of the six.
        x: t / (a T), any shape; from 1 on everything is in.
        n: N of each pool, broadcast against x.
        b: fraction of N at t = 0.
        min_pool: smallest pool, if there are so many.
    """
    size = b * n + (n - b * n) * CURVES[pacing](np.minimum(x, 1.0))
    return np.clip(np.floor(size + ROUNDING), np.minimum(max(min_pool, 1), n), n).astype(np.int64)
