"""What was done to a checkpoint between its source and its compilation, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qabuild.artifact.manifest import Manifest
from qabuild.artifact.tables import Stage
from qabuild.system.units import count_of


def source(manifest: Manifest) -> Mapping[str, Any]:
    """name and revision of the checkpoint that all stages started from; without stages, of the one compiled."""
    if manifest.training:
        return manifest.training["start"]
    first = manifest.stages[0] if manifest.stages else None
    return first["start"] if first and "start" in first else manifest.checkpoint


def described(stages: Sequence[Stage] | None) -> list[str]:
    """One sentence or more for each of a manifest's stages, in order."""
    return [_pruned(stage) or _recovered(stage) or _plain(stage) for stage in stages or ()]


def _pruned(stage: Stage) -> str | None:
    if stage["stage"] != "prune" or not {"widths", "widths_before", "flops", "examples"} <= stage.keys():
        return None
    left, before, examples = stage["widths"], stage["widths_before"], stage["examples"]
    parts = [
        f"{', '.join(str(pair[place]) for pair in left)} {name} of "
        f"{', '.join(dict.fromkeys(str(pair[place]) for pair in before))}"
        for place, name in enumerate(("FFN neurons", "attention heads"))
        if [pair[place] for pair in left] != [pair[place] for pair in before]
    ]
    speedup = stage.get("speedup")
    speed = ""
    if speedup:
        form = f"{speedup['backend']} {speedup['dtype']}"
        speed = f" Asked for {speedup['asked']:g} times the speed in {form}; measured {speedup['measured']:.2f} times."
    return (
        f"Pruned; its layers keep {' and '.join(parts) or 'all'}, {100 * stage['flops']:.1f} % of their operations. "
        f"Importance was measured on {count_of(examples['questions'], 'question')} of {examples['dataset']}.{speed}"
    )


def _recovered(stage: Stage) -> str | None:
    if stage["stage"] != "recover" or "examples" not in stage:
        return None
    examples = stage["examples"]
    questions = count_of(examples["questions"], "question")
    return f"Trained on {questions} of {examples['dataset']} to answer as before it was pruned."


def _plain(stage: Stage) -> str:
    options = ", ".join(f"{name} {value}" for name, value in stage["options"].items() if value is not None)
    return f"{stage['stage']}: {options}."
