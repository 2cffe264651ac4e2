"""What an artifact answers beside its checkpoint: measured, not judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from qabuild.artifact import sealed_reference
from qabuild.artifact.evidence import Flip, Measurement, Speed, Stock
from qabuild.artifact.load import load_model
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.evaluation import reference, stock_pipeline
from qabuild.evaluation.bootstrap import mean_interval, ratio_interval
from qabuild.models.backends import backend
from qabuild.qa import data, squad_metric
from qabuild.qa.ask import Answered, Ask, asking, chunks
from qabuild.qa.data import DatasetRef, Question, QuestionSet
from qabuild.system import machine, packages
from qabuild.system.reporter import SILENT, Reporter

ARTIFACT, CHECKPOINT, STOCK = "artifact", "checkpoint", "stock"
"""Who answers: the artifact and the checkpoint in our pipeline, the artifact in the stock one."""


SPEED_QUESTIONS = 512  # how many of the questions artifact and checkpoint answer by turns


WARM_UP = 8  # questions that each answers before the first round


TIE = 1e-4  # two answers whose scores are this close may change places with the order of sums


def measure(
    artifact: Artifact,
    questions: QuestionSet,
    baseline: Any | None = None,
    reporter: Reporter = SILENT,
) -> Measurement:
    """Reload the artifact and put every question through it.

    `baseline` is the checkpoint's own eager fp32 model on the artifact's device, or None: then no speedup is
    measured. Raises MissingEnvironment where the artifact cannot be loaded on this machine, UntrustedInput where
    `questions` are not those of the sealed reference.
    """
    sealed = artifact.reference
    require_same_questions(questions, sealed)
    manifest = artifact.manifest
    model, tokenizer = load_model(artifact)
    squad_v2 = questions.has_unanswerable
    contestants = {ARTIFACT: asking(model, tokenizer, squad_v2=squad_v2)}
    if baseline is not None:
        contestants[CHECKPOINT] = asking(baseline, tokenizer, squad_v2=squad_v2)
    share, batch_size = _stock_share(manifest.verify["stock"]), int(manifest.verify["batch_size"])
    if share and stock_pipeline.is_available():
        contestants[STOCK] = stock_pipeline.RoundTrip(model, tokenizer, batch_size=batch_size, squad_v2=squad_v2)
    rounds = _take_turns(contestants, questions.questions, share, reporter)
    answers = _answers_of(ARTIFACT, rounds)
    return Measurement(
        data=sealed.data,
        questions=len(questions),
        **_compare_answers(questions.questions, answers, sealed.answers),
        samples_per_second=len(questions) / sum(each[ARTIFACT].seconds for each in rounds),
        speed=_speed([each for each in rounds if CHECKPOINT in each]),
        stock=_stock([each for each in rounds if STOCK in each], batch_size, questions, model, tokenizer),
        **_compare_logits(artifact.directory, model, tokenizer, questions, sealed),
        versions=packages.versions({*stock_pipeline.PACKAGES, *backend(manifest.backend["name"]).PACKAGES}),
        machine=machine.describe(),
    )


def require_same_questions(questions: QuestionSet, sealed: sealed_reference.Reference) -> None:
    """Raise UntrustedInput unless these are the questions that the sealed reference answers."""
    if questions.fingerprint != sealed.data["fingerprint"]:
        raise UntrustedInput(
            f"{questions.name}: these are not the questions that the artifact was built with "
            f"(fingerprint {questions.fingerprint[:16]}, sealed {sealed.data['fingerprint'][:16]})",
            "give the same data set at the same revision with --data, or build the artifact on this one",
        )


Round = Mapping[str, Answered]
"""What the contestants of one round made of the same questions, by name."""


def _take_turns(
    contestants: Mapping[str, Ask], questions: Sequence[Question], share: float, reporter: Reporter
) -> list[Round]:
    """Every question to the artifact; round by round, some of them to the others as well.

    Who goes first changes, so that a machine that slows down or speeds up does so for all alike.
    """
    in_chunks = chunks(questions)
    for ask in contestants.values():
        ask(in_chunks[0][:WARM_UP])
    rounds: list[Round] = []
    asked = 0
    with reporter.progress("artifact answers", len(questions)) as advance:
        for number, chunk in enumerate(in_chunks):
            due = {
                ARTIFACT: True,
                CHECKPOINT: asked < SPEED_QUESTIONS,
                STOCK: ceil((number + 1) * share) > ceil(number * share),
            }
            names = [name for name in contestants if due[name]]
            turn = number % len(names)
            rounds.append({name: contestants[name](chunk) for name in names[turn:] + names[:turn]})
            asked += len(chunk)
            advance(len(chunk))
    return rounds


def _answers_of(name: str, rounds: Sequence[Round]) -> dict[str, str]:
    return {question: answer for each in rounds for question, answer in each[name].answers.items()}


def _speed(rounds: Sequence[Round]) -> Speed | None:
    if not rounds:
        return None
    count = sum(len(each[ARTIFACT].answers) for each in rounds)
    own, other = ([each[name].seconds for each in rounds] for name in (ARTIFACT, CHECKPOINT))
    return Speed(
        artifact=count / sum(own),
        checkpoint=count / sum(other),
        speedup=sum(other) / sum(own),
        speedup_interval=ratio_interval(other, own),
        questions=count,
        rounds=len(rounds),
    )


def _stock_share(stock: Any) -> float:
    return 1.0 if stock == "all" else float(stock)


def _stock(
    rounds: Sequence[Round], batch_size: int, questions: QuestionSet, model: Any, tokenizer: Any
) -> Stock | None:
    if not rounds:
        return None
    own, stock = _answers_of(ARTIFACT, rounds), _answers_of(STOCK, rounds)
    differing = [question for question in questions.questions if own.get(question.id) != stock.get(question.id)]
    seconds = {name: sum(each[name].seconds for each in rounds) for name in (ARTIFACT, STOCK)}
    return Stock(
        questions=len(own),
        batch_size=batch_size,
        differences=len(differing),
        ties=_ties(differing, stock, questions.has_unanswerable, model, tokenizer),
        samples_per_second=len(own) / seconds[STOCK],
        times_stock=seconds[STOCK] / seconds[ARTIFACT],
    )


def _ties(differing: Sequence[Question], stock: Mapping[str, str], squad_v2: bool, model: Any, tokenizer: Any) -> int:
    """How many of the questions have the stock pipeline's answer within `TIE` of the best, by our scores."""
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    pipeline = QuestionAnsweringPipeline(model, tokenizer, top_k=5, handle_impossible_answer=squad_v2)
    ties = 0
    for question in differing:
        found: Any = pipeline(question=question.question, context=question.context)
        ranked = found if isinstance(found, list) else [found]
        ties += any(
            each["answer"] == stock[question.id] and ranked[0]["score"] - each["score"] <= TIE for each in ranked
        )
    return ties


