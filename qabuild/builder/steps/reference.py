"""The steps `reference` and `original`: answers of the checkpoint, and of the one that it is to answer like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qabuild.artifact import sealed_reference
from qabuild.builder.keys import Inputs, flat, package_inputs
from qabuild.builder.steps.step import ARTIFACT, Context, Facts, Requirements, require_checkpoint
from qabuild.errors import BadTarget
from qabuild.evaluation import reference
from qabuild.models.checkpoint.interface import stated_positions
from qabuild.qa import ask
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.system.hub import is_path
from qabuild.system.units import count_of
from qabuild.target.model import Target

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

WORK = (
    *("qabuild.evaluation.reference", "qabuild.models.checkpoint.load"),
    *("qabuild.qa.answer_options", "qabuild.qa.data"),
)


class Reference:
    name: ClassVar[str] = "reference"
    stage: ClassVar[str] = ARTIFACT
    folder: ClassVar[str | None] = sealed_reference.FOLDER

    def requires(self, target: Target) -> Requirements:
        return dict.fromkeys(ask.PACKAGES, ())

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        return {
            "checkpoint": facts.identity,
            **flat("verify", _questions(target, facts)),
            **flat("answer", target.answer.model_dump(mode="json")),
            "publish.data": target.shown,
            "reference.device": _device(target, facts),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest(*WORK),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        return {"answer": _answer(context, context.checkpoint, directory)}


class Original:
    """The teacher, or the checkpoint before its training, answers the questions, too: F1 is compared with theirs."""

    name: ClassVar[str] = "original"
    stage: ClassVar[str] = ARTIFACT
    folder: ClassVar[str | None] = sealed_reference.ORIGINAL

    def requires(self, target: Target) -> Requirements:
        return Reference().requires(target) if target.has_original else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        if not target.has_original:
            return None
        return Reference().inputs(target, replace(facts, checkpoint=facts.original, made_by=facts.original_made_by))

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        _answer(context, require_checkpoint(context.facts.original), directory)
        return {}


def score(answers: Path, target: Target, *, offline: bool) -> dict[str, float]:
    """EM and F1, in points, of the answers in that folder, which one of these steps wrote."""
    from qabuild.artifact import disclosure
    from qabuild.builder.leakage import questions_of
    from qabuild.qa import squad_metric

    questions = questions_of(target, offline=offline)
    golds = {question.id: question.answers for question in questions.questions}
    scores = squad_metric.score(disclosure.reveal_answers(sealed_reference.read(answers), questions), golds)
    return {"exact_match": scores.exact_match, "f1": scores.f1}


def check(target: Target, checkpoint: Checkpoint) -> None:
    """Raise BadTarget, before any work, for an [answer] that does not fit the checkpoint, as far as its config says."""
    limit = stated_positions(checkpoint.config)
    if limit is not None:
        with _explained(target, checkpoint):
            Parameters().updated(target.answer.parameters(unanswerable=False)).check(limit)


def _answer(context: Context, checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
    """Write the answers. Returns the parameters of the pipeline."""
    from qabuild.builder.leakage import questions_of
    from qabuild.models.checkpoint.load import load_model, load_tokenizer
    from qabuild.qa import data
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    target = context.target
    questions = questions_of(target, offline=context.offline)
    if questions.misplaced:
        context.reporter.say(
            f"verify.dataset: left out {count_of(len(questions.misplaced), 'question')}, whose answers are not at "
            "their answer_start"
        )
    described = {
        "dataset": questions.name,
        "file": is_path(target.verify.dataset),
        "configuration": questions.configuration,
        "revision": questions.revision,
        "split": questions.split,
        "samples": len(questions),
        "seed": target.verify.seed if target.verify.samples else None,
        "fingerprint": data.fingerprint(questions.questions),
        "shown": target.shown,
    }
    model = load_model(checkpoint).to(context.inputs["reference.device"])
    tokenizer = load_tokenizer(checkpoint.directory)
    parameters = target.answer.parameters(unanswerable=questions.has_unanswerable)
    with _explained(target, checkpoint):
        QuestionAnsweringPipeline(model, tokenizer, **parameters).check()
    reference.write_reference(model, tokenizer, questions, described, parameters, directory, context.reporter)
    return parameters


@contextmanager
def _explained(target: Target, checkpoint: Checkpoint) -> Iterator[None]:
    """Raise BadTarget for parameters that do not fit the checkpoint."""
    try:
        yield
    except ValueError as error:
        hint = "choose another max_seq_len or doc_stride"
        raise BadTarget(f"{target.name}: [answer]: {checkpoint.name}: {error}", hint) from None


def _questions(target: Target, facts: Facts) -> dict[str, Any]:
    """Which questions, and all that the sealed answers say of where the questions are."""
    verify = target.verify
    return {
        "dataset": facts.data_identity("verify.dataset"),
        "source": f"the file {verify.data.shown}" if is_path(verify.dataset) else verify.dataset,
        "configuration": verify.configuration,
        "split": None if is_path(verify.dataset) else verify.split,  # a file has none
        "samples": verify.samples,
        "seed": verify.seed if verify.samples else None,  # it draws nothing where all are asked
        "max_misplaced": verify.max_misplaced,
        "columns": verify.data.columns.model_dump(exclude_none=True),
    }


def _device(target: Target, facts: Facts) -> str:
    """The checkpoint answers on the target's device where that is here, on the CPU where it is not."""
    return "cuda" if target.runtime.device == "cuda" and facts.machine.get("gpus") else "cpu"
