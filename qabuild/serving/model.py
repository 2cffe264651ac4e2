"""An artifact as the server runs it: what was verified, whatever happens to its folder later."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact.load import find, load
from qabuild.artifact.manifest import CACHE, Artifact
from qabuild.artifact.validation import unverified
from qabuild.errors import QABuildError
from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.results import Result
from qabuild.serving.refusal import Refusal
from qabuild.system.reporter import Reporter
from qabuild.system.sealed import MANIFEST

if TYPE_CHECKING:
    from qabuild.artifact.signature import Signer
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

WARM_UP: Sequence[Pair] = (
    ("Who built the mill?", "Ann Vole built the mill in 1871."),
    ("Who built the mill?", "Ann Vole built the mill in 1871. " * 100),  # several windows
)

Stat = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Permissions:
    """What a user allows, or requires, beyond a verified artifact; see `qabuild.load`."""

    key: Signer | None = None
    allow_native: bool = False
    allow_unverified: bool = False


class Model:
    """A loaded artifact."""

    def __init__(self, artifact: Artifact, pipeline: QuestionAnsweringPipeline, stats: Mapping[Path, Stat]) -> None:
        self.digest = artifact.digest
        self.backend: str = artifact.manifest.backend["name"]
        self._pipeline = pipeline
        self._defaults = Parameters().updated(artifact.manifest.parameters)
        self._stats = stats

    @property
    def is_changed(self) -> bool:
        """Whether the artifact's files seem to have changed since they were verified."""
        return self._stats != _stats(self._stats)

    def parameters(self, named: Mapping[str, Any]) -> Parameters:
        """The parameters of a request that names these, with values that are allowed. Raises Refusal."""
        try:
            self._pipeline.check(**named)
            parameters = self._defaults.updated(named)
        except (TypeError, ValueError) as error:
            raise Refusal(422, str(error)) from None
        self._require_few_windows(parameters)
        return parameters

    def answer(self, pairs: Sequence[Pair], parameters: Parameters) -> list[Result | list[Result]]:
        """The result of each pair, as the pipeline of `qabuild.load` returns it.

        Raises QABuildError where the model's scores are not finite.
        """
        examples = [{"question": question, "context": context} for question, context in pairs]
        found = self._pipeline(examples, **asdict(parameters))
        results: list[Any] = [found] if len(pairs) == 1 else list(found)
        for result in results:
            if not all(isfinite(answer["score"]) for answer in (result if isinstance(result, list) else [result])):
                raise QABuildError("the model's scores are not finite")
        return results

    def _require_few_windows(self, parameters: Parameters) -> None:
        """With a stride of almost a window, a context has a window for every token: an artifact may be sealed so."""
        cut, own = (each.cut(self._pipeline.tokenizer) for each in (parameters, self._defaults))
        is_own = (cut.doc_stride, cut.max_seq_len) == (own.doc_stride, own.max_seq_len)
        if cut.doc_stride > cut.max_seq_len // 2 and not is_own:
            raise Refusal(422, f"doc_stride: {cut.doc_stride} is more than half of max_seq_len ({cut.max_seq_len})")


def load_model(source: str, permissions: Permissions, reporter: Reporter) -> Model:
    """The artifact at `source`, a folder or a repository on the Hub, loaded and warmed up. Raises as `load` does.

    Some runtimes map the files of a model into memory: a file that is overwritten would change the answers, or end the
    process. So they load a private copy, which is verified like the original and removed once it is loaded.
    """
    key, allow_unverified = permissions.key, permissions.allow_unverified
    artifact = find(source, key=key, allow_unverified=allow_unverified)
    if allow_unverified and (reason := unverified(artifact)):
        reporter.say(f"{reason}; served all the same")
    stats = _stats(artifact.directory / name for name in (MANIFEST, *artifact.manifest.files))
    with tempfile.TemporaryDirectory(prefix="qabuild-serve-") as folder:
        copy = Path(folder, "artifact")
        shutil.copytree(artifact.directory, copy, ignore=shutil.ignore_patterns(CACHE))
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # said above
                pipeline = load(
                    copy,
                    digest=artifact.digest,
                    key=key,
                    allow_native=permissions.allow_native,
                    allow_unverified=allow_unverified,
                )
        except QABuildError as error:
            error.message = error.message.replace(str(copy), str(artifact.directory))
            error.hint = error.hint and error.hint.replace(str(copy), str(artifact.directory))
            raise
        model = Model(artifact, pipeline, stats)
        for pairs in (WARM_UP, WARM_UP[:1]):  # a runtime may have one graph for many batches and another for one
            model.answer(pairs, model.parameters({}))
    return model


def _stats(paths: Any) -> dict[Path, Stat]:
    """Inode, size and time of each file; a file that is missing has none."""
    found = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found[path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found
