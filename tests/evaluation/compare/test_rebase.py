"""A comparison with another baseline."""

from __future__ import annotations

from dataclasses import replace

import contests
import pytest

from qabuild.evaluation.compare.rebase import rebased


@pytest.mark.parametrize("baseline", ["baseline", "ort-fp32", "ort-int8"])
def test_the_outcome_is_that_of_a_comparison_with_that_baseline(baseline):
    given, wanted = contests.comparison(), contests.comparison(baseline)
    moved = rebased(given, baseline)
    assert moved.baseline == baseline
    assert {name: replace(each, f1=round(each.f1, 6)) for name, each in moved.asked.items()} == {
        name: replace(each, f1=round(each.f1, 6)) for name, each in wanted.asked.items()
    }
    for one, other in zip(moved.measured, wanted.measured, strict=True):
        assert one.throughput == other.throughput
        assert one.accuracy.f1_retention == pytest.approx(other.accuracy.f1_retention)
        assert one.accuracy.f1_interval == pytest.approx(other.accuracy.f1_interval, abs=0.5)
        assert {change.id: change.answer for change in one.changes} == {
            change.id: change.answer for change in other.changes
        }
        for change, expected in zip(one.changes, other.changes, strict=True):
            assert change.f1_difference == pytest.approx(expected.f1_difference)


def test_a_comparison_without_a_baseline_holds_no_answers():
    with pytest.raises(ValueError, match="without a baseline"):
        rebased(replace(contests.comparison(), baseline=None), "ort-int8")
