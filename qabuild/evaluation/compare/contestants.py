"""The artifacts to compare: intact, verified, and verified on the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import disclosure, failed_folder
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.artifact.sealed_reference import Reference
from qabuild.artifact.validation import judged_evidence
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput, VerificationFailed
from qabuild.evaluation import sealed_questions
from qabuild.evaluation.compare.result import Failure
from qabuild.models.backends import BASELINE
from qabuild.qa.data import QuestionSet

if TYPE_CHECKING:
    from qabuild.target.model import Target

FINGERPRINT_DIGITS = 16  # shown in a message


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An artifact to compare, with its evidence and its reference answers."""

    name: str
    artifact: Artifact
    verification: Verification
    reference: Reference
    dataset: str | None
    """Source of the questions, if a target names one."""

    @property
    def is_eager_fp32(self) -> bool:
        manifest = self.artifact.manifest
        return (manifest.backend["name"], manifest.runtime.dtype) == (BASELINE, "fp32")

    @property
    def verified_answers(self) -> dict[str, str]:
        """The artifact's answers during its verification, by question id."""
        flipped = {flip.id: flip.artifact for flip in self.verification.measurement.flips}
        return {**self.reference.answers, **flipped}

    def reveal(self, questions: QuestionSet) -> Contestant:
        """The same, with the texts of answers that the artifact does not show."""
        data, measurement = self.reference.data, self.verification.measurement
        if disclosure.shown(data) == disclosure.FULL:
            return self
        answers = disclosure.reveal_answers(self.reference, questions)
        flipped = disclosure.reveal({flip.id: flip.artifact for flip in measurement.flips}, data, questions)
        ids = {name: question.id for name, question in disclosure.by_name(data, questions).items()}
        flips = [replace(flip, id=ids[flip.id], artifact=flipped[ids[flip.id]]) for flip in measurement.flips]
        verification = replace(self.verification, measurement=replace(measurement, flips=flips))
        return replace(self, reference=replace(self.reference, answers=answers), verification=verification)


def open_contestants(paths: Sequence[str | Path], output: Path) -> tuple[list[Contestant], list[Failure]]:
    """Open artifacts, or the artifacts of targets in `output`; failures are those missing, unverified or damaged.

    Raises BadTarget for a bad target, or if an artifact was verified on other data than the first; if none can be
    opened, the error of the first.
    """
    if not paths:
        raise BadTarget("nothing to compare", "name artifacts, as in `qabuild compare artifacts/*`")
    contestants: list[Contestant] = []
    failures: list[Failure] = []
    errors: list[QABuildError] = []
    folders = [_locate(Path(path), output) for path in paths]
    names = _unique_names([folder for folder, _ in folders])
    for path, (folder, target), name in zip(paths, folders, names, strict=True):
        try:
            if target and not folder.exists() and not failed_folder(folder).exists():
                raise BadTarget(f"{path}: {folder} is not built", f"build it first: qabuild {path}")
            contestants.append(_open(name, folder, target.verify.dataset if target else None))
        except (BadTarget, UntrustedInput, MissingEnvironment, VerificationFailed) as error:
            errors.append(error)
            failures.append(Failure.of(name, folder, error))
    if not contestants:
        raise errors[0]
    _require_same_data(contestants)
    return contestants, failures


def require_baseline(contestants: Sequence[Contestant], failures: Sequence[Failure], name: str | None) -> None:
    """Raise BadTarget if `name` is given and is neither a contestant nor a failure."""
    names = [contestant.name for contestant in contestants] + [failure.name for failure in failures]
    if name is not None and name not in names:
        raise BadTarget(f"--baseline {name}: not among the compared artifacts", f"name one of {', '.join(names)}")


def load_questions(contestants: Sequence[Contestant], source: str | None, *, offline: bool) -> QuestionSet:
    """Load the questions of the verifications, from `source` or else from what a target or an artifact names.

    Raises BadTarget if none of them names a source, UntrustedInput if the source has other questions.
    """
    first = contestants[0]
    named = source or next((contestant.dataset for contestant in contestants if contestant.dataset), None)
    questions = sealed_questions.load(first.artifact, named, offline=offline)
    sealed_questions.require_same(questions, first.reference)
    return questions


def _locate(path: Path, output: Path) -> tuple[Path, Target | None]:
    """The artifact's folder, and its target if `path` is one."""
    if path.suffix != ".toml" or path.is_dir():
        return path, None
    from qabuild.target.read import load

    target = load(path)
    return output / target.name, target


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """A name for each: the folder's, or its path if two folders have one name; a path given twice gets a number."""
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _open(name: str, folder: Path, dataset: str | None) -> Contestant:
    artifact = open_artifact(folder)
    verification = judged_evidence(artifact)
    if verification is None:
        raise VerificationFailed(f"{folder}: not verified", f"verify it first: qabuild verify {folder}")
    sealed = artifact.reference
    return Contestant(name=name, artifact=artifact, verification=verification, reference=sealed, dataset=dataset)


def _require_same_data(contestants: Sequence[Contestant]) -> None:
    first, *others = contestants
    for other in others:
        if other.reference.data["fingerprint"] != first.reference.data["fingerprint"]:
            raise BadTarget(
                f"{first.name} and {other.name} were verified on different data\n"
                + "\n".join(f"  {line}" for line in _differences(first, other)),
                "build and verify both on the same questions",
            )


def _differences(one: Contestant, other: Contestant) -> list[str]:
    left: Mapping[str, Any] = one.reference.data
    right: Mapping[str, Any] = other.reference.data
    return [f"{key}: {_short(left, key)} and {_short(right, key)}" for key in left if left[key] != right.get(key)]


def _short(data: Mapping[str, Any], key: str) -> Any:
    value = data.get(key)
    if value is None:
        return "all" if key == "samples" else "none"
    return value[:FINGERPRINT_DIGITS] if key == "fingerprint" else value
