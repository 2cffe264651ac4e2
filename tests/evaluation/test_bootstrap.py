"""Intervals compared with known cases, with Student's t and with scipy's own bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qabuild.evaluation.bootstrap import mean_interval, ratio_interval

ROUNDS = 16  # of 500 questions


def times(generator: np.random.Generator, slowdown: float = 0.0) -> tuple[list[float], list[float]]:
    """Seconds per round of two contestants: the machine's drift affects both alike, noise each by itself."""
    drift = np.exp(np.cumsum(generator.normal(0, 0.05, ROUNDS)))
    one, other = (drift * generator.lognormal(0, 0.03, ROUNDS) for _ in range(2))
    return list(one), list(other * (1 + slowdown))


def test_the_interval_of_equal_contestants_covers_1_in_95_of_100_runs():
    generator = np.random.default_rng(7)
    intervals = [ratio_interval(*times(generator)) for _ in range(400)]
    coverage = sum(low <= 1 <= high for low, high in intervals) / len(intervals)
    assert 0.925 <= coverage <= 0.975  # 0.95, give or take two standard errors


def test_a_slowdown_of_5_percent_is_significant():
    generator = np.random.default_rng(7)
    intervals = [ratio_interval(*times(generator, slowdown=0.05)) for _ in range(100)]
    assert sum(high < 1 for _, high in intervals) >= 95
    assert sum(low <= 1 / 1.05 <= high for low, high in intervals) >= 88


def test_many_pairs_have_the_interval_of_scipys_bootstrap():
    generator = np.random.default_rng(3)
    one, other = generator.lognormal(0, 0.4, 2000), generator.lognormal(0, 0.4, 2000)
    expected = stats.bootstrap(
        (one, other),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        batch=100,
    ).confidence_interval
    width = expected.high - expected.low
    assert ratio_interval(one, other) == pytest.approx(tuple(expected), abs=0.1 * width)


def test_few_pairs_have_an_interval_as_wide_as_students_t():
    values = np.random.default_rng(5).normal(10, 2, 12)
    low, high = mean_interval(list(values))
    expected = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.12)


def test_a_99_9_percent_interval_is_3_29_standard_errors_and_encloses_that_of_95_percent():
    values = np.random.default_rng(1).normal(0.3, 2.0, 1000)
    low, high = mean_interval(list(values), 0.999)
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 3.29 * error, values.mean() + 3.29 * error), abs=0.3 * error)
    inner_low, inner_high = mean_interval(list(values))
    assert low < inner_low < inner_high < high


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=40))
def test_the_interval_lies_between_the_smallest_and_the_largest_ratio(pairs):
    one, other = zip(*pairs, strict=True)
    low, high = ratio_interval(one, other)
    ratios = [a / b for a, b in pairs]
    assert min(ratios) * (1 - 1e-9) <= low <= high <= max(ratios) * (1 + 1e-9)
    assert (low, high) == ratio_interval(one, other)
