"""Contests whose outcome is known: runs as measuring would give them, of artifacts that are never loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qabuild.artifact.evidence import Flip, Measurement, Verification
from qabuild.artifact.manifest import Artifact, Manifest, SealedFile
from qabuild.artifact.sealed_reference import Reference
from qabuild.errors import MissingEnvironment
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Comparison, Failure, Time
from qabuild.evaluation.compare.rounds import Run, Runs
from qabuild.evaluation.compare.score import score
from qabuild.evaluation.compare.worker_pool import Turn
from qabuild.models.runtime import Runtime
from qabuild.qa.ask import CHUNK
from qabuild.qa.data import Question, QuestionSet
from qabuild.qa.data.questions import question_set
from qabuild.system import machine, packages

Answer = tuple[str, int, int]


def questions(count: int = 160) -> QuestionSet:
    """Questions of two kinds of answer, after characters that JavaScript counts twice."""
    made = []
    for number in range(count):
        context = f"\U0001f3db The {number}th bridge was built by Alma & <b>Serin</b> in {1800 + number}. It stands."
        answer = f"Alma & <b>Serin</b> in {1800 + number}"
        made.append(
            Question(
                id=f"q{number}",
                question=f"Who built the {number}th bridge, and when?",
                context=context,
                answers=(answer,),
                answer_starts=(context.index(answer),),
            )
        )
    return question_set(tuple(made), "bridges")


def right(question: Question) -> Answer:
    """The gold answer."""
    start = question.answer_starts[0]
    return question.answers[0], start, start + len(question.answers[0])


def partial(question: Question) -> Answer:
    """The year alone, which is part of the gold answer."""
    text = question.answers[0][-4:]
    start = question.context.index(text)
    return text, start, start + len(text)


def answers(asked: QuestionSet, wrong: Sequence[int] = ()) -> list[Answer]:
    """Right answers, and partial ones to those of `wrong`."""
    return [partial(each) if number in wrong else right(each) for number, each in enumerate(asked.questions)]


def contestant(
    name: str,
    asked: QuestionSet,
    verified: Sequence[Answer],
    *,
    backend: Mapping[str, Any] | None = None,
    dtype: str = "fp32",
    gates: Mapping[str, Any] | None = None,
    elsewhere: bool = False,
) -> Contestant:
    """One whose checkpoint answers all right, and which answered `verified` when it was verified."""
    manifest = Manifest(
        name=name,
        qabuild="0.1.0",
        checkpoint={"name": "sample", "revision": None, "digest": "c" * 64, "model_type": "roberta"},
        backend=dict(backend or {"name": "eager"}),
        runtime=Runtime(device="cpu", dtype=dtype),
        verify={"gates": dict(gates or {}), "batch_size": 8},
        publish={},
        record={"fused": {"Attention": 4}},
        versions={"torch": "2.13.0"},
        steps={},
        files={
            "model.bin": SealedFile(size=90_000_000, sha256="0" * 64),
            "reference/answers.json": SealedFile(size=5_000_000, sha256="0" * 64),
        },
    )
    artifact = Artifact(directory=Path("artifacts", name), manifest=manifest, digest="d" * 64)
    sealed = {each.id: right(each)[0] for each in asked.questions}
    flips = [
        Flip(id=q.id, question=q.question, checkpoint=sealed[q.id], artifact=text, gold=q.answers, f1_difference=-1)
        for q, (text, _, _) in zip(asked.questions, verified, strict=True)
        if text != sealed[q.id]
    ]
    return Contestant(
        name=name,
        artifact=artifact,
        verification=_verification(name, flips, {"cpu": "another"} if elsewhere else machine.describe()),
        reference=Reference(answers=sealed, data={"dataset": "bridges", "fingerprint": asked.fingerprint}, probes=()),
        dataset=None,
    )


def run(
    one: Contestant,
    asked: QuestionSet,
    said: Sequence[Answer],
    *,
    seconds_per_question: float = 0.01,
    noise: float = 0.0,
    drift: Sequence[float] | None = None,
    seed: int = 0,
    batch_sizes: Sequence[int] = (8,),
    latency: bool = False,
    judged: Sequence[int] = (),
) -> Run:
    """What measuring gives where every round takes so long, times its `drift` and a lognormal `noise`."""
    draw = np.random.default_rng(seed)
    rounds = [said[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]

    def turns(pace: float, size: int = 8) -> list[Turn]:
        made = []
        for number, part in enumerate(rounds):
            spent = (
                len(part) * pace * (drift[number] if drift is not None else 1) * float(np.exp(draw.normal(0, noise)))
            )
            calls = [(size, 32 * (1 + number % 4), 0.8 * spent / 4)] * 4
            made.append(Turn(answers=part, seconds=[spent], calls=calls, peak_memory=500_000_000 + number))
        return made

    one_by_one = draw.lognormal(np.log(seconds_per_question), 0.3, len(asked)).tolist()
    singly = Turn(answers=list(said), seconds=one_by_one, calls=[(1, 96, s) for s in one_by_one], peak_memory=1)
    return Run(
        contestant=one,
        load_seconds=2.5,
        audit=turns(seconds_per_question)[:2],
        throughput={size: turns(seconds_per_question * (1 + 1 / size), size) for size in batch_sizes},
        latency=[singly] if latency else [],
        judged={size: turns(seconds_per_question, size) for size in judged},
    )


def runs(*made: Run, failures: Sequence[Failure] = ()) -> Runs:
    """Of one contest."""
    return Runs(runs=made, failures=failures, time=Time(loading=10, measuring=102, answering=100))


def comparison(baseline: str | None = None) -> Comparison:
    """Three artifacts, the last of which loses some answers and gains one; a fourth was not measured."""
    asked = questions()
    base = answers(asked, wrong=[3])
    lossy = answers(asked, wrong=[5, 6, 7, 90])
    entries = [
        ("baseline", {"name": "eager"}, "fp32", base, 0.020),
        ("ort-fp32", {"name": "onnxruntime", "level": 2}, "fp32", base, 0.011),
        ("ort-int8", {"name": "onnxruntime", "level": 2}, "int8", lossy, 0.006),
    ]
    made = [
        run(
            contestant(
                name, asked, said, backend=backend, dtype=dtype, gates={"min_f1_retention": 0.9, "min_agreement": 0.9}
            ),
            asked,
            said,
            seconds_per_question=pace,
            noise=0.05,
            seed=seed,
            batch_sizes=(8, 1, 32),
            latency=True,
        )
        for seed, (name, backend, dtype, said, pace) in enumerate(entries)
    ]
    absent = Failure.of("on-a-gpu", Path("artifacts/on-a-gpu"), MissingEnvironment("no CUDA device here", "get one"))
    return score(runs(*made, failures=[absent]), asked, baseline)


def _verification(name: str, flips: Sequence[Flip], where: Mapping[str, Any]) -> Verification:
    measurement = Measurement(
        data={},
        questions=1,
        checkpoint_exact_match=100,
        checkpoint_f1=100,
        exact_match=100,
        f1=100,
        f1_difference=0,
        f1_difference_interval=(0, 0),
        agreement=1,
        flips=flips,
        samples_per_second=1,
        speed=None,
        cross_check=None,
        same_tokens=True,
        finite_logits=True,
        logit_difference=0,
        probes=[],
        versions=packages.versions(["torch"]),
        machine=where,
    )
    return Verification(
        artifact=name, manifest="d" * 64, passed=True, gates=[], measurement=measurement, verified_at="2026-01-01"
    )
