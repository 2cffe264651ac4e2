"""Exact match and F1 by the official scripts' rules: hand-worked cases, and comparison with transformers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qabuild.qa.squad_metric import Scores, Version, exact_match, f1, normalise, score, score_each, version_of

# Words that normalisation removes wholly, partly or not at all, and characters that it treats specially.
WORDS = st.sampled_from(
    ["the", "The", "a", "an", "An", "!", "...", "cat", "Cat,", "dogs", "the-cat", "x.y", "é", "theatre"]
)
SPACES = st.sampled_from([" ", "  ", "\t", "\n", "\u00a0", "\u3000"])
PHRASES = st.lists(st.builds(str.__add__, WORDS, SPACES), max_size=6).map("".join)
TEXTS = st.one_of(PHRASES, st.text(max_size=20))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat sat.", "cat sat"),
        ("an apple, a day", "apple day"),
        ("theatre another Anna", "theatre another anna"),
        ("the-cat", "thecat"),  # punctuation is removed first, so 'the' is no longer a word
        ("10 a.m.", "10 am"),
        ("«Ünïcode»—dash", "«ünïcode»—dash"),  # only ASCII punctuation is removed
        ("the", ""),
        ("", ""),
        ("a\u00a0b", "b"),
    ],
)
def test_answers_are_normalised_like_the_official_scripts(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("Denver Broncos won", ["Broncos", "Denver Broncos"], 0, 0.8),  # the best of 1/2 and 4/5
        ("cat cat cat", ["cat"], 0, 0.5),  # a token counts as often as it occurs on both sides
        ("cat", ["dog"], 0, 0),
        ("", ["dog"], 0, 0),
        ("19", ["nineteen", "19th", "19"], 1, 1),
    ],
)
def test_a_prediction_scores_against_its_best_gold_answer(
    prediction: str, answers: list[str], exact: float, overlap: float
) -> None:
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(overlap, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "version", "exact", "overlap"),
    [
        # v1.1 keeps a gold answer that normalises to nothing: equal strings without a common token.
        ("the", ["The"], "1.1", 1, 0),
        ("", ["!", "cat"], "1.1", 1, 0),
        # v2.0 drops it. Without another gold answer the question counts as unanswerable.
        ("the", ["The"], "2.0", 1, 1),
        ("cat", ["The"], "2.0", 0, 0),
        ("", ["!", "cat"], "2.0", 0, 0),
        # An unanswerable question is scored as in v2.0 with either version.
        ("", [], "1.1", 1, 1),
        ("", [], "2.0", 1, 1),
        ("a", [], "1.1", 1, 1),
        ("cat", [], "1.1", 0, 0),
        ("cat", [], "2.0", 0, 0),
    ],
)
def test_the_versions_differ_on_answers_that_normalise_to_nothing(
    prediction: str, answers: list[str], version: Version, exact: float, overlap: float
) -> None:
    assert exact_match(prediction, answers, version) == exact
    assert f1(prediction, answers, version) == overlap


def test_scores_are_means_in_per_cent() -> None:
    answers = {"q1": ["Denver Broncos"], "q2": ["Santa Clara", "in Santa Clara"], "q3": ["gold"]}
    predictions = {"q1": "the Denver Broncos", "q2": "Clara", "q3": "silver"}
    assert score(predictions, answers) == Scores(exact_match=pytest.approx(100 / 3), f1=pytest.approx(500 / 9))
    assert score_each(predictions, answers) == {
        "q1": Scores(100.0, 100.0),
        "q2": Scores(0.0, pytest.approx(200 / 3)),
        "q3": Scores(0.0, 0.0),
    }


def test_a_set_with_an_unanswerable_question_is_scored_by_version_2() -> None:
    answered = {"q1": ["The"]}
    assert version_of(answered) == "1.1"
    assert score({"q1": "the"}, answered).f1 == 0.0
    mixed = {"q1": ["The"], "q2": []}
    assert version_of(mixed) == "2.0"
    assert score({"q1": "the", "q2": ""}, mixed) == Scores(100.0, 100.0)
    assert score({"q1": "the", "q2": "x"}, mixed, "1.1") == Scores(50.0, 0.0)


def test_a_missing_prediction_raises_instead_of_scoring_zero() -> None:
    answers = {f"q{number}": ["x"] for number in range(10)}
    with pytest.raises(ValueError, match=r"9 of 10 questions: q1, q2, q3, q4, q5, \.\.\."):
        score({"q0": "x"}, answers)
    with pytest.raises(ValueError, match=r"1 of 10 questions: q7$"):
        score_each({name: "x" for name in answers if name != "q7"}, answers)


def test_scoring_no_questions_raises() -> None:
    with pytest.raises(ValueError, match="no questions"):
        score({}, {})


def test_predictions_for_other_questions_are_ignored() -> None:
    assert score({"q1": "x", "other": "y"}, {"q1": ["x"]}) == Scores(100.0, 100.0)


@pytest.mark.line457
@given(prediction=TEXTS, answers=st.lists(TEXTS, max_size=4))
def test_version_2_agrees_with_transformers(prediction: str, answers: list[str]) -> None:
    from transformers.data.metrics import squad_metrics

    golds = [answer for answer in answers if squad_metrics.normalize_answer(answer)] or [""]
    assert exact_match(prediction, answers, "2.0") == max(squad_metrics.compute_exact(g, prediction) for g in golds)
    assert f1(prediction, answers, "2.0") == max(squad_metrics.compute_f1(g, prediction) for g in golds)


@pytest.mark.line457
@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=4))
def test_version_1_agrees_with_transformers_on_answers_with_tokens(prediction: str, answers: list[str]) -> None:
    from transformers.data.metrics import squad_metrics

    assume(all(map(normalise, answers)))
    assert exact_match(prediction, answers) == max(squad_metrics.compute_exact(g, prediction) for g in answers)
    assert f1(prediction, answers) == max(squad_metrics.compute_f1(g, prediction) for g in answers)


@pytest.mark.line457
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3)), min_size=1, max_size=6))
def test_scores_of_a_set_agree_with_transformers(rows: list[tuple[str, list[str]]]) -> None:
    from transformers.data.metrics import squad_metrics
    from transformers.data.processors.squad import SquadExample

    examples = [
        SquadExample(str(number), "?", "", None, None, "", [{"text": gold} for gold in golds], is_impossible=not golds)
        for number, (_, golds) in enumerate(rows)
    ]
    predictions = {str(number): prediction for number, (prediction, _) in enumerate(rows)}
    expected = squad_metrics.squad_evaluate(examples, predictions)
    scores = score(predictions, {str(number): golds for number, (_, golds) in enumerate(rows)}, "2.0")
    assert scores == Scores(pytest.approx(expected["exact"]), pytest.approx(expected["f1"]))


@given(prediction=TEXTS, answers=st.lists(TEXTS, max_size=4), version=st.sampled_from(["1.1", "2.0"]))
def test_scores_are_within_bounds(prediction: str, answers: Sequence[str], version: Version) -> None:
    exact, overlap = exact_match(prediction, answers, version), f1(prediction, answers, version)
    assert exact in (0.0, 1.0)
    assert 0.0 <= overlap <= 1.0
    assert overlap == 1.0 or exact == 0.0 or not normalise(prediction)
    assert exact_match(prediction, [*answers, prediction], "1.1") == 1.0
    assert f1(prediction, [*answers, "cat"], "1.1") >= (f1(prediction, answers, "1.1") if answers else 0.0)
