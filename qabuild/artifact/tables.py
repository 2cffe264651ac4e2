"""The tables of manifest.json: what each holds that is read by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from qabuild.system.documents import OPEN, Count


class Deviation(TypedDict):
    """How far the compiled model was from its checkpoint when it was built."""

    logit_difference: float
    """Largest on the probes."""
    logit_rms: float
    """Root mean square over all logits of the probes."""
    questions: Count
    changed_answers: Count
    """Among the first `questions` of the reference."""


class Named(TypedDict):
    """A checkpoint."""

    name: str
    revision: str | None
    """commit sha, or null"""
    digest: str
    model_type: str | None


@with_config(OPEN)
class BackendTable(TypedDict):
    """The table of the backend; `Manifest.options` parses the others of its keys."""

    name: str


@with_config(OPEN)
class VerifyTable(TypedDict):
    """How the questions are drawn and asked. `Manifest.gates` parses the gates."""

    split: str
    samples: Count | None
    seed: int
    batch_size: Annotated[int, Field(ge=1, le=2**31)]
    gates: dict[str, Any]
    cross_check: NotRequired[float | Literal["all"]]
    stock: NotRequired[float | Literal["all"]]
    """`cross_check`, as qabuild 0.1.0 called it."""
    max_misplaced: NotRequired[float]
    columns: NotRequired[dict[str, str | None] | None]


@with_config(OPEN)
class PublishTable(TypedDict, total=False):
    """Where the target publishes it."""

    repo: str | None
    license: str | None
    data: str | None
    """How much of the questions it shows, where the target says so."""


@with_config(OPEN)
class Record(TypedDict, total=False):
    """What the model card says of the backend's record."""

    needs: dict[str, list[str]]
    limits: list[str]


@with_config(OPEN)
class Teacher(TypedDict):
    """The teacher and its scores."""

    name: str
    exact_match: float
    f1: float


@with_config(OPEN)
class Training(TypedDict):
    """How a checkpoint was trained."""

    start: Named
    teacher: NotRequired[Teacher | None]


@with_config(OPEN)
class Examples(TypedDict):
    """The questions that a stage used."""

    dataset: str
    questions: Count


Widths = list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
"""FFN neurons and attention heads of each layer."""


@with_config(OPEN)
class Speedup(TypedDict):
    """Times as fast as the unpruned artifact."""

    asked: float
    measured: float
    backend: str
    dtype: str


@with_config(OPEN)
class Stage(TypedDict):
    """What a stage did to a checkpoint."""

    stage: str
    target: str
    """Name of the target whose table says how."""
    options: dict[str, Any]
    start: NotRequired[Named]
    """The checkpoint that it changed."""
    examples: NotRequired[Examples]
    widths: NotRequired[Widths]
    widths_before: NotRequired[Widths]
    flops: NotRequired[float]
    """Share of the operations of its layers that is left."""
    speedup: NotRequired[Speedup]
