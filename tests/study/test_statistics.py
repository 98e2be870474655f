"""Comparisons against scipy's paired test and against sums written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pscl_hpc.results.statistics import Comparison, Pair, Stratum, compare, spread

dice = st.floats(0.0, 0.99)
pairs = st.lists(st.tuples(dice, dice), min_size=2, max_size=8)


def equal(strata: Sequence[Sequence[Pair]]) -> Comparison:
    """A comparison over data sets that count the same."""
    return compare([Stratum(pairs) for pairs in strata])


@given(pairs)
def test_the_gain_of_one_stratum_is_the_paired_t_interval(found: list[tuple[float, float]]) -> None:
    ours, theirs = np.array(found).T
    gain = equal([found]).gain
    assert gain.value == pytest.approx(float((ours - theirs).mean()), abs=1e-12)
    if np.var(ours - theirs, ddof=1) > 1e-20:
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert gain.low == pytest.approx(expected.low, rel=1e-9, abs=1e-12)
        assert gain.high == pytest.approx(expected.high, rel=1e-9, abs=1e-12)


def test_differences_near_the_smallest_numbers_have_an_interval() -> None:
    gain = equal([[(0.5, 0.5), (1e-100, 0.0)]]).gain
    assert gain.value == pytest.approx(5e-101, abs=0)
    assert gain.low == pytest.approx(5e-101 * (1 - 12.706204736432095), rel=1e-9, abs=0)
    assert gain.high == pytest.approx(5e-101 * (1 + 12.706204736432095), rel=1e-9, abs=0)


def test_error_removed_by_hand() -> None:
    found = [(0.8, 0.7), (0.6, 0.5), (0.9, 0.6)]
    errors = np.array([[0.2, 0.3], [0.4, 0.5], [0.1, 0.4]])
    ratio = 0.7 / 1.2
    residuals = errors[:, 0] - ratio * errors[:, 1]
    standard_error = math.sqrt(sum(residuals**2) / 2 / 3) / 0.4
    reach = 4.302652729911275 * standard_error  # t of 0.975 with 2 degrees of freedom, from a table
    removed = equal([found]).error_removed
    assert removed is not None
    assert removed.value == pytest.approx(1 - ratio, rel=1e-12)
    assert removed.low == pytest.approx(1 - ratio - reach, rel=1e-9)
    assert removed.high == pytest.approx(1 - ratio + reach, rel=1e-9)


def test_a_method_that_halves_every_error_removes_half_of_it_for_certain() -> None:
    found = [(1 - error / 2, 1 - error) for error in (0.1, 0.25, 0.5, 0.75)]
    removed = equal([found, found[:3]]).error_removed
    assert removed is not None
    assert removed.low is not None
    assert removed.high is not None
    np.testing.assert_allclose([removed.value, removed.low, removed.high], 0.5, atol=1e-12)


def test_strata_count_the_same_whatever_their_size() -> None:
    small, large = [(0.5, 0.4), (0.7, 0.5)], [(0.9, 0.8), (0.8, 0.9), (0.7, 0.7), (0.9, 0.6)]
    found = equal([small, large])
    gains = [np.array([0.1, 0.2]), np.array([0.1, -0.1, 0.0, 0.3])]
    assert found.gain.value == pytest.approx((0.15 + 0.075) / 2, rel=1e-12)
    parts = [gain.var(ddof=1) / len(gain) / 4 for gain in gains]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 3)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert found.gain.low == pytest.approx(found.gain.value - reach, rel=1e-9)
    # Errors: 0.4 against 0.55, and 0.175 against 0.25.
    assert found.error_removed is not None
    assert found.error_removed.value == pytest.approx(1 - (0.4 + 0.175) / (0.55 + 0.25), rel=1e-12)
    assert (found.units, found.wins) == (6, 4)
    assert found.worst_gain == pytest.approx(((0.5 - 0.4) + (0.7 - 0.6)) / 2)


@given(st.lists(pairs, min_size=1, max_size=4))
def test_a_method_against_itself_gains_nothing(strata: list[list[tuple[float, float]]]) -> None:
    found = equal([[(ours, ours) for ours, _ in stratum] for stratum in strata])
    assert found.gain.value == 0
    assert found.wins == 0
    assert found.error_removed is not None
    assert abs(found.error_removed.value) < 1e-12


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(800):
        theirs = random.normal(0.5, 0.08, (2, 5))
        ours = 1 - 0.8 * (1 - theirs) + random.normal(0, 0.03, (2, 5))
        removed = equal(
            [list(zip(a, b, strict=True)) for a, b in zip(ours, theirs, strict=True)]
        ).error_removed
        assert removed is not None
        assert removed.low is not None
        assert removed.high is not None
        hits += removed.low <= 0.2 <= removed.high
    # The standard deviation of the share is 0.8%.
    assert 0.92 <= hits / 800 <= 0.985


def test_a_data_set_of_two_scores_counts_twice_and_varies_as_one() -> None:
    """Units of 3 and of 2, the first with the weight 2: variances by hand."""
    first, second = [(0.5, 0.4), (0.7, 0.5), (0.6, 0.6)], [(0.9, 0.8), (0.8, 0.5)]
    found = compare([Stratum(first, weight=2), Stratum(second)])
    gains = [np.array([0.1, 0.2, 0.0]), np.array([0.1, 0.3])]
    assert found.gain.value == pytest.approx((2 * 0.1 + 0.2) / 3, rel=1e-12)
    parts = [4 / 9 * gains[0].var(ddof=1) / 3, 1 / 9 * gains[1].var(ddof=1) / 2]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert found.gain.low == pytest.approx(found.gain.value - reach, rel=1e-9)
    assert found.error_removed is not None
    assert found.error_removed.value == pytest.approx(1 - (2 * 0.4 + 0.15) / (2 * 0.5 + 0.35), rel=1e-12)
    assert found.units == 5
    assert found.worst_gain == pytest.approx((2 * (0.5 - 0.4) + (0.8 - 0.5)) / 3)
    assert compare([Stratum(first, weight=2)]) == compare([Stratum(first)])


def test_units_with_images_in_common_have_no_interval() -> None:
    found = [(0.5, 0.4), (0.7, 0.5)]
    shared = compare([Stratum(found), Stratum(found, independent=False)])
    alone = compare([Stratum(found), Stratum(found)])
    assert shared.gain.value == alone.gain.value
    assert shared.error_removed is not None
    assert alone.error_removed is not None
    assert shared.error_removed.value == alone.error_removed.value
    for estimate in (shared.gain, shared.error_removed):
        assert (estimate.low, estimate.high) == (None, None)


def test_single_units_have_no_interval_and_no_error_has_no_share() -> None:
    single = equal([[(0.6, 0.5)], [(0.7, 0.5), (0.7, 0.4)]])
    assert (single.gain.low, single.gain.high) == (None, None)
    assert equal([[(0.9, 1.0), (1.0, 1.0)]]).error_removed is None


@pytest.mark.parametrize("strata", [[], [[]], [[(0.1, 0.2)], []]])
def test_nothing_to_compare_is_a_mistake_of_the_programmer(strata: list[list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        equal(strata)


def test_spread_over_runs() -> None:
    values = [0.5, 0.7, None, 0.9]
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(0.7)
    assert found.std == pytest.approx(np.std([0.5, 0.7, 0.9], ddof=1))
    assert (found.worst, found.count) == (0.5, 3)


def test_spread_of_few_values() -> None:
    one = spread([0.4, None])
    assert one is not None
    assert (one.mean, one.std, one.worst, one.count) == (0.4, None, 0.4, 1)
    assert spread([None, None]) is None
