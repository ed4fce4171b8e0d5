"""Figures of continual learning, as pure functions of what was measured.

`a` is an accuracy matrix (R, T), fractions in [0, 1]: row t holds the accuracy on every task (column) after the t-th
task end. `learnt` (T,) names the row at whose end each task was first learnt; left out it is 0, 1, .., T - 1, the
square matrix of the papers. It is given where tasks come back (more rows than tasks) or end in one round (fewer rows).
An "old" task was learnt before the last row. NaN is an unknown accuracy, and what cannot be known is NaN: never 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Indices = NDArray[np.int64]


def shares(right: NDArray[np.int64], items: NDArray[np.int64]) -> list[float | None]:
    """Return the share (n,) of right predictions among items; None where there are no items."""
    return [c / n if n else None for c, n in zip(right.tolist(), items.tolist(), strict=True)]


def _learnt(a: Matrix, learnt: Indices | None) -> Indices:
    if learnt is None and a.shape[0] != a.shape[1]:
        raise ValueError(f"a matrix of shape {a.shape} needs `learnt`: the row at which each task was learnt")
    return np.arange(a.shape[1], dtype=np.int64) if learnt is None else np.asarray(learnt, np.int64)


def _old(a: Matrix, learnt: Indices) -> Indices:
    return np.flatnonzero(learnt < len(a) - 1)


def _mean(values: Vector | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def acc(a: Matrix) -> float:
    """Average accuracy mean_j a[T][j] after the last task (Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840)."""
    return _mean(a[-1]) if len(a) else math.nan


def aia(a: Matrix, learnt: Indices | None = None) -> float:
    """Average incremental accuracy mean_t mean_{j<=t} a[t][j] (Rebuffi et al., iCaRL, CVPR 2017, arXiv:1611.07725)."""
    learnt = _learnt(a, learnt)
    return _mean([_mean(row[learnt <= t]) for t, row in enumerate(a) if (learnt <= t).any()])


def forgetting(a: Matrix, learnt: Indices | None = None) -> float:
    """Forgetting mean_{j<T} (max_{j<=t<T} a[t][j] - a[T][j]) (Chaudhry et al., ECCV 2018, arXiv:1801.10112).

    The maximum runs over time since the task was learnt, never over tasks. Negative: old tasks improved.
    """
    learnt = _learnt(a, learnt)
    return _mean([float(np.max(a[learnt[j] : -1, j]) - a[-1, j]) for j in _old(a, learnt)])


def bwt(a: Matrix, learnt: Indices | None = None) -> float:
    """Backward transfer mean_{j<T} (a[T][j] - a[j][j]) (Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840)."""
    learnt = _learnt(a, learnt)
    old = _old(a, learnt)
    return _mean(a[-1, old] - a[learnt[old], old]) if len(old) else math.nan


def fwt(before: Vector, baseline: Vector) -> float:
    """Forward transfer mean_{j>1} (a[j-1][j] - b_j) (Lopez-Paz and Ranzato, NeurIPS 2017, arXiv:1706.08840).

    Args:
        before: (n,) accuracies on tasks that nobody has trained on yet, of a model that has trained on others:
            a[j-1][j] where tasks follow each other.
        baseline: (n,) accuracies b of the fresh model on the same tasks.
    """
    return _mean(before - baseline)


def plasticity(a: Matrix, learnt: Indices | None = None) -> float:
    """Learning accuracy mean_j a[j][j]: tasks when just learnt (Riemer et al., MER, ICLR 2019, arXiv:1810.11910)."""
    return _mean(a[_learnt(a, learnt), np.arange(a.shape[1])])


def first_minus_last(a: Matrix, learnt: Indices | None = None) -> float:
    """Forgetting as FOT reports it, mean_{j<T} (a[j][j] - a[T][j]) (Bakman et al., ICLR 2024, arXiv:2309.01289)."""
    return 0.0 - bwt(a, learnt)


def intransigence(a: Matrix, joint: Vector, learnt: Indices | None = None) -> float:
    """Intransigence mean_j (joint_j - a[j][j]) (Chaudhry et al., ECCV 2018, arXiv:1801.10112).

    Args:
        a: (R, T) accuracies.
        joint: (T,) accuracies of a model trained on all tasks at once.
        learnt: (T,) row at which each task was learnt.
    """
    return _mean(joint - a[_learnt(a, learnt), np.arange(a.shape[1])])


def pm(a: Matrix, learnt: Indices | None = None) -> float:
    """Performance maintenance mean_{j<T} mean_{t>j} (a[t][j] - a[j][j]) (New et al., arXiv:2201.08278)."""
    learnt = _learnt(a, learnt)
    return _mean([_mean(a[learnt[j] + 1 :, j] - a[learnt[j], j]) for j in _old(a, learnt)])


def ratio(before: Vector, after: Vector) -> Vector:
    """Transfer ratio after / before, elementwise; NaN where before is 0 (New et al., arXiv:2201.08278)."""
    result = np.full(np.shape(before), np.nan)
    np.divide(after, before, out=result, where=np.asarray(before) != 0)
    return result


def contrast(before: Vector, after: Vector) -> Vector:
    """Transfer contrast (after - before) / (after + before); NaN where both are 0 (New et al., arXiv:2201.08278)."""
    return ratio(np.add(after, before), np.subtract(after, before))


def relative_performance(lifelong: Vector, single: Vector) -> float:
    """Relative performance sum(lifelong) / sum(single-task experts), per task (New et al., arXiv:2201.08278)."""
    return float(np.sum(lifelong) / np.sum(single)) if np.sum(single) else math.nan


def a_auc(series: Matrix, seen: NDArray[np.bool_]) -> float:
    """Any-time accuracy: mean over evaluation points of the mean accuracy on what was seen by then.

    Koh et al., CLIB, ICLR 2022, arXiv:2110.10031. Points before anything was seen do not count. Tasks weigh alike.

    Args:
        series: (P, T) accuracies at evenly spaced points.
        seen: (P, T) which tasks had begun.
    """
    return _mean([_mean(row[now]) for row, now in zip(series, seen, strict=True) if now.any()])


def min_acc(series: Matrix, learnt: Indices) -> float:
    """Mean over old tasks of the lowest accuracy since learnt (De Lange et al., ICLR 2023, arXiv:2205.13452).

    Depends on how often one evaluates: state `evaluation_every` beside it.

    Args:
        series: (P, T) accuracies at evaluation points.
        learnt: (T,) the point at which each task was learnt; its minimum runs over the points behind that.
    """
    old = np.flatnonzero(learnt < learnt.max(initial=0))
    return _mean([float(np.min(series[learnt[j] + 1 :, j])) for j in old])


def wc_acc(series: Matrix, learnt: Indices) -> float:
    """Worst-case accuracy (1/k) A(current task) + (1 - 1/k) min-ACC (De Lange et al., ICLR 2023, arXiv:2205.13452).

    Arguments as `min_acc`. Tasks learnt at the same last point are all current and weigh 1/k each.
    """
    if not series.size:
        return math.nan
    current = learnt == learnt.max()
    now, weight = _mean(series[-1, current]), float(np.mean(current))
    return now if weight == 1 else weight * now + (1 - weight) * min_acc(series, learnt)


def _largest_rise(series: Matrix, window: int) -> float:
    if window < 2:
        raise ValueError(f"window = {window}: a change needs at least 2 points")
    if len(series) < 2:
        return math.nan
    steps = range(1, min(window, len(series)))
    return _mean(np.max([np.max(series[step:] - series[:-step], axis=0) for step in steps], axis=0))


def wf(series: Matrix, window: int) -> float:
    """Windowed forgetting: largest drop max_{i<j} (A_i - A_j) within `window` points, averaged over tasks.

    De Lange et al., ICLR 2023, arXiv:2205.13452. Negative where accuracy only ever rose. NaN below two points.

    Args:
        series: (P, T) accuracies at evaluation points.
        window: points in a window, both ends counted, at least 2; a shorter series is one window.
    """
    return _largest_rise(-series, window)


def wp(series: Matrix, window: int) -> float:
    """Windowed plasticity: largest rise max_{i<j} (A_j - A_i) within `window` points, averaged over tasks.

    De Lange et al., ICLR 2023, arXiv:2205.13452. On [.5, .1, .9] it is .8 (the released code says .4).
    """
    return _largest_rise(series, window)


@dataclass(frozen=True)
class Spread:
    """How a figure spreads over clients."""

    mean: float
    std: float
    worst: float
    worst10: float
    n: int


def fairness(values: Vector, higher_is_better: bool = True) -> Spread:
    """Spread of one figure over clients (Li et al., q-FFL, ICLR 2020, arXiv:1905.10497).

    Args:
        values: (n,) one figure a client.
        higher_is_better: False for forgetting, whose worst is its largest.

    Returns:
        mean, population standard deviation, worst client, mean of the worst ceil(n / 10) clients, n; NaN for n = 0.
    """
    if not len(values):
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    ordered = np.sort(values) if higher_is_better else np.sort(values)[::-1]
    tenth = ordered[: math.ceil(len(values) / 10)]
    # A NaN sorts to one end only; the mean carries it, so that the worst cannot hide it.
    worst = float(ordered[0]) if math.isfinite(_mean(values)) else math.nan
    worst10 = _mean(tenth) if math.isfinite(worst) else math.nan
    return Spread(_mean(values), float(np.std(values)), worst, worst10, len(values))
