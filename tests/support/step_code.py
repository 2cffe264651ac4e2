"""The code that the key of each step covers, read from a source tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from qabuild.builder.closure import ImportGraph
from qabuild.builder.facts import TargetFacts
from qabuild.builder.steps import of_stage
from qabuild.builder.steps.step import ARTIFACT, VERIFICATION
from qabuild.target.model import Target

Known = Mapping[str, tuple[Target, TargetFacts]]
"""Targets by name, with the facts about each."""


class Recorder(ImportGraph):
    """ImportGraph whose digests are the names of the modules that they begin with."""

    def digest(self, *roots: str) -> str:
        return " ".join(roots)


def code_inputs(facts: Known, source: ImportGraph) -> Iterator[tuple[str, str, str]]:
    """Target, step and digest of the step's code, read from `source`."""
    for name, (target, known) in facts.items():
        views = [(step, target, known) for stage in (ARTIFACT, VERIFICATION) for step in of_stage(stage)]
        views += [
            (step, derivation.derived.target, derivation.facts)
            for derivation in known.derivations
            for step in of_stage(derivation.derived.stage)
        ]
        for step, owner, seen in views:
            inputs = step.inputs(owner, replace(seen, code=source))
            if inputs is not None:
                yield name, step.name, inputs["code"]


def roots(facts: Known) -> dict[tuple[str, str], tuple[str, ...]]:
    """The modules that the code of each step begins with, by target and step."""
    return {(name, step): tuple(code.split()) for name, step, code in code_inputs(facts, Recorder())}
