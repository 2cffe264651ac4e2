"""The evidence: results of verifying an artifact, and whether it passed. Values only; `evaluation` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from qabuild.artifact.manifest import EVIDENCE, Artifact
from qabuild.artifact.sealed_reference import Data
from qabuild.errors import UntrustedInput
from qabuild.system import documents
from qabuild.system.documents import OPEN, Count

Asked = Annotated[int, Field(ge=1, le=2**53)]
"""A number of questions."""

FORMAT = 2
"""Format of verification.json; 1 was that of qabuild 0.1.0, which names none."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A question that artifact and checkpoint answer differently."""

    id: str
    question: str
    checkpoint: str
    artifact: str
    gold: Sequence[str]
    f1_difference: float
    """F1 of the artifact's answer minus F1 of the checkpoint's, in points; negative where the artifact is worse."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Samples/s of artifact and checkpoint on the same questions, in alternating rounds of one run."""

    artifact: float
    checkpoint: float
    speedup: float
    speedup_interval: tuple[float, float]
    """95 %, bootstrap over the rounds."""
    questions: Asked
    rounds: Asked


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """A second pipeline compared with ours: same artifact and questions, in alternating rounds."""

    pipeline: str = "stock"
    """"stock", transformers' own, or "plain_decoder"."""
    questions: Asked
    batch_size: Asked
    differences: Count
    """Questions that the two answer differently; batches differ between them, which changes logits slightly."""
    ties: Count
    """Those `differences` where our scores of the two answers differ by at most 1e-4."""
    samples_per_second: float
    """Of the second pipeline."""
    speedup: float
    """Samples/s of our pipeline over those of the second."""

    @property
    def agreement(self) -> float:
        """Share of questions with the same answer from both; a tie counts as the same."""
        return 1 - (self.differences - self.ties) / self.questions


@with_config(documents.CLOSED)
class ProbeDifference(TypedDict):
    """Shape of a probe, and the largest difference of a logit on it."""

    batch: Count
    sequence: Count
    logit_difference: float


@with_config(OPEN)
class Machine(TypedDict, total=False):
    """The hardware and system of a measurement."""

    cpu: str
    cores: Count
    instruction_sets: Sequence[str]
    gpus: Sequence[str]
    gpu_architecture: str | None
    driver: str | None
    system: str
    python: str


@dataclass(frozen=True, kw_only=True)
class ReferenceCheck:
    """The checkpoint, which answered again, compared with the sealed reference."""

    questions: int
    differences: int
    """Questions that it answers differently now."""
    ties: int
    """Those `differences` where its scores of the two answers differ by at most 1e-3."""
    logit_difference: float
    """Largest to the sealed logits of the probes, where attention_mask is 1."""

    @property
    def agreement(self) -> float:
        """Share of questions with the same answer; a tie counts as the same."""
        return 1 - (self.differences - self.ties) / self.questions


