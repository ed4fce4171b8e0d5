"""Every figure against numbers worked out by hand, and properties that hold for every matrix."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedcl import metrics

NAN = math.nan
# Task 0 peaks after task 1 (.95), so forgetting and first - last differ.
A = np.array([[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.5, 0.6, 0.7]])
FRESH = np.array([0.1, 0.15, 0.05])
MATRICES = st.integers(2, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=st.floats(0, 1)))


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (metrics.acc(A), (0.5 + 0.6 + 0.7) / 3),
        (metrics.aia(A), (0.9 + (0.95 + 0.8) / 2 + (0.5 + 0.6 + 0.7) / 3) / 3),
        (metrics.forgetting(A), ((0.95 - 0.5) + (0.8 - 0.6)) / 2),
        (metrics.bwt(A), ((0.5 - 0.9) + (0.6 - 0.8)) / 2),
        (metrics.fwt(np.array([0.2, 0.3]), FRESH[1:]), ((0.2 - 0.15) + (0.3 - 0.05)) / 2),
        (metrics.plasticity(A), (0.9 + 0.8 + 0.7) / 3),
        (metrics.first_minus_last(A), ((0.9 - 0.5) + (0.8 - 0.6)) / 2),
        (metrics.intransigence(A, np.array([0.95, 0.9, 0.8])), (0.05 + 0.1 + 0.1) / 3),
        (metrics.pm(A), ((0.05 - 0.4) / 2 + (0.6 - 0.8)) / 2),
    ],
)
def test_matrix_figures_by_hand(figure: float, expected: float) -> None:
    assert figure == pytest.approx(expected, abs=1e-12)


def test_one_task_has_accuracy_but_no_transfer() -> None:
    one = np.array([[0.8]])
    assert metrics.acc(one) == metrics.aia(one) == metrics.plasticity(one) == 0.8
    for figure in (metrics.forgetting, metrics.bwt, metrics.first_minus_last, metrics.pm):
        assert math.isnan(figure(one)), figure.__name__
    assert math.isnan(metrics.fwt(np.zeros(0), np.zeros(0)))


def test_nothing_measured_is_nan() -> None:
    empty = np.zeros((0, 0))
    for figure in (metrics.acc, metrics.aia, metrics.forgetting, metrics.bwt, metrics.plasticity, metrics.pm):
        assert math.isnan(figure(empty)), figure.__name__
    assert math.isnan(metrics.wc_acc(empty, np.zeros(0, np.int64)))
    assert math.isnan(metrics.min_acc(empty, np.zeros(0, np.int64)))
    assert math.isnan(metrics.a_auc(empty, empty.astype(bool)))
    assert math.isnan(metrics.wf(np.zeros((1, 2)), 10))


def test_unknown_entries_make_only_the_figures_unknown_that_need_them() -> None:
    a = A.copy()
    a[0, 1] = NAN  # accuracy on task 1 before it was learnt
    assert math.isnan(metrics.fwt(np.array([NAN, 0.3]), FRESH[1:]))
    assert metrics.forgetting(a) == metrics.forgetting(A)
    assert metrics.aia(a) == metrics.aia(A)
    a[1, 0] = NAN
    assert math.isnan(metrics.forgetting(a))
    assert metrics.bwt(a) == metrics.bwt(A)


def test_a_repeated_task_keeps_every_row() -> None:
    """Stream 0, 1, 0: task 0 was best (.9) at its first end, .4 after task 1, .7 after it came back."""
    a, learnt = np.array([[0.9, 0.1], [0.4, 0.8], [0.7, 0.5]]), np.array([0, 1])
    assert metrics.acc(a) == pytest.approx(0.6)
    assert metrics.forgetting(a, learnt) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert metrics.plasticity(a, learnt) == pytest.approx(0.85)
    assert metrics.aia(a, learnt) == pytest.approx((0.9 + 0.6 + 0.6) / 3)


def test_tasks_that_end_together_are_not_old() -> None:
    """Tasks 1 and 2 end in the same round: only task 0 can have been forgotten."""
    a, learnt = np.array([[0.9, 0.3, 0.2], [0.5, 0.8, 0.6]]), np.array([0, 1, 1])
    assert metrics.forgetting(a, learnt) == pytest.approx(0.4)
    assert math.isnan(metrics.forgetting(a[1:], np.zeros(3, np.int64)))


def test_a_matrix_that_is_not_square_needs_learnt() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs `learnt`"):
        metrics.forgetting(A[:2])


@given(MATRICES)
def test_relations_between_figures(a: np.ndarray) -> None:
    assert metrics.first_minus_last(a) == pytest.approx(-metrics.bwt(a))
    assert metrics.forgetting(a) >= metrics.first_minus_last(a) - 1e-12
    assert metrics.forgetting(np.maximum.accumulate(a)) <= 0
    assert 0 <= metrics.aia(a) <= 1
    assert metrics.acc(np.full_like(a, 0.25)) == metrics.aia(np.full_like(a, 0.25)) == 0.25


SERIES = np.array([[0.1, 0.0], [0.9, 0.1], [0.6, 0.7], [0.8, 0.9]])  # task 0 learnt at point 1, task 1 at point 3
LEARNT = np.array([1, 3])


def test_any_time_accuracy_by_hand() -> None:
    seen = np.array([[False, False], [True, False], [True, True], [True, True]])
    assert metrics.a_auc(SERIES, seen) == pytest.approx((0.9 + 0.65 + 0.85) / 3)


def test_worst_case_accuracy_by_hand() -> None:
    assert metrics.min_acc(SERIES, LEARNT) == pytest.approx(0.6)
    assert metrics.wc_acc(SERIES, LEARNT) == pytest.approx(0.9 / 2 + 0.6 / 2)


def test_worst_case_accuracy_with_three_tasks_two_of_them_current() -> None:
    series = np.array([[0.9, 0.0, 0.0], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    learnt = np.array([0, 2, 2])
    assert metrics.wc_acc(series, learnt) == pytest.approx((2 / 3) * 0.85 + (1 / 3) * 0.4)
    assert metrics.wc_acc(series[:, :1], np.array([2])) == 0.7
    assert math.isnan(metrics.min_acc(series[:, :1], np.array([2])))


def test_windowed_figures_by_hand() -> None:
    series = np.array([[0.5], [0.1], [0.9]])
    assert metrics.wp(series, 3) == pytest.approx(0.8)
    assert metrics.wf(series, 3) == pytest.approx(0.4)
    slow = np.array([[0.9], [0.7], [0.4], [0.0]])
    assert metrics.wf(slow, 2) == pytest.approx(0.4)
    assert metrics.wf(slow, 3) == pytest.approx(0.7)
    assert metrics.wf(slow, 100) == pytest.approx(0.9)
    assert metrics.wp(slow, 100) == pytest.approx(-0.2)
    assert metrics.wf(np.hstack([slow, slow * 0]), 100) == pytest.approx(0.45)
    with pytest.raises(ValueError, match="window = 1"):
        metrics.wf(slow, 1)


@given(arrays(np.float64, (6, 3), elements=st.floats(0, 1)), st.integers(2, 6))
def test_a_wider_window_never_sees_less(series: np.ndarray, window: int) -> None:
    assert metrics.wf(series, window + 1) >= metrics.wf(series, window)
    assert metrics.wp(series, window) == metrics.wf(-series, window)


def test_fairness_by_hand() -> None:
    spread = metrics.fairness(np.array([0.2, 0.4, 0.6, 0.8]))
    assert spread.mean == pytest.approx(0.5)
    assert spread.std == pytest.approx(math.sqrt(0.05))
    assert (spread.worst, spread.worst10, spread.n) == (0.2, 0.2, 4)
    twenty = metrics.fairness(np.arange(20) / 20)
    assert twenty.worst10 == pytest.approx(0.025)  # the two worst: 0 and .05
    assert metrics.fairness(np.arange(20) / 20, higher_is_better=False).worst10 == pytest.approx(0.925)
    assert math.isnan(metrics.fairness(np.zeros(0)).mean)
    assert math.isnan(metrics.fairness(np.array([0.1, NAN])).worst)


def test_transfer_figures_by_hand() -> None:
    before, after = np.array([0.2, 0.0, 0.0]), np.array([0.6, 0.5, 0.0])
    np.testing.assert_allclose(metrics.ratio(before, after), [3.0, NAN, NAN])
    np.testing.assert_allclose(metrics.contrast(before, after), [0.5, 1.0, NAN])
    assert metrics.relative_performance(np.array([0.6, 0.8]), np.array([0.8, 0.8])) == pytest.approx(1.4 / 1.6)
    assert math.isnan(metrics.relative_performance(before * 0, before * 0))
