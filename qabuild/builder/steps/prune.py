"""The steps of the stage `prune`:

latency   the times that widths are chosen by, for a speedup
prune     the checkpoint, without its least important FFN neurons and attention heads
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.builder.keys import Inputs, flat, key_or_unknown, package_inputs
from qabuild.builder.steps.compile import Compile
from qabuild.builder.steps.deviation import MEASURED_ON
from qabuild.builder.steps.step import Context, Facts, Requirements
from qabuild.models import calibration
from qabuild.models.backends import BACKENDS
from qabuild.models.pruning import latency, options, structure
from qabuild.models.pruning.latency_table import Latency as LatencyTable
from qabuild.system.hub import is_path
from qabuild.target.model import Target

DRAW = {"samples", "seed", "configuration", "split", "max_misplaced", "columns"}
"""Keys of the table that say which questions of the data set are asked."""


class Latency:
    name: ClassVar[str] = "latency"
    stage: ClassVar[str] = "prune"
    folder: ClassVar[str | None] = None

    def requires(self, target: Target) -> Requirements:
        return Compile().requires(target) if target.prune and target.prune.speedup else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        if target.prune is None or target.prune.speedup is None:
            return None
        return {
            "checkpoint": facts.identity,
            "prune.dataset": facts.data_identity("prune.dataset"),
            **{key: value for key, value in _options(target.prune).items() if key.split(".")[1] in DRAW},
            **flat("backend", calibration.options_record(latency.briefly(target.backend))),
            **flat("runtime", target.runtime.model_dump(mode="json")),
            **flat("answer", target.answer.model_dump(mode="json")),
            **package_inputs(facts.versions, self.requires(target)),
            **flat("machine", {name: value for name, value in facts.machine.items() if name in MEASURED_ON}),
            "code": facts.code.digest("qabuild.models.pruning.latency", BACKENDS[target.backend.name]),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        return _measured(context, directory)


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
            structure.architecture(facts.checkpoint.config, heads=table.prunes_heads(facts.checkpoint.config))
            structure.require_blocks(facts.checkpoint.config, table.round_to)
        times = Latency().inputs(target, facts)
        return {
            "checkpoint": facts.identity,
            "prune.dataset": facts.data_identity("prune.dataset"),
            **_options(table),
            **({"latency": key_or_unknown(times)} if times else {}),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest("qabuild.models.pruning.prune"),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.models.pruning.prune import prune_in_child

        assert context.target.prune
        times = context.results["latency"].record["times"] if "latency" in context.results else None
        record = prune_in_child(
            context.checkpoint,
            context.target.prune,
            directory,
            latency=LatencyTable(times) if times else None,
            offline=context.offline,
            reporter=context.reporter,
        )
        if times is None:
            return record
        reached = _measured(context, directory, pruned=directory)["time"]
        target = context.target
        measured = {"measured": round(1 / reached, 3), "backend": target.backend.name, "dtype": target.runtime.dtype}
        return {**record, "speedup": {**record["speedup"], **measured}}


def _options(table: options.Prune) -> dict[str, Any]:
    """The keys of the table that decide what is pruned, beside the data set's name."""
    elsewhere = {"dataset", "recover", "revision", "fingerprint", *({"split"} if is_path(table.dataset) else ())}
    return flat("prune", table.model_dump(mode="json", exclude=elsewhere))


def _measured(context: Context, directory: Path, pruned: Path | None = None) -> Mapping[str, Any]:
    target = context.target
    assert target.prune
    return latency.measure_in_child(
        context.checkpoint,
        target.prune,
        target.backend,
        target.runtime,
        target.answer,
        directory,
        pruned=pruned,
        offline=context.offline,
        reporter=context.reporter,
    )
