"""Figures over seeds: by hand, beside scipy, and over simulated sweeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from fedcl.statistics import BOOTSTRAP, adjusted, paired, ranks, seeds_needed, sign_flips, spread
from fedcl.sweeps.simulated import SWEEPS, alarms, coverage, normal, skewed

THREE = [0.80, 0.84, 0.85]


def by_seed(values):
    return dict(enumerate(values))


def test_three_seeds_by_hand() -> None:
    """Mean .83, deviations -.03, .01, .02: variance .0014 / 2; t at .975 with 2 degrees of freedom is 4.302653."""
    found = spread(THREE)
    half = 4.302653 * math.sqrt(0.0007 / 3)
    assert (found.n, found.mean, found.std) == (3, pytest.approx(0.83), pytest.approx(math.sqrt(0.0007)))
    assert (found.low, found.high) == (pytest.approx(0.83 - half, abs=1e-7), pytest.approx(0.83 + half, abs=1e-7))
    assert (found.interval, found.note, found.iqm) == ("Student's t", "", pytest.approx(0.83))


@pytest.mark.parametrize(("values", "std", "note"), [([0.5], None, "1 seed,"), ([0.5, 0.7], 0.1414213562, "2 seeds,")])
def test_fewer_than_three_seeds_have_no_interval_and_it_says_so(values, std, note) -> None:
    found = spread(values)
    assert (found.low, found.high, found.interval) == (None, None, "")
    assert found.note == f"no interval: {note} 3 are the fewest"
    assert found.std == (None if std is None else pytest.approx(std))


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert spread([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]).iqm == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert spread([0.0, 3.0, 9.0]).iqm == 4.0  # nothing to leave out


def test_from_many_seeds_on_the_interval_is_scipys_bca() -> None:
    x = np.random.default_rng(3).gamma(2.0, size=BOOTSTRAP)
    wanted = stats.bootstrap((x,), np.mean, n_resamples=9_999, method="BCa", rng=np.random.default_rng(0))
    found = spread(x.tolist())
    assert found.interval == "BCa bootstrap"
    assert (found.low, found.high) == (wanted.confidence_interval.low, wanted.confidence_interval.high)
    fewer = spread(x[:-1].tolist())
    t = stats.t.interval(0.95, BOOTSTRAP - 2, x[:-1].mean(), stats.sem(x[:-1]))
    assert (fewer.low, fewer.high) == pytest.approx(t)
    same = spread([0.5] * (BOOTSTRAP + 2))
    assert (same.low, same.high, same.interval) == (0.5, 0.5, "Student's t")


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(values) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        spread(values)


def test_pairs_are_the_seeds_that_both_have() -> None:
    """Differences .02, .03, .04: mean .03, t = .03 / (.01 / sqrt 3)."""
    found = paired({1: 0.9, 2: 0.8, 3: 0.7, 9: 0.1}, {1: 0.88, 2: 0.77, 3: 0.66, 4: 0.0})
    assert (found.difference.n, found.difference.mean) == (3, pytest.approx(0.03))
    assert found.test == "paired t test"
    assert found.p == pytest.approx(2 * stats.t.sf(0.03 / (0.01 / math.sqrt(3)), 2))
    assert found.p == pytest.approx(stats.ttest_rel([0.9, 0.8, 0.7], [0.88, 0.77, 0.66]).pvalue)
    with pytest.raises(ValueError, match="0 values over seeds"):
        paired({1: 0.5}, {2: 0.5})


def test_two_seeds_in_common_are_no_test() -> None:
    found = paired(by_seed([0.5, 0.6]), by_seed([0.4, 0.4]))
    assert (found.test, found.p, found.significant) == ("", None, False)
    assert found.note == "no test: 2 seeds in common"


def test_methods_that_are_equal_in_every_seed_do_not_differ() -> None:
    assert paired(by_seed(THREE), by_seed(THREE)).p == 1.0
    assert paired(by_seed([0.5] * 3), by_seed([0.25] * 3)).p == 0.0  # apart by the same in every seed


def test_a_permutation_test_needs_seeds_for_its_comparisons() -> None:
    """2 / 2^10 <= .05 / m up to m = 25; 26 comparisons need 11 seeds, 1000 need 16."""
    assert [seeds_needed(m) for m in (1, 25, 26, 51, 52, 1000)] == [10, 10, 11, 11, 12, 16]
    better = np.linspace(0.01, 0.02, 10)
    one, other = by_seed(0.5 + better), by_seed([0.5] * 10)
    found = paired(one, other, 25)
    assert (found.test, found.p) == ("sign-flip permutation test", 2 / 2**10)
    short = paired(one, other, 26)
    assert (short.test, short.p) == ("", None)
    assert short.note == "no test: 26 comparisons by permutation need 11 seeds, there are 10"


@pytest.mark.parametrize("n", [10, 13])
def test_sign_flips_are_scipys_permutation_test(n: int) -> None:
    x = np.random.default_rng(n).normal(0.3, 1, n)
    wanted = stats.permutation_test((x,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flips(x) == pytest.approx(wanted)


def test_many_seeds_are_sampled_and_never_give_p_0() -> None:
    assert sign_flips(np.ones(40)) == 1 / 10_000
    x = np.random.default_rng(1).normal(0.2, 1, 40)
    assert sign_flips(x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue, abs=0.02)


def test_holm_by_hand() -> None:
    """p .01, .04, .03 of three: 3 x .01, then 2 x .03, then max(.06, 1 x .04); what was not tested does not count."""
    blank = paired(by_seed(THREE), by_seed([0.5] * 3))
    given_p = [replace(blank, p=p) for p in (0.01, 0.04, 0.03)]
    found = adjusted([given_p[0], replace(blank, p=None, adjusted=None), *given_p[1:]])
    assert [each.adjusted for each in found] == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert [each.significant for each in found] == [True, False, False, False]


@examples(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_adjusting_never_helps_and_keeps_the_order(ps: list[float]) -> None:
    blank = paired(by_seed(THREE), by_seed([0.5] * 3))
    found = adjusted([replace(blank, p=p) for p in ps])
    assert all(each.p <= each.adjusted <= min(1, len(ps) * each.p) + 1e-12 for each in found)
    by_p = sorted(found, key=lambda each: each.p)
    assert [each.adjusted for each in by_p] == sorted(each.adjusted for each in found)


def test_ranks_over_scenarios() -> None:
    """Ties share; a scenario that lacks a method does not count."""
    scores = {
        "digits": {"er": 0.8, "fot": 0.9, "finetune": 0.5},
        "mnist": {"er": 0.9, "fot": 0.9, "finetune": 0.6},
        "half": {"er": 0.9},
    }
    assert ranks(scores) == {"er": (2 + 1.5) / 2, "fot": (1 + 1.5) / 2, "finetune": 3.0}
    assert ranks(scores, higher=False)["finetune"] == 1.0
    with pytest.raises(ValueError, match="no scenario has all of er, fot"):
        ranks({"a": {"er": 1.0}, "b": {"fot": 1.0}})


# Over simulated sweeps.


@pytest.mark.nightly
@pytest.mark.parametrize("n", [3, 5, 10, 15])
def test_false_alarms_are_as_many_as_they_should_be(n: int) -> None:
    """At most 5 %, within three standard errors of 1,000 sweeps."""
    found = alarms(n, 0.0)
    print(f"false alarms with {n} seeds: {found:.3f}")
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / SWEEPS)
    assert found >= 0.02  # and not because nothing is ever found


@pytest.mark.nightly
@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("n", [5, 10])
def test_a_planted_difference_is_found(n: int, shift: float) -> None:
    """A difference of one or two standard deviations of the paired differences."""
    power = alarms(n, shift)
    print(f"power with {n} seeds for {shift:.0f} standard deviations: {power:.3f}")
    wanted = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, shift * math.sqrt(n))  # of the t test
    assert power == pytest.approx(wanted, abs=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("n", [3, 5, 9, 10, 20, BOOTSTRAP])
def test_intervals_cover_the_mean_as_often_as_they_say(n: int) -> None:
    """95 % within three standard errors of 1,000 sweeps, of normal figures."""
    figures, mean = normal(n, SWEEPS, np.random.default_rng(n))
    found = [spread(each.tolist()) for each in figures]
    covered = float(np.mean([each.low <= mean <= each.high for each in found]))
    print(f"coverage with {n} seeds: {covered:.3f} ({found[0].interval})")
    assert found[0].interval == ("BCa bootstrap" if n >= BOOTSTRAP else "Student's t")
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / SWEEPS))


@pytest.mark.nightly
def test_the_bootstrap_covers_less_with_few_seeds() -> None:
    """Why it is not taken from ten seeds on: .913 there, and of skewed figures less."""
    rng = np.random.default_rng(10)
    (t, bca), (skewed_t, skewed_bca) = coverage(*normal(10, SWEEPS, rng)), coverage(*skewed(10, SWEEPS, rng))
    print(f"coverage with 10 seeds: t {t:.3f}, BCa {bca:.3f}; of skewed figures t {skewed_t:.3f}, BCa {skewed_bca:.3f}")
    assert bca < 0.95 - 3 * math.sqrt(0.95 * 0.05 / SWEEPS) < t
    assert skewed_bca < skewed_t
