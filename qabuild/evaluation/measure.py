"""Measure an artifact: accuracy, agreement and logits against its checkpoint, and speed. `judge` applies the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from qabuild.artifact import disclosure, measurements, sealed_reference
from qabuild.artifact.evidence import (
    CrossCheck,
    Machine,
    Measurement,
    ReferenceCheck,
    Speed,
)
from qabuild.artifact.load import damage_explained, load_model
from qabuild.artifact.manifest import Artifact
from qabuild.errors import MissingEnvironment
from qabuild.evaluation import cross_check, differences, sealed_questions
from qabuild.evaluation.bootstrap import ratio_interval
from qabuild.evaluation.differences import ARTIFACT
from qabuild.models.backends import backend
from qabuild.qa.ask import Answered, Ask, answerer, chunks, takes_part
from qabuild.qa.data import Question, QuestionSet
from qabuild.system import machine, packages
from qabuild.system.reporter import SILENT, Reporter

CHECKPOINT, SECOND = "checkpoint", "second pipeline"
"""The contestants beside the artifact: the checkpoint in qabuild's pipeline, and the artifact in the cross-check's."""


SPEED_QUESTIONS = 512
"""Questions that the checkpoint answers too, in alternating rounds with the artifact."""
WARM_UP = 8
"""Questions that each contestant answers before the first round."""
TIE = 1e-4
"""Difference of scores within which the order of floating-point sums may swap two answers."""
REFERENCE_TIE = 1e-3
"""The same on another machine or another release of transformers, for fp32."""


def measure(
    artifact: Artifact,
    questions: QuestionSet,
    baseline: Any | None = None,
    reporter: Reporter = SILENT,
    *,
    whole_reference: bool = False,
    allow_native: bool = False,
) -> Measurement:
    """Reload the artifact from disk, run every question, and compare the answers with the sealed reference.

    `baseline` is the checkpoint's eager fp32 model on the artifact's device; without it, no speedup is measured, and
    the reference is not checked. It answers the first `SPEED_QUESTIONS`, or all for a `whole_reference`. The
    measurement is entered in the register of those made here.
    Raises MissingEnvironment if the artifact cannot be loaded on this machine, UntrustedInput if `questions` are not
    those of the sealed reference, or for native code that is not this machine's, unless `allow_native`.
    """
    sealed = artifact.reference
    sealed_questions.require_same(questions, sealed)
    manifest = artifact.manifest
    model, tokenizer = load_model(artifact, allow_native=allow_native, allow_unverified=True)
    parameters = {"handle_impossible_answer": questions.has_unanswerable, **manifest.parameters}
    sizes = differences.batch_sizes(manifest.options, manifest.runtime, manifest.verify["batch_size"])
    contestants: dict[str, Ask] = {
        name: answerer(model, tokenizer, **parameters, batch_size=size) for name, size in sizes.items()
    }
    if baseline is not None:
        contestants[CHECKPOINT] = answerer(baseline, tokenizer, **parameters)
    share = manifest.cross_check
    batch_size = int(manifest.verify["batch_size"])
    second = cross_check.SecondPipeline(model, tokenizer, parameters, batch_size=batch_size)
    if share:
        contestants[SECOND] = second
    asked = len(questions) if whole_reference else SPEED_QUESTIONS
    with damage_explained(artifact.directory):
        rounds = _run_rounds(contestants, questions.questions, share, asked, reporter)
        alike = next((name for name, size in sizes.items() if size == second.batch_size), ARTIFACT)
        checked = _cross_check(
            [turns for turns in rounds if SECOND in turns], alike, second, questions, model, tokenizer, parameters
        )
        compared_logits = differences.of_logits(
            artifact.directory / sealed_reference.FOLDER, model, tokenizer, questions, sealed
        )
    expected = disclosure.reveal_answers(sealed, questions)
    by_size = {size: _answers_by(name, rounds) for name, size in sizes.items()}
    answers, judged = differences.of_worst_batch(questions, expected, by_size)
    reporter.say(_describe(checked))
    measurement = Measurement(
        data=sealed.data,
        questions=len(questions),
        truncated_questions=sum(len(turns[ARTIFACT].truncated) for turns in rounds),
        **judged,
        **differences.of_answers(questions, answers, expected, sealed.data, manifest.gates.confidence),
        original=differences.from_original(artifact, questions, answers),
        samples_per_second=len(questions) / sum(turns[ARTIFACT].seconds for turns in rounds),
        speed=_speed([turns for turns in rounds if CHECKPOINT in turns]),
        cross_check=checked,
        **compared_logits,
        versions=packages.versions({*cross_check.PACKAGES, *backend(manifest.backend["name"]).PACKAGES}),
        machine=cast(Machine, machine.describe()),
        reference_check=_check_reference(rounds, baseline, tokenizer, questions, expected, artifact, parameters),
    )
    _register(artifact, measurement, reporter)
    return measurement


def _register(artifact: Artifact, measurement: Measurement, reporter: Reporter) -> None:
    try:
        measurements.register(artifact, measurement)
    except MissingEnvironment as error:  # the measurement is as good; only `publish` will make it anew
        reporter.say(f"the measurement was not registered: {error.message}; {error.hint}")


Round = Mapping[str, Answered]
"""Answers of each contestant to the same questions, by the contestant's name."""


