"""A folder that transformers.js opens, in Node and in browsers: config, tokenizer, and ONNX graphs by their dtype.

https://huggingface.co/docs/transformers.js/custom_usage
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget
from qabuild.models.backends import vet
from qabuild.models.backends.onnxruntime import graph_check
from qabuild.models.checkpoint.inspect import read_object
from qabuild.models.runtime import Dtype
from qabuild.publishing.layouts.copy import copy_file

SUMMARY = "a model folder of transformers.js, for Node and browsers"
SEVERAL = True

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
SHARED = (CONFIG, TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json")
"""The files that all graphs of one folder share; the last one is not always there."""
GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"

GRAPHS: Mapping[Dtype, tuple[str, str]] = {
    "fp32": ("fp32", "model.onnx"),
    "int8": ("q8", "model_quantized.onnx"),
    "fp16": ("fp16", "model_fp16.onnx"),
}
"""By dtype, transformers.js's name of it, and its name of the graph's file."""

MODEL_TYPES = (
    *("bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "mobilebert"),
    *("mpnet", "roberta", "roformer", "squeezebert", "xlm-roberta"),
)
"""Those that transformers.js 4.3 runs with the same tokens and logits. ALBERT is not among them: some texts
are tokenised otherwise."""

OPERATORS = frozenset(
    {"Attention", "BiasGelu", "FastGelu", "Gelu", "QAttention", "QuickGelu", "SkipLayerNormalization"}
)
"""ONNX Runtime's own operators that were tried in Node and in WebAssembly; not every one has a kernel there."""

GUIDE = Template(
    """\
## Use

Install the library: `npm install @huggingface/transformers`. Save this beside the folder `$name`:

```js
// example.mjs
import { env, pipeline } from "@huggingface/transformers";

env.allowRemoteModels = false; // nothing is fetched from the Hub
env.allowLocalModels = true; // browsers do not by default
env.localModelPath = "./"; // where $name lies; in a browser, a path of this site

const answer = await pipeline("question-answering", $quoted, { dtype: "$dtype" });
console.log(await answer("Who built the mill?", "Ann Vole built the mill in 1871."));
```

`dtype` chooses the graph: $dtypes. Without it, Node takes `fp32`, and a browser `q8`.

A browser loads ONNX Runtime's WebAssembly files from a content delivery network. To load them from your site, copy
those of `onnxruntime-web/dist` there, and set `env.backends.onnx.wasm.wasmPaths` to that path.

## What differs

The graphs are byte for byte those of the artifacts, but transformers.js decodes answers in a way of its own:

- It has no windows. It reads the first $longest tokens of question and context together, and nothing of what follows.
- It has no longest answer; those of qabuild have up to $max_answer_len tokens.
- It returns no places, and makes the text from the tokens. Spaces, and with some tokenizers the case of letters, can
  differ from the context. Compare answers after SQuAD's normalisation.
- An answer can begin or end within a word, and equal answers at several places do not add up.
- It never gives the empty answer.$impossible
- It runs the graph in another build of ONNX Runtime, which rounds differently, in int8 by more than the last digits.
"""
)


def check(artifact: Artifact) -> None:
    """Raise BadTarget without an ONNX graph, or for an architecture or operator that transformers.js runs otherwise.

    Raises UntrustedInput for a graph that holds more than qabuild compiles to.
    """
    directory, manifest = artifact.directory, artifact.manifest
    if GRAPH not in manifest.files:
        raise BadTarget(
            f"{directory}: its backend, {manifest.backend['name']}, makes no ONNX graph, which transformers.js runs",
            "build it with backend.name = 'onnxruntime'",
        )
    if WEIGHTS in manifest.files:
        raise BadTarget(
            f"{directory / WEIGHTS}: a graph with weights beside it names that file, and transformers.js another",
            "build a model of less than 2 GB",
        )
    model_type = read_object(directory, CONFIG).get("model_type")
    if model_type not in MODEL_TYPES:
        raise BadTarget(
            f"{directory}: transformers.js does not run models of type {model_type!r} alike",
            f"it runs {', '.join(MODEL_TYPES)}",
        )
    vet.vet(directory / GRAPH, graph_check.problems)
    if lacking := sorted(set(_lacking(directory / GRAPH))):
        raise BadTarget(
            f"{directory / GRAPH}: transformers.js has no kernels for its operators {', '.join(lacking)}",
            "build it for the CPU, with a lower backend.level; 0 fuses nothing",
        )


def write(artifacts: Sequence[Artifact], directory: Path) -> None:
    """Write the shared files once, and each graph under the name of its dtype.

    Raises BadTarget for artifacts that are not of one checkpoint, or have one dtype.
    """
    _require_one_checkpoint(artifacts)
    for name in SHARED:
        if name in artifacts[0].manifest.files:
            copy_file(artifacts[0], name, directory / name)
    for artifact in artifacts:
        copy_file(artifact, GRAPH, directory / "onnx" / GRAPHS[artifact.manifest.runtime.dtype][1])


def guide(artifacts: Sequence[Artifact], name: str) -> str:
    """A script for Node, and how the answers differ from those of qabuild."""
    dtypes = [GRAPHS[artifact.manifest.runtime.dtype][0] for artifact in artifacts]
    parameters = artifacts[0].manifest.parameters
    impossible = " qabuild lets that compete." if parameters["handle_impossible_answer"] else ""
    tokenizer = read_object(artifacts[0].directory, TOKENIZER_CONFIG)
    return GUIDE.substitute(
        name=name,
        quoted=json.dumps(name),
        dtype=dtypes[0],
        dtypes=", ".join(f"`{dtype}`" for dtype in dtypes),
        longest=tokenizer.get("model_max_length", 512),
        max_answer_len=parameters.get("max_answer_len", 15),
        impossible=impossible,
    )


def _require_one_checkpoint(artifacts: Sequence[Artifact]) -> None:
    first, *others = (artifact.manifest for artifact in artifacts)
    for manifest in others:
        same_model = (manifest.checkpoint, manifest.training, manifest.stages) == (
            (first.checkpoint, first.training, first.stages)
        )
        if not same_model or any(manifest.files.get(name) != first.files.get(name) for name in SHARED):
            raise BadTarget(
                f"{first.name} and {manifest.name} are not of one checkpoint", "export them to folders of their own"
            )
    dtypes = [artifact.manifest.runtime.dtype for artifact in artifacts]
    if twice := {dtype for dtype in dtypes if dtypes.count(dtype) > 1}:
        raise BadTarget(
            f"two artifacts are in {', '.join(twice)}, of which a folder holds one graph",
            "export them to folders of their own",
        )


def _lacking(graph: Path) -> Iterator[str]:
    """The operators of the graph for which transformers.js may have no kernel."""
    for domain, name in graph_check.operators(graph):
        if domain and not (domain == "com.microsoft" and name in OPERATORS):
            yield f"{domain}.{name}"
