"""The steps of the stages `train` and `recover`:

logits    the teacher's logits on the windows that the student learns from, once
search    trials of alpha and temperature, of which the best is taken
train     the training itself, whose result is a checkpoint
recover   the training of a pruned checkpoint, in a stage of its own
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from qabuild.builder.keys import Inputs, flat, key_or_unknown, package_inputs
from qabuild.builder.steps.step import Context, Facts, Requirements, Step
from qabuild.errors import BadTarget
from qabuild.models.training import conditions, options
from qabuild.models.training.options import Fit, StepName
from qabuild.system import documents, files
from qabuild.system.hub import is_path
from qabuild.target.model import Target

WORK = ("qabuild.models.training.launch", "qabuild.models.training.__main__")
"""What starts the process that trains, and what that runs; beside them, the module of the step."""


class _TrainingStep:
    """What these steps have in common."""

    name: ClassVar[str]
    stage: ClassVar[str] = "train"
    folder: ClassVar[str | None] = None

    def table(self, target: Target) -> Fit:
        return target.training

    def requires(self, target: Target) -> Requirements:
        return dict.fromkeys(options.PACKAGES, ()) if self.stage in target.stages else {}

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.models.training.launch import run_in_subprocess
        from qabuild.models.training.request import Request

        target, results = context.target, context.results
        train = self.table(target)
        searched = results["search"].record if "search" in results else {}
        request = Request(
            step=cast(StepName, self.name),
            start=context.checkpoint,
            teacher=context.facts.original,
            train=train,
            distill=target.distill and target.distill.model_copy(update=searched.get("best", {})),
            device=context.inputs[f"{train.table}.device"],
            dtype=context.inputs[f"{train.table}.dtype"],
            logits=results["logits"].directory if "logits" in results else None,
            work=context.work,
            directory=directory,
            offline=context.offline,
        )
        trials = {"search": searched["trials"]} if searched else {}
        return {**run_in_subprocess(request, context.reporter), **trials}

    def _shared(self, target: Target, facts: Facts) -> dict[str, Any]:
        """Device, dtype, packages and code."""
        return {
            **conditions.device_and_dtype(facts.machine, self.table(target)),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest(*WORK, options.MODULES[cast(StepName, self.name)]),
        }


class Logits(_TrainingStep):
    name: ClassVar[str] = "logits"

    def requires(self, target: Target) -> Requirements:
        return super().requires(target) if target.distill else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        if target.distill is None:
            return None
        return {"teacher": facts.original_identity, **_windows(target.training, facts), **self._shared(target, facts)}

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        search = context.target.distill and context.target.distill.search
        if search and search.storage:  # refused now, not once the teacher has answered
            from qabuild.models.training import study

            study.require_usable(search.storage)
        return super().run(context, directory)


class Search(_TrainingStep):
    name: ClassVar[str] = "search"

    def requires(self, target: Target) -> Requirements:
        searches = target.distill and target.distill.search
        return {**super().requires(target), **dict.fromkeys(options.SEARCH_PACKAGES, ("search",))} if searches else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        if target.distill is None or target.distill.search is None:
            return None
        return {
            "checkpoint": facts.identity,
            "logits": _step_key(Logits(), target, facts),
            **_options(target.training),
            **flat("distill.search", target.distill.search.model_dump(mode="json", exclude={"storage"})),
            **self._shared(target, facts),
        }


class Train(_TrainingStep):
    name: ClassVar[str] = "train"

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        conditions.check(target.training, facts.checkpoint, facts.machine)
        return {
            "checkpoint": facts.identity,
            **_windows(target.training, facts),
            **_options(target.training),
            **({"logits": _step_key(Logits(), target, facts)} if target.distill else {}),
            **_weights_of_losses(target, facts),
            **self._shared(target, facts),
        }


class Recover(_TrainingStep):
    name: ClassVar[str] = "recover"
    stage: ClassVar[str] = "recover"

    def table(self, target: Target) -> Fit:
        assert target.prune
        assert target.prune.recover
        return target.prune.recover

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        recover = self.table(target)
        conditions.check(recover, facts.checkpoint, facts.machine)
        return {
            "checkpoint": facts.identity,
            "teacher": facts.original_identity,
            **_windows(recover, facts),
            **_options(recover),
            **self._shared(target, facts),
        }


def is_shared(step: Step, target: Target) -> bool:
    """Whether several hosts carry out the step at once, each a part of it: a search whose trials they share."""
    search = target.distill and target.distill.search
    return step.name == Search.name and bool(search and search.storage)


def _step_key(step: Logits | Search, target: Target, facts: Facts) -> Any:
    inputs = step.inputs(target, facts)
    assert inputs is not None
    return key_or_unknown(inputs)


def _windows(train: Fit, facts: Facts) -> dict[str, Any]:
    """Which windows are learnt from."""
    name = train.table
    drawn = train.samples is not None or train.held_out > 0
    return {
        f"{name}.dataset": facts.data_identity(f"{name}.dataset"),
        f"{name}.configuration": train.configuration,
        f"{name}.split": None if is_path(train.dataset) else train.split,
        f"{name}.samples": train.samples,
        f"{name}.held_out": train.held_out,
        f"{name}.draw": train.seed if drawn else None,
        f"{name}.max_misplaced": train.max_misplaced,
        **flat(f"{name}.columns", train.data.columns.model_dump(exclude_none=True)),
        f"{name}.max_seq_len": train.max_seq_len,
        f"{name}.doc_stride": train.doc_stride,
    }


def _options(train: Fit) -> dict[str, Any]:
    """What else decides the training, but for how often its state is saved."""
    elsewhere = {"dataset", "configuration", "revision", "fingerprint", "split", "samples", "held_out"}
    elsewhere |= {"max_misplaced", "columns", "dtype", "max_seq_len", "doc_stride", "save_steps", "deepspeed"}
    chosen = flat(train.table, train.model_dump(mode="json", exclude=elsewhere))
    config = {f"{train.table}.deepspeed": _content(train)} if train.deepspeed else {}
    return chosen | config


def _content(train: Fit) -> str:
    """A DeepSpeed config counts by what it says, however that is laid out."""
    path = str(train.deepspeed)
    try:
        return json.dumps(documents.read_json(files.read(Path(path))), sort_keys=True)
    except (OSError, ValueError) as error:
        raise BadTarget(
            f"{train.table}.deepspeed: {path}: {error}", "let it name a DeepSpeed config, a JSON file"
        ) from None


def _weights_of_losses(target: Target, facts: Facts) -> dict[str, Any]:
    if target.distill is None:
        return {}
    if target.distill.search:
        return {"search": _step_key(Search(), target, facts)}
    return {"distill.alpha": target.distill.alpha, "distill.temperature": target.distill.temperature}
