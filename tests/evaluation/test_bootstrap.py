"""Intervals against known cases, textbooks and scipy's own bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qabuild.evaluation.bootstrap import mean_interval, ratio_interval

ROUNDS = 16  # of 500 questions


def times(draw: np.random.Generator, slower_by: float = 0.0) -> tuple[list[float], list[float]]:
    """Seconds of two contestants, round by round: drift of the machine falls on both, noise on each."""
    drift = np.exp(np.cumsum(draw.normal(0, 0.05, ROUNDS)))
    one, other = (drift * draw.lognormal(0, 0.03, ROUNDS) for _ in range(2))
    return list(one), list(other * (1 + slower_by))


def test_equal_contestants_get_an_interval_that_holds_1_in_about_95_of_100_runs():
    draw = np.random.default_rng(7)
    intervals = [ratio_interval(*times(draw)) for _ in range(400)]
    held = sum(low <= 1 <= high for low, high in intervals) / len(intervals)
    assert 0.925 <= held <= 0.975  # 0.95, and two standard errors of it


def test_a_contestant_that_is_five_per_cent_slower_is_found():
    draw = np.random.default_rng(7)
    intervals = [ratio_interval(*times(draw, slower_by=0.05)) for _ in range(100)]
    assert sum(high < 1 for _, high in intervals) >= 95
    assert sum(low <= 1 / 1.05 <= high for low, high in intervals) >= 88


def test_many_pairs_get_what_scipy_finds():
    draw = np.random.default_rng(3)
    one, other = draw.lognormal(0, 0.4, 2000), draw.lognormal(0, 0.4, 2000)
    theirs = stats.bootstrap(
        (one, other),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        batch=100,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ratio_interval(one, other) == pytest.approx(tuple(theirs), abs=0.1 * width)


def test_few_pairs_get_the_width_of_students_t():
    values = np.random.default_rng(5).normal(10, 2, 12)
    low, high = mean_interval(list(values))
    theirs = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert high - low == pytest.approx(theirs[1] - theirs[0], rel=0.12)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=40))
def test_the_interval_lies_between_the_smallest_and_the_largest_ratio(pairs):
    one, other = zip(*pairs, strict=True)
    low, high = ratio_interval(one, other)
    ratios = [a / b for a, b in pairs]
    assert min(ratios) * (1 - 1e-9) <= low <= high <= max(ratios) * (1 + 1e-9)
    assert (low, high) == ratio_interval(one, other)
