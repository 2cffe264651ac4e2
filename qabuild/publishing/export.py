"""Exports verified artifacts to a folder in the layout of another tool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qabuild.artifact import staging
from qabuild.artifact.load import find, require_verified
from qabuild.artifact.validation import judged_evidence, unverified
from qabuild.errors import BadTarget
from qabuild.publishing import layouts
from qabuild.publishing.layouts import Layout
from qabuild.system import arguments
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.sealed import require_outside
from qabuild.system.terminal import visible
from qabuild.system.units import count_of

if TYPE_CHECKING:
    from qabuild.artifact.manifest import Artifact
    from qabuild.artifact.signature import Signer

README = "README.md"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported folder."""

    directory: Path
    layout: str
    manifests: Sequence[str]
    """SHA-256 of the manifest of each artifact in it."""
    files: Sequence[str]
    """Names of its files."""
    size: int
    """Bytes of all files."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory)}


def export(
    artifacts: str | Path | Sequence[str | Path],
    layout: str,
    output: str | Path,
    *,
    revision: str | None = None,
    digest: str | None = None,
    key: Signer | None = None,
    allow_unverified: bool = False,
    reporter: Reporter = SILENT,
) -> Exported:
    """Write the artifact, a path or a repository on the Hub, to the folder `output` in the layout of another tool.

    `layout` is one of `qabuild export --list`. Some layouts take several artifacts of one checkpoint. `output` is
    complete, or not there; it may exist if it is empty. Its README.md says how to use it, from which artifact it is,
    and in what its answers differ. `revision`, `digest`, `key` and `allow_unverified` are those of `qabuild.load`; the
    first two are for a single artifact.

    Raises BadTarget for an artifact that the other tool could not run, MissingEnvironment where a package that writes
    the layout is missing, and as `qabuild.load` does.
    """
    module = layouts.layout(layout)
    sources = arguments.paths("artifacts", artifacts)
    _require_count(sources, layout, module.SEVERAL, pinned=bool(revision or digest))
    goal = Path(output)
    _require_free(goal)
    opened = [
        find(source, revision=revision, digest=digest, key=key, allow_unverified=allow_unverified) for source in sources
    ]
    for artifact in opened:
        if not allow_unverified:
            require_verified(artifact)
        elif reason := unverified(artifact):
            reporter.say(f"{reason}; exported all the same")
        module.check(artifact)
    with staging.disk_explained(goal):
        goal.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=goal.parent, prefix=f".{goal.name}.") as folder:
            stage = Path(folder) / goal.name
            stage.mkdir()
            module.write(opened, stage)
            (stage / README).write_text(_readme(opened, layout, module, goal.name), encoding="utf-8")
            os.rename(stage, goal)
    return _exported(goal, layout, opened)


def _require_count(sources: Sequence[str | Path], name: str, several: bool, *, pinned: bool) -> None:
    if not sources:
        raise BadTarget("no artifact is named", "name one, such as artifacts/NAME")
    if len(sources) > 1 and not several:
        raise BadTarget(f"the layout {name} takes one artifact, and {len(sources)} are named", "export each by itself")
    if len(sources) > 1 and pinned:
        raise BadTarget("revision and digest are for one artifact, and several are named", "export each by itself")


def _require_free(goal: Path) -> None:
    """Raise BadTarget unless `goal` is absent, or an empty folder, and outside of artifacts."""
    require_outside(goal / README)
    if goal.name in ("", ".."):
        raise BadTarget(f"{goal}: is no name of a folder", "name a new folder with -o")
    if not os.path.lexists(goal):
        staging.require_writable(goal.parent)
        return
    if goal.is_symlink() or not goal.is_dir() or any(goal.iterdir()):
        raise BadTarget(f"{goal}: is there already", "move it away, or name another folder with -o")


def _readme(artifacts: Sequence[Artifact], name: str, module: Layout, folder: str) -> str:
    """README.md of the exported folder: how to use it, from which artifacts it is, and what differs."""
    origins = "".join(f"{line}\n" for artifact in artifacts for line in _origin(artifact))
    return (
        f"# {folder}\n\nA question-answering model, exported by qabuild in the layout `{name}`: {module.SUMMARY}.\n\n"
        f"{module.guide(artifacts, folder)}\n## Origin\n\n{origins}"
    )


def _origin(artifact: Artifact) -> list[str]:
    """What an artifact is, and what its evidence says, as a list in Markdown."""
    manifest = artifact.manifest
    lines = [
        f"- artifact `{visible(manifest.name)}`, whose manifest.json has the SHA-256 `{artifact.digest}`",
        f"  - checkpoint `{visible(manifest.checkpoint['name'])}`, SHA-256 `{manifest.checkpoint['digest']}`",
        f"  - {manifest.backend['name']}, {manifest.runtime.device}, {manifest.runtime.dtype}",
    ]
    if reason := unverified(artifact):
        return [*lines, f"  - **not verified**: {reason}"]
    verification = judged_evidence(artifact)
    assert verification is not None
    m = verification.measurement
    return [
        *lines,
        f"  - verified at {verification.verified_at} on {count_of(m.questions, 'question')}: EM {m.exact_match:.2f}, "
        f"F1 {m.f1:.2f} (checkpoint: {m.checkpoint_f1:.2f}), {100 * m.agreement:.2f} % of the answers as "
        "the checkpoint's",
    ]


def _exported(goal: Path, name: str, artifacts: Sequence[Artifact]) -> Exported:
    paths = sorted(path for path in goal.rglob("*") if path.is_file())
    return Exported(
        directory=goal,
        layout=name,
        manifests=[artifact.digest for artifact in artifacts],
        files=[path.relative_to(goal).as_posix() for path in paths],
        size=sum(path.stat().st_size for path in paths),
    )
