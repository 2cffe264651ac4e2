"""A model folder of MLflow: a pyfunc model that loads the artifact by qabuild."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from warnings import catch_warnings

from packaging.requirements import Requirement

from qabuild.artifact import handler
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.artifact.validation import unverified
from qabuild.publishing.layouts import wheel
from qabuild.publishing.layouts.copy import copy_artifact
from qabuild.publishing.layouts.portability import require_portable
from qabuild.system import packages
from qabuild.system.quiet import quiet_logging

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

SUMMARY = "a pyfunc model of MLflow"
SEVERAL = False

PACKAGES = ("mlflow-skinny", "pandas")
ARTIFACT = "artifact"
MODEL_FILE = "model.py"

MODEL = Template(
    '''\
"""Answers questions with the artifact of this model, by qabuild."""

import mlflow
import pandas
import qabuild


class Answerer(mlflow.pyfunc.PythonModel):
    """Answers each row of a table with the columns question and context, in a table with the same index."""

    def load_context(self, context):
        self.answer = qabuild.load(
            context.artifacts["$artifact"],
            digest="$digest",$allowed
        )

    def predict(self, context, model_input: pandas.DataFrame, params=None):
        columns = zip(model_input["question"], model_input["context"])
        results = self.answer({"question": question, "context": context} for question, context in columns)
        rows = [{"question_truncated": False, **result} for result in results]
        names = ["answer", "score", "start", "end", "question_truncated"]
        return pandas.DataFrame(rows, columns=names, index=model_input.index)


mlflow.models.set_model(Answerer())
'''
)

GUIDE = Template(
    """\
## Use

From Python, in an environment of `requirements.txt`:

```py
import mlflow

model = mlflow.pyfunc.load_model($quoted)
print(model.predict([{"question": "Who built the mill?", "context": "Ann Vole built the mill in 1871."}]))
```

Over HTTP:

    mlflow models serve -m $name --env-manager local --port 5001
    curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
      -d '{"dataframe_records": [{"question": "Who?", "context": "Ann Vole built the mill."}]}'

`mlflow.register_model` takes the folder as it is logged. `code/` holds the qabuild that exported it, and
`requirements.txt` pins the packages that compiled the model.

## What differs

Texts, places and scores of the answers are those of `qabuild.load`, with the artifact's parameters; a request sets no
others. An empty question or context, which `qabuild.load` refuses, gets an answer. `start` and `end` are characters of
the context; `question_truncated` tells whether the question has more tokens than are read.
"""
)


def check(artifact: Artifact) -> None:
    """Raise BadTarget for native code, and MissingEnvironment without MLflow."""
    packages.refuse(packages.missing(dict.fromkeys(PACKAGES, ("mlflow",)), "cpu"))
    require_portable(artifact)


def write(artifacts: Sequence[Artifact], directory: Path) -> None:
    """Have MLflow write the model, with the artifact and qabuild in it."""
    import mlflow

    (artifact,) = artifacts
    allowed = f"{'':12}allow_unverified=True," if unverified(artifact) else ""
    text = MODEL.substitute(artifact=ARTIFACT, digest=artifact.digest, allowed=allowed and f"\n{allowed}")
    target, code = str(directory.absolute()), str(wheel.FOLDER.absolute())
    with TemporaryDirectory(dir=directory.parent) as scratch:
        copy_artifact(artifact, Path(scratch, ARTIFACT))
        Path(scratch, MODEL_FILE).write_text(text, encoding="utf-8")
        # In that folder, since MLflow records the paths that it is given; and its warnings are about what is left out.
        with chdir(scratch), quiet_logging(), redirect_stderr(StringIO()), catch_warnings(action="ignore"):
            mlflow.pyfunc.save_model(
                path=target,
                python_model=MODEL_FILE,
                artifacts={ARTIFACT: ARTIFACT},
                code_paths=[code],
                signature=_signature(),
                pip_requirements=_requirements(artifact),
            )
            recorded = mlflow.models.Model.load(target)
            recorded.flavors[mlflow.pyfunc.FLAVOR_NAME]["model_code_path"] = MODEL_FILE  # it is made absolute
            recorded.save(str(Path(target, "MLmodel")))
    open_artifact(directory / "artifacts" / ARTIFACT, artifact.digest, any_evidence=True)


def guide(artifacts: Sequence[Artifact], name: str) -> str:
    """How to load and serve the model."""
    return GUIDE.substitute(name=shlex.quote(name), quoted=json.dumps(name))


def _signature() -> ModelSignature:
    """What the model takes, a row for each question, and what it returns."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    asked = [ColSpec(DataType.string, name) for name in ("question", "context")]
    answered = [ColSpec(DataType.string, "answer"), ColSpec(DataType.double, "score")]
    places = [ColSpec(DataType.long, name) for name in ("start", "end")]
    truncated = ColSpec(DataType.boolean, "question_truncated")
    return ModelSignature(inputs=Schema(asked), outputs=Schema([*answered, *places, truncated]))


def _requirements(artifact: Artifact) -> list[str]:
    """What qabuild requires, with the versions that compiled the model, and this MLflow."""
    manifest = artifact.manifest
    pins = handler.contents(manifest.options, manifest.runtime, manifest.versions)[handler.REQUIREMENTS].splitlines()
    pinned = {Requirement(pin).name for pin in pins}
    others = [line for line in wheel.dependencies() if Requirement(line).name not in pinned]
    return [*(f"{name}=={metadata.version(name)}" for name in PACKAGES), *pins, *others]
