"""The build steps: one literal table, in the order in which they are carried out.

To add a step: write a module that satisfies `Step`, and add it to `STEPS`. A step that makes a checkpoint from another
one has the name of its stage, which stands in `qabuild.target.model.STAGES`.
"""

from __future__ import annotations

from qabuild.builder.steps import compile, deviation, prune, reference, training, verify
from qabuild.builder.steps.step import Step

STEPS: tuple[Step, ...] = (
    training.Logits(),
    training.Search(),
    training.Train(),
    prune.Latency(),
    prune.Prune(),
    training.Recover(),
    compile.Compile(),
    reference.Reference(),
    reference.Original(),
    deviation.Deviation(),
    verify.Verify(),
)


def of_stage(stage: str) -> tuple[Step, ...]:
    """The steps of one stage, in order."""
    return tuple(step for step in STEPS if step.stage == stage)