def _compare_answers(
    questions: Sequence[Question], answers: Mapping[str, str], expected: Mapping[str, str]
) -> dict[str, Any]:
    gold = {question.id: question.answers for question in questions}
    own, base = squad_metric.score(answers, gold), squad_metric.score(expected, gold)
    own_each, base_each = squad_metric.score_each(answers, gold), squad_metric.score_each(expected, gold)
    differences = [own_each[i].f1 - base_each[i].f1 for i in gold]
    flips = [
        Flip(
            id=question.id,
            question=question.question,
            checkpoint=expected[question.id],
            artifact=answers[question.id],
            gold=question.answers,
            f1_difference=difference,
        )
        for question, difference in zip(questions, differences, strict=True)
        if answers[question.id] != expected[question.id]
    ]
    return {
        "checkpoint_exact_match": base.exact_match,
        "checkpoint_f1": base.f1,
        "exact_match": own.exact_match,
        "f1": own.f1,
        "f1_difference": own.f1 - base.f1,
        "f1_difference_interval": mean_interval(differences),
        "agreement": 1 - len(flips) / len(questions),
        "flips": sorted(flips, key=lambda flip: flip.f1_difference),
    }


def _compare_logits(
    directory: Path, model: Any, tokenizer: Any, questions: QuestionSet, sealed: sealed_reference.Reference
) -> dict[str, Any]:
    import torch

    by_id = {question.id: question for question in questions.questions}
    probes, largest, finite, same_tokens = [], 0.0, True, True
    stored = sealed_reference.read_probes(directory / sealed_reference.FOLDER)
    for ids, shape, probe in zip(sealed.probes, sealed_reference.PROBE_SHAPES, stored, strict=True):
        expected = probe.pop("start_logits"), probe.pop("end_logits")
        own_inputs = reference.encode_probe(tokenizer, [by_id[i] for i in ids], shape)
        same_tokens &= own_inputs.keys() == probe.keys() and all(torch.equal(own_inputs[n], probe[n]) for n in probe)
        real = probe["attention_mask"] == 1
        found = reference.logits(model, probe)
        finite &= all(bool(f[real].isfinite().all()) for f in found)
        difference = max(
            float((f - e)[real].abs().nan_to_num(nan=3e38, posinf=3e38).max())
            for f, e in zip(found, expected, strict=True)
        )
        largest = max(largest, difference)
        batch, sequence = probe["input_ids"].shape
        probes.append({"batch": batch, "sequence": sequence, "logit_difference": difference})
    return {"same_tokens": same_tokens, "finite_logits": finite, "logit_difference": largest, "probes": probes}


def find_questions(artifact: Artifact, source: str | None = None, *, offline: bool = False) -> QuestionSet:
    """The questions that the sealed reference answers, from `source` or from where the artifact says they are."""
    sealed = artifact.reference
    if source is None and sealed.data["file"]:
        raise BadTarget(
            f"{artifact.directory}: its questions come from a file, {sealed.data['dataset']}, which it does not hold",
            "give the file with --data",
        )
    own = sealed.data["dataset"]
    everything = data.load(
        DatasetRef(
            source or own,
            revision=sealed.data["revision"] if source in (None, own) else None,
            split=sealed.data["split"] or "validation",
        ),
        offline=offline,
    )
    return data.select(everything, list(sealed.answers))
