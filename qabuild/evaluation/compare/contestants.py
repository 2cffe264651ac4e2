"""What is to be compared: found, checked against its manifest, and verified on the same questions as the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.artifact.sealed_reference import Reference
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput
from qabuild.evaluation import measure
from qabuild.evaluation.compare.result import Failure
from qabuild.models.backends import BASELINE
from qabuild.qa.data import QuestionSet

if TYPE_CHECKING:
    from qabuild.target.model import Target

SHOWN = 16  # digits of a fingerprint in a message


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An artifact that takes part, with its evidence and what its checkpoint answered."""

    name: str
    artifact: Artifact
    verification: Verification
    reference: Reference
    dataset: str | None
    """Where a target says that the questions are."""

    @property
    def is_eager_fp32(self) -> bool:
        manifest = self.artifact.manifest
        return (manifest.backend["name"], manifest.runtime.dtype) == (BASELINE, "fp32")

    @property
    def verified_answers(self) -> dict[str, str]:
        """What the artifact answered when it was verified, by question id."""
        flipped = {flip.id: flip.artifact for flip in self.verification.measurement.flips}
        return {**self.reference.answers, **flipped}


def find(paths: Sequence[str | Path], output: Path) -> tuple[list[Contestant], list[Failure]]:
    """The contestants among artifacts and targets, and those that are not there, not verified or damaged.

    Raises BadTarget for a bad target and where one was verified on other data than the first; and what is wrong with
    the first where none is left.
    """
    if not paths:
        raise BadTarget("nothing to compare", "name artifacts, as in `qabuild compare artifacts/*`")
    found: list[Contestant] = []
    failures: list[Failure] = []
    errors: list[QABuildError] = []
    folders = [_located(Path(path), output) for path in paths]
    names = _names([folder for folder, _ in folders])
    for path, (folder, target), name in zip(paths, folders, names, strict=True):
        try:
            if target and not folder.exists():
                raise BadTarget(f"{path}: {folder} was not built yet", f"build it first: qabuild {path}")
            found.append(_contestant(name, folder, target.verify.dataset if target else None))
        except (BadTarget, UntrustedInput, MissingEnvironment) as error:
            errors.append(error)
            failures.append(Failure.of(name, folder, error))
    if not found:
        raise errors[0]
    _require_same_data(found)
    return found, failures


def require_baseline(found: Sequence[Contestant], failures: Sequence[Failure], name: str | None) -> None:
    """Raise BadTarget where the baseline is named and is not among them."""
    names = [each.name for each in found] + [each.name for each in failures]
    if name is not None and name not in names:
        raise BadTarget(f"--baseline {name}: not among what is compared", f"name one of {', '.join(names)}")


def load_questions(contestants: Sequence[Contestant], source: str | None, *, offline: bool) -> QuestionSet:
    """The questions that all of them were verified on, from `source` or from where a target or an artifact says.

    Raises BadTarget where nothing says where they are, UntrustedInput where others are there.
    """
    first = contestants[0]
    told = source or next((each.dataset for each in contestants if each.dataset), None)
    questions = measure.load_questions(first.artifact, told, offline=offline)
    measure.require_same_questions(questions, first.reference)
    return questions


def _located(path: Path, output: Path) -> tuple[Path, Target | None]:
    """The artifact's folder, and the target where one was named instead."""
    if path.suffix != ".toml" or path.is_dir():
        return path, None
    from qabuild.target.read import load

    target = load(path)
    return output / target.name, target


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each: the folder's name, or all of its path where two would have one name."""
    short = [folder.resolve().name for folder in folders]
    clear = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    seen: Counter[str] = Counter()
    for index, name in enumerate(clear):
        seen[name] += 1
        clear[index] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return clear


def _contestant(name: str, folder: Path, dataset: str | None) -> Contestant:
    artifact = open_artifact(folder)
    verified = evidence_of(artifact)
    if verified is None:
        raise BadTarget(f"{folder}: was not verified", f"verify it first: qabuild verify {folder}")
    sealed = artifact.reference
    return Contestant(name=name, artifact=artifact, verification=verified, reference=sealed, dataset=dataset)


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
    left, right = one.reference.data, other.reference.data
    return [f"{key}: {_short(left, key)} and {_short(right, key)}" for key in left if left[key] != right.get(key)]


def _short(facts: Mapping[str, Any], key: str) -> Any:
    value = facts.get(key)
    if value is None:
        return "all" if key == "samples" else "none"
    return value[:SHOWN] if key == "fingerprint" else value