@dataclass(frozen=True, kw_only=True)
class BatchAccuracy:
    """Scores of an artifact whose answers depend on the batch, at one batch size."""

    batch_size: int
    """Windows of a batch."""
    exact_match: float
    f1: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Original:
    """Scores of the original, in points, and the artifact's F1 beside it, on the same questions."""

    __pydantic_config__ = documents.CLOSED

    exact_match: float
    f1: float
    f1_difference: float
    """F1 of the artifact less that of the original."""
    f1_difference_interval: tuple[float, float]
    """95 %, paired bootstrap over the questions."""
    f1_difference_bounds: tuple[float, float] | None = None
    """The interval at the `confidence` of the gates; None where they state none."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a verification measured, before any gate is applied."""

    __pydantic_config__ = documents.CLOSED

    data: Data
    questions: Asked
    checkpoint_exact_match: float
    checkpoint_f1: float
    exact_match: float
    f1: float
    f1_difference: float
    f1_difference_interval: tuple[float, float]
    """95 %, paired bootstrap over the questions, in points."""
    agreement: float
    """Share of questions with the same answer text."""
    flips: Sequence[Flip]
    samples_per_second: float
    """The artifact alone, over all questions."""
    speed: Speed | None
    """None where the checkpoint was not available to be measured as well."""
    cross_check: CrossCheck | None
    """None where the target disables it."""
    same_tokens: bool
    """Whether the artifact's tokenizer reproduces the sealed input ids of the probes."""
    finite_logits: bool
    logit_difference: float
    """Largest on the probes, where attention_mask is 1."""
    probes: Sequence[ProbeDifference]
    versions: Mapping[str, str]
    machine: Machine
    f1_difference_interval_999: tuple[float, float] | None = None
    """As `f1_difference_interval`, at 99.9 %; None in evidence of qabuild 0.1.0."""
    reference_check: ReferenceCheck | None = None
    """None where the checkpoint was not available, and in evidence of qabuild 0.1.0."""
    logit_rms: float | None = None
    """Root mean square of the difference of a logit, over all probes; None in evidence of earlier versions."""
    batch_size: int | None = None
    """Windows per batch of the answers above, where answers depend on the batch: the one of the worst F1."""
    by_batch: Sequence[BatchAccuracy] = ()
    """At each batch size, where answers depend on it; else empty."""
    f1_difference_bounds: tuple[float, float] | None = None
    """As `f1_difference_interval`, at the `confidence` of the gates; None where they state none."""
    original: Original | None = None
    """None where the artifact holds no answers of an original."""
    truncated_questions: Count = 0
    """Questions of more tokens than were read."""

    @property
    def f1_retention(self) -> float:
        """F1 of the artifact over F1 of the checkpoint; 0 where the checkpoint's F1 is 0."""
        return self.f1 / self.checkpoint_f1 if self.checkpoint_f1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "f1_retention": self.f1_retention}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Measurement:
        """Raises ValueError where the document is no measurement."""
        return documents.typed(cls, cls.current(document))

    @staticmethod
    def current(document: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the document, under their present names."""
        fields = {name: value for name, value in document.items() if name != "f1_retention"}
        if "stock" in fields:  # qabuild 0.1.0
            stock, renamed = fields.pop("stock"), {"times_stock": "speedup"}
            renames = isinstance(stock, dict)
            fields["cross_check"] = {renamed.get(k, k): v for k, v in stock.items()} if renames else stock
        return fields


Bound = Literal["at least", "at most"]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition that the artifact must meet."""

    name: str
    limit: float | bool
    value: float | bool | None
    passed: bool
    confidence: float | None = None
    """The confidence level of the interval whose worse end is `value`; None where it is what was measured."""
    bound: Bound | None = None
    """Which side of `limit` passes; None where `value` must equal it, and in evidence of earlier versions."""


def describe(gate: Gate) -> str:
    """The gate in one line: measured value and limit."""
    at = "" if gate.confidence is None else f" with {100 * gate.confidence:g} % confidence"
    return f"{gate.name}: {figure(gate.value)}{at}, must be {requirement(gate)}"


def requirement(gate: Gate) -> str:
    """What the gate demands: "at least 0.99", "at most 0.5" or "true"."""
    return f"{gate.bound} {figure(gate.limit)}" if gate.bound else figure(gate.limit)


def figure(value: float | bool | None) -> str:
    """A gate's value or limit as messages show it."""
    return "not measured" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.6g}"


def at_batch(batch_size: int | None) -> str:
    """What to add to a figure of a measurement with that `batch_size`; nothing if answers do not depend on it."""
    return "" if batch_size is None else f" at batch {batch_size}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The evidence: the measurement of an artifact, and whether it passed its gates."""

    __pydantic_config__ = documents.CLOSED

    artifact: str
    manifest: str
    """Digest of the manifest: the evidence applies to these bytes only."""
    passed: bool
    gates: Sequence[Gate]
    measurement: Measurement
    verified_at: str
    """UTC, ISO 8601."""
    key: str | None = None
    """Key of the plan's step that measured it; None outside a build."""
    other_versions: Mapping[str, str] = field(default_factory=dict)
    """Packages pinned by requirements.txt that were installed in another version: the pinned ones are not verified."""
    format: int = FORMAT

    @property
    def failed_gates(self) -> list[Gate]:
        """Those that the artifact did not meet."""
        return [gate for gate in self.gates if not gate.passed]

    def to_dict(self) -> dict[str, Any]:
        """The evidence as the JSON values of verification.json."""
        return {**asdict(self), "measurement": self.measurement.to_dict()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Verification:
        measurement = document.get("measurement")
        if not isinstance(measurement, dict):
            raise ValueError("it holds no measurement")
        return documents.typed(cls, {"format": 1, **document, "measurement": Measurement.current(measurement)})


def evidence_of(artifact: Artifact) -> Verification | None:
    """The artifact's evidence as it is written; None where it was never verified. `validation` says if it holds.

    Raises UntrustedInput where the evidence is damaged or has another version.
    """
    document = artifact.evidence
    try:
        return Verification.from_dict(document) if document else None
    except ValueError as error:
        raise UntrustedInput(
            f"{artifact.directory / EVIDENCE}: damaged, or written by another version: {error}",
            f"verify it again: qabuild verify {artifact.directory}",
        ) from None