def _run_rounds(
    contestants: Mapping[str, Ask], questions: Sequence[Question], share: float, asked: int, reporter: Reporter
) -> list[Round]:
    """Run every question on the artifact, `asked` of them on the checkpoint, and a `share` on the second pipeline.

    The order rotates, so that a change in the machine's speed affects all alike.
    """
    batches = chunks(questions)
    for ask in contestants.values():
        ask(batches[0][:WARM_UP])
    rounds: list[Round] = []
    done = 0
    with reporter.progress("artifact answers", len(questions)) as advance:
        for number, batch in enumerate(batches):
            asks = {CHECKPOINT: done < asked, SECOND: takes_part(number, share)}
            names = [name for name in contestants if asks.get(name, True)]
            first = number % len(names)
            rounds.append({name: contestants[name](batch) for name in names[first:] + names[:first]})
            done += len(batch)
            advance(len(batch))
    return rounds


def _answers_by(name: str, rounds: Sequence[Round]) -> dict[str, str]:
    return {question: answer for turns in rounds for question, answer in turns[name].answers.items()}


def _speed(rounds: Sequence[Round]) -> Speed | None:
    if not rounds:
        return None
    count = sum(len(turns[ARTIFACT].answers) for turns in rounds)
    artifact, checkpoint = ([turns[name].seconds for turns in rounds] for name in (ARTIFACT, CHECKPOINT))
    return Speed(
        artifact=count / sum(artifact),
        checkpoint=count / sum(checkpoint),
        speedup=sum(checkpoint) / sum(artifact),
        speedup_interval=ratio_interval(checkpoint, artifact),
        questions=count,
        rounds=len(rounds),
    )


def _cross_check(
    rounds: Sequence[Round],
    name: str,
    second: cross_check.SecondPipeline,
    questions: QuestionSet,
    model: Any,
    tokenizer: Any,
    parameters: Mapping[str, Any],
) -> CrossCheck | None:
    """Compare the second pipeline with the artifact in ours, whose rounds have that `name`."""
    if not rounds:
        return None
    answers, others = _answers_by(name, rounds), _answers_by(SECOND, rounds)
    differing = [question for question in questions.questions if answers.get(question.id) != others.get(question.id)]
    own, other = (sum(turns[each].seconds for turns in rounds) for each in (name, SECOND))
    return CrossCheck(
        pipeline=second.name,
        questions=len(answers),
        batch_size=second.batch_size,
        differences=len(differing),
        ties=_ties(differing, answers, others, parameters, model, tokenizer),
        samples_per_second=len(answers) / other,
        speedup=other / own,
    )


def _describe(checked: CrossCheck | None) -> str:
    if checked is None:
        return "cross-check: disabled by the target (verify.cross_check = 0)"
    same = checked.questions - checked.differences
    ties = f", {checked.ties} tied" if checked.ties else ""
    return f"cross-check: {cross_check.LABELS[checked.pipeline]} gave {same} of {checked.questions} answers alike{ties}"


def _ties(
    differing: Sequence[Question],
    answers: Mapping[str, str],
    others: Mapping[str, str],
    parameters: Mapping[str, Any],
    model: Any,
    tokenizer: Any,
    tie: float = TIE,
) -> int:
    """Number of questions whose two answers have scores within `tie` of each other, in qabuild's pipeline."""
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    pipeline = QuestionAnsweringPipeline(model, tokenizer, **parameters, top_k=5)
    ties = 0
    for question in differing:
        result: Any = pipeline(question=question.question, context=question.context)
        ranked = result if isinstance(result, list) else [result]  # a single answer is not in a list
        scores = {answer["answer"]: answer["score"] for answer in ranked}
        own, other = scores.get(answers[question.id]), scores.get(others[question.id])
        ties += own is not None and other is not None and abs(own - other) <= tie
    return ties


def _check_reference(
    rounds: Sequence[Round],
    baseline: Any | None,
    tokenizer: Any,
    questions: QuestionSet,
    expected: Mapping[str, str],
    artifact: Artifact,
    parameters: Mapping[str, Any],
) -> ReferenceCheck | None:
    """Compare the checkpoint's answers and logits with the sealed ones; `expected` are the sealed answers."""
    if baseline is None:
        return None
    answers = _answers_by(CHECKPOINT, [turns for turns in rounds if CHECKPOINT in turns])
    differing = [q for q in questions.questions if q.id in answers and answers[q.id] != expected[q.id]]
    folder = artifact.directory / sealed_reference.FOLDER
    logits = differences.of_logits(folder, baseline, tokenizer, questions, artifact.reference)
    return ReferenceCheck(
        questions=len(answers),
        differences=len(differing),
        ties=_ties(differing, answers, expected, parameters, baseline, tokenizer, REFERENCE_TIE),
        logit_difference=logits["logit_difference"],
    )
