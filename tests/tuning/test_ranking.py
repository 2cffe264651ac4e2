"""Which artifact is better, and which cannot be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.tuning.ranking import Timings, equals, ranked, times_better


def timing(seconds=(), milliseconds=(), size=1):
    return Timings(seconds=tuple(seconds), milliseconds=tuple(milliseconds), size=size)


ROUNDS = st.lists(st.floats(0.5, 2), min_size=8, max_size=8)


@given(ROUNDS, ROUNDS, st.sampled_from(["throughput", "latency", "size"]), st.integers(1, 99), st.integers(1, 99))
def test_the_ratio_of_two_is_the_inverse_of_the_other_way_round(one, other, objective, size, larger):
    first = timing(one, [1000 * seconds for seconds in one], size)
    second = timing(other, [1000 * seconds for seconds in other], larger)
    ratio, (low, high) = times_better(first, second, objective)
    inverse, (inverse_low, inverse_high) = times_better(second, first, objective)
    assert ratio * inverse == pytest.approx(1)
    assert low <= ratio * 1.0001
    assert ratio <= high * 1.0001
    assert low * inverse_high == pytest.approx(1, rel=0.2)
    assert high * inverse_low == pytest.approx(1, rel=0.2)


@given(ROUNDS, st.floats(1.1, 3))
def test_what_is_slower_in_each_round_is_told_apart_however_the_rounds_differ(rounds, factor):
    fast, slow = timing(rounds), timing([factor * seconds for seconds in rounds])
    both = {"slow": slow, "fast": fast}
    assert ranked(both, "throughput") == ["fast", "slow"]
    assert equals("fast", both, "throughput") == ["fast"]
    assert times_better(fast, slow, "throughput")[0] == pytest.approx(factor)


def test_what_wins_some_rounds_and_loses_others_cannot_be_told_apart():
    one = timing([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1, 0.9])
    other = timing([1.1, 1.0, 1.0, 0.9, 1.05, 1.1, 0.95, 1.0])
    assert equals("one", {"one": one, "other": other}, "throughput") == ["one", "other"]


def test_one_round_tells_nothing_apart():
    both = {"one": timing([1.0]), "other": timing([9.0])}
    assert equals("one", both, "throughput") == ["one", "other"]


def test_each_objective_ranks_by_its_own_measure():
    several = {
        "small": timing([3.0] * 8, [30.0] * 9, 1),
        "quick": timing([2.0] * 8, [10.0] * 9, 2),
        "throughput": timing([1.0] * 8, [20.0] * 9, 3),
    }
    assert ranked(several, "size")[0] == "small"
    assert ranked(several, "latency")[0] == "quick"
    assert ranked(several, "throughput")[0] == "throughput"
