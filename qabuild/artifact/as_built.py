"""Limits that an artifact of low precision sets itself: what its model differed by when it was built.

A gate on F1 leaves room for what quantisation costs, and in that room a fault of the model file goes unseen. So the
manifest records how far the compiled model was from its checkpoint, and a verification demands that again, with a
margin for other processors.
"""

from __future__ import annotations

from math import sqrt

from qabuild.artifact.evidence import Gate, Measurement
from qabuild.artifact.manifest import Artifact

MARGIN = 2.0
"""Factor on the recorded root mean square. Kernels of another processor round elsewhere, so the same error is drawn
again: with OpenVINO's int8 for AVX2, AVX-512 and VNNI, it differed by a factor of 1.2. Ignored token types, shifted
positions or a lost layer are a factor of 5 or more."""

NEGLIGIBLE = 0.01
"""A root mean square, in logits, for which no artifact fails: the fp16 kernels of one GPU may be closer than this."""


def gates(artifact: Artifact, measurement: Measurement) -> list[Gate]:
    """The limits that the artifact's own record sets; none where it has no record, as in fp32."""
    recorded = artifact.manifest.deviation
    if recorded is None:
        return []
    first = set(list(artifact.reference.answers)[: recorded["questions"]])
    changed = sum(flip.id in first for flip in measurement.flips)
    return [
        _at_most("logit_rms_as_built", max(MARGIN * recorded["logit_rms"], NEGLIGIBLE), measurement.logit_rms),
        _at_most("changed_answers_as_built", most_changed(recorded["changed_answers"]), changed),
    ]


def most_changed(recorded: int) -> int:
    """The most answers that may have changed, where `recorded` had when it was built.

    That many and three standard deviations of the difference of two such counts, each a Poisson variable.
    """
    return int(recorded + 3 * sqrt(2 * max(recorded, 1)))


def _at_most(name: str, limit: float, value: float | None) -> Gate:
    passed = value is not None and value <= limit
    return Gate(name=name, limit=limit, value=value, passed=passed, bound="at most")
