"""A model repository of Triton Inference Server: the ONNX graph, and a model in Python that tokenises and decodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from qabuild.artifact import handler
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.validation import unverified
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends import vet
from qabuild.models.backends.onnxruntime import graph_check
from qabuild.publishing.layouts import wheel
from qabuild.publishing.layouts.copy import copy_artifact, copy_file
from qabuild.qa.model_inputs import INPUTS

SUMMARY = "a model repository of Triton Inference Server"
SEVERAL = False

GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"
REPOSITORY = "models"

MODEL = '''\
"""Tokenises and decodes; the graph is a model of its own. See qabuild/serving/triton.py."""

from qabuild.serving.triton import TritonPythonModel as TritonPythonModel
'''

READER_CONFIG = Template(
    """\
name: "$name"
backend: "python"
max_batch_size: 0
input [
$inputs
]
output [
$outputs
]
parameters { key: "graph" value { string_value: "$graph" } }
parameters { key: "digest" value { string_value: "$digest" } }
parameters { key: "allow_unverified" value { string_value: "$allowed" } }
instance_group [ { kind: KIND_CPU } ]
"""
)

GRAPH_CONFIG = Template(
    """\
name: "$name"
backend: "onnxruntime"
max_batch_size: 0
input [
$inputs
]
output [
$outputs
]
instance_group [ { kind: $kind } ]
"""
)

GUIDE = Template(
    """\
## Use

Install the packages in Triton's image, and start it on `$repository/`:

    docker run --rm$gpus -p 127.0.0.1:8000:8000 -v "$$PWD/$folder:/srv" -w /srv nvcr.io/nvidia/tritonserver:TAG-py3 \\
      bash -c 'pip install -r requirements.txt && tritonserver --model-repository=/srv/$repository'
    curl http://127.0.0.1:8000/v2/models/$name/infer -d '{"inputs": [
      {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["Who?"]},
      {"name": "context", "shape": [1], "datatype": "BYTES", "data": ["Ann Vole built the mill."]}]}'

Take a TAG whose Python has the minor version of the wheels that `requirements.txt` pins. A request has any number of
questions, and as many contexts. The model `$name` tokenises them, asks the model `$graph` for the logits of their
windows, and decodes `answer`, `score`, `start`, `end` and `question_truncated`.

## What differs

Triton's ONNX Runtime runs the graph: another build, maybe another version. Then logits round differently, on a GPU also
because its default is TF32; in int8 by more than the last digits. Windows, decoding and parameters are those of the
artifact. This repository was not tried in Triton itself: its configs were parsed, and its model was run, by itself.
"""
)


def check(artifact: Artifact) -> None:
    """Raise BadTarget without an ONNX graph, and UntrustedInput for one that holds more than qabuild compiles to."""
    directory, manifest = artifact.directory, artifact.manifest
    if GRAPH not in manifest.files:
        raise BadTarget(
            f"{directory}: its backend, {manifest.backend['name']}, makes no ONNX graph",
            "build it with backend.name = 'onnxruntime'",
        )
    vet.vet(directory / GRAPH, graph_check.problems)
    if strange := sorted(set(graph_check.inputs(directory / GRAPH)) - set(INPUTS)):
        raise UntrustedInput(
            f"{directory / GRAPH}: takes {strange[0][:80]!r}, which no graph of qabuild does",
            "build the artifact again, or fetch it from whom you trust",
        )


def write(artifacts: Sequence[Artifact], directory: Path) -> None:
    """Write both models, and what Triton's Python needs: requirements.txt, and the wheel of qabuild."""
    (artifact,) = artifacts
    name, graph = _names(artifact)
    reader, runtime = directory / REPOSITORY / name, directory / REPOSITORY / graph
    copy_artifact(artifact, _version(reader) / "artifact")
    (_version(reader) / "model.py").write_text(MODEL, encoding="utf-8")
    for file in {GRAPH, WEIGHTS} & artifact.manifest.files.keys():
        copy_file(artifact, file, _version(runtime) / file)
    (reader / "config.pbtxt").write_text(_reader_config(artifact), encoding="utf-8")
    (runtime / "config.pbtxt").write_text(_graph_config(artifact), encoding="utf-8")
    manifest = artifact.manifest
    pins = handler.contents(manifest.options, manifest.runtime, manifest.versions)[handler.REQUIREMENTS]
    text = f"{pins}./{wheel.write(directory)}\n"
    (directory / handler.REQUIREMENTS).write_text(text, encoding="utf-8")


def guide(artifacts: Sequence[Artifact], name: str) -> str:
    """How to start Triton on the repository."""
    (artifact,) = artifacts
    model, graph = _names(artifact)
    gpus = " --gpus all" if artifact.manifest.runtime.device == "cuda" else ""
    return GUIDE.substitute(name=model, graph=graph, folder=shlex.quote(name), repository=REPOSITORY, gpus=gpus)


def _names(artifact: Artifact) -> tuple[str, str]:
    """Names of the model that is asked, and of the graph."""
    name = artifact.manifest.name
    name = name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) else "answers"
    return name, f"{name}-graph"


def _version(model: Path) -> Path:
    """The folder of the model's version, made if it is not there."""
    folder = model / "1"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _reader_config(artifact: Artifact) -> str:
    name, graph = _names(artifact)
    outputs = {"answer": "STRING", "score": "FP64", "start": "INT64", "end": "INT64", "question_truncated": "BOOL"}
    return READER_CONFIG.substitute(
        name=name,
        graph=graph,
        digest=artifact.digest,
        allowed="true" if unverified(artifact) else "false",
        inputs=_tensors([("question", "STRING"), ("context", "STRING")], "-1"),
        outputs=_tensors(outputs.items(), "-1"),
    )


def _graph_config(artifact: Artifact) -> str:
    return GRAPH_CONFIG.substitute(
        name=_names(artifact)[1],
        inputs=_tensors([(name, "INT64") for name in graph_check.inputs(artifact.directory / GRAPH)], "-1, -1"),
        outputs=_tensors([("start_logits", "FP32"), ("end_logits", "FP32")], "-1, -1"),
        kind="KIND_GPU" if artifact.manifest.runtime.device == "cuda" else "KIND_CPU",
    )


def _tensors(tensors: Iterable[tuple[str, str]], dims: str) -> str:
    lines = [f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] }}' for name, kind in tensors]
    return ",\n".join(lines)
