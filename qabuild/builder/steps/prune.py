"""The step `prune`: the checkpoint, without its least important FFN neurons and attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.builder.keys import Inputs, flat, package_inputs
from qabuild.builder.steps.step import Context, Facts, Requirements
from qabuild.models.pruning import options, structure
from qabuild.system.hub import is_path
from qabuild.target.model import Target


class Prune:
    name: ClassVar[str] = "prune"
    stage: ClassVar[str] = "prune"
    folder: ClassVar[str | None] = None

    def requires(self, target: Target) -> Requirements:
        return dict.fromkeys(options.PACKAGES, ()) if target.prune else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        table = target.prune
        if table is None:
            return None
        if facts.checkpoint:
            structure.architecture(facts.checkpoint.config, heads=table.prunes_heads)
        elsewhere = {"dataset", "recover", "revision", "fingerprint", *({"split"} if is_path(table.dataset) else ())}
        return {
            "checkpoint": facts.identity,
            "prune.dataset": facts.data_identity("prune.dataset"),
            **flat("prune", table.model_dump(mode="json", exclude=elsewhere)),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest("qabuild.models.pruning.prune"),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.models.pruning.prune import prune_in_child

        assert context.target.prune
        return prune_in_child(
            context.checkpoint, context.target.prune, directory, offline=context.offline, reporter=context.reporter
        )
