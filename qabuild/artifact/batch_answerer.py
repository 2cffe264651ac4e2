"""A callable that answers batches with an artifact, for jobs of Ray, Spark, datasets and other engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild.artifact.artifact_ref import ArtifactRef
from qabuild.artifact.manifest import stated_digest
from qabuild.qa.bulk.batch import answer_batch
from qabuild.qa.data.dataset_ref import columns_of
from qabuild.system import arguments

if TYPE_CHECKING:
    from qabuild.artifact.signature import Signer

Batch = TypeVar("Batch")


class BatchAnswerer:
    """Answers batches of questions with an artifact, in the workers of Ray, Spark, datasets and other engines.

    A batch is a pyarrow.Table or RecordBatch, a pandas.DataFrame, or a dict of columns, which are lists or NumPy
    arrays. It has `question`, `context` and, if you like, `id`; `columns` maps these to the columns that hold them
    under other names. The answers are a batch of the same kind, with the columns of the Parquet files of `qabuild
    answer`: `id`, `answer`, `score`, `start`, `end`, `question_truncated` and `error`. An id comes back as it was
    given; without one it is made from the texts. A bad row gets an `error` and no answer; elsewhere `error` is empty. A
    batch without rows gives one without rows. Other columns are ignored.

    The other arguments are those of `qabuild.load`, and `parameters` those of the pipeline's calls; with a `top_k`
    above 1, each answer is a row. An answerer can be pickled. The first call in a process loads the artifact, from its
    path or from the Hub, and all answerers of that artifact in this process share it. `digest` requires the same
    artifact on every machine; by default it is that of the artifact at a path of this machine, so that a job never
    mixes two.

    Raises BadTarget for a path of this machine that is no artifact. A call raises what `qabuild.load` raises,
    BadTarget for a batch without the columns, TypeError for what is no batch, and the pipeline's exception if it fails
    on every row.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str],
        *,
        revision: str | None = None,
        digest: str | None = None,
        key: Signer | None = None,
        allow_native: bool = False,
        allow_unverified: bool = False,
        columns: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        # Another process can have another working directory.
        source = arguments.path("artifact", artifact)
        if Path(source).exists():
            source = os.path.abspath(source)
            digest = digest or stated_digest(Path(source))
        self._artifact = ArtifactRef(
            source=source,
            revision=revision,
            digest=digest,
            key=key,
            allow_native=allow_native,
            allow_unverified=allow_unverified,
        )
        self._columns = columns_of(columns)
        self._parameters = arguments.parameters(parameters)

    def __call__(self, batch: Batch) -> Batch:
        """The answers of a batch, as one of the same kind."""
        pipeline = self._artifact.load(self._parameters).pipeline
        answers: Batch = answer_batch(pipeline, batch, self._columns, self._parameters)
        return answers
