"""The folder of transformers.js: the very graphs that were verified, which it opens and runs.

Tests marked `layouts` run it in Node, from the packages in the folder that QABUILD_NODE_MODULES names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import proven
import pytest

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import BadTarget
from qabuild.models.backends.onnxruntime import graph_check
from qabuild.publishing.layouts import transformers_js
from qabuild.qa import sample
from qabuild.qa.squad_metric import normalise

pytestmark = pytest.mark.both_lines

HERE = Path(__file__).parent

TARGET = """
[checkpoint]
model = "{checkpoint}"
[backend]
name = "onnxruntime"
{options}
[runtime]
dtype = "{dtype}"
[verify]
dataset = "sample"
samples = 4
[verify.gates]
min_f1_retention = 0.0
min_agreement = 0.0
max_logit_difference = 100.0
"""

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build("int8", options, checkpoint)`: the folder of an artifact with an ONNX graph, made once."""
    folder = tmp_path_factory.mktemp("built")
    built: dict[tuple[str, ...], Path] = {}

    def make(dtype: str = "fp32", options: str = "", checkpoint: str | Path = "sample") -> Path:
        key = dtype, options, str(checkpoint)
        if key not in built:
            path = folder / f"{dtype}-{len(built)}.toml"
            path.write_text(TARGET.format(checkpoint=checkpoint, options=options, dtype=dtype))
            built[key] = qabuild.build(path, folder / "artifacts").directory
        return built[key]

    return make


def copied(artifact: Path, folder: Path) -> Path:
    return Path(shutil.copytree(artifact, folder / artifact.name))


FP16 = "allow_fp16_on_cpu = true"


# --- what is written --------------------------------------------------------------------------------------------------


def test_graphs_of_one_checkpoint_share_a_folder_and_are_those_that_were_verified(build, tmp_path):
    artifacts = [build("fp32"), build("int8")]
    folder = qabuild.export(artifacts, "transformers-js", tmp_path / "tiny").directory
    expected = {"onnx/model.onnx": artifacts[0], "onnx/model_quantized.onnx": artifacts[1]}
    for name, artifact in expected.items():
        assert (folder / name).read_bytes() == (artifact / "model.onnx").read_bytes()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (artifacts[0] / name).read_bytes()
    readme = (folder / "README.md").read_text()
    assert all(open_artifact(artifact).digest in readme for artifact in artifacts)
    assert "`fp32`, `q8`" in readme


def test_artifacts_of_two_checkpoints_or_of_one_dtype_are_refused(build, tmp_path):
    with pytest.raises(BadTarget, match="two artifacts are in fp32"):
        qabuild.export([build("fp32"), build("fp32")], "transformers-js", tmp_path / "tiny")
    checkpoint = {**open_artifact(build("int8")).manifest.checkpoint, "digest": "0" * 64}
    other = proven.alter(copied(build("int8"), tmp_path), checkpoint=checkpoint)
    with pytest.raises(BadTarget, match="are not of one checkpoint"):
        qabuild.export([build("fp32"), other], "transformers-js", tmp_path / "tiny", allow_unverified=True)
    assert list(tmp_path.iterdir()) == [other]


def test_an_artifact_without_a_graph_is_refused(artifact, tmp_path):
    with pytest.raises(BadTarget, match="its backend, eager, makes no ONNX graph"):
        qabuild.export(artifact, "transformers-js", tmp_path / "tiny")


def test_an_architecture_that_the_library_lacks_is_refused(build, tmp_path):
    other = proven.alter(copied(build("fp32"), tmp_path), config={"model_type": "ernie"})
    with pytest.raises(BadTarget, match="does not run models of type 'ernie'"):
        qabuild.export(other, "transformers-js", tmp_path / "tiny", allow_unverified=True)


def test_an_operator_without_a_kernel_there_is_refused(build, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_js, "OPERATORS", transformers_js.OPERATORS - {"BiasGelu"})
    with pytest.raises(BadTarget, match=r"no kernels for its operators com\.microsoft\.BiasGelu"):
        qabuild.export(build("fp32"), "transformers-js", tmp_path / "tiny")


def test_the_operators_of_a_graph_are_read(build):
    fused = [name for domain, name in graph_check.operators(build("fp32") / "model.onnx") if domain == "com.microsoft"]
    assert {name: fused.count(name) for name in fused} == open_artifact(build("fp32")).manifest.record["fused"]


# --- what transformers.js makes of it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The folder with the packages of Node."""
    folder = Path(os.environ.get("QABUILD_NODE_MODULES", "node_modules"))
    if not shutil.which("node") or not (folder / "@huggingface" / "transformers").is_dir():
        pytest.skip("no Node, or QABUILD_NODE_MODULES names no folder with @huggingface/transformers")
    return folder.absolute()


def run(script: str, node_modules: Path, request: dict[str, Any]) -> Any:
    """What the script beside this file prints for the request."""
    process = subprocess.run(
        ["node", str(HERE / script), str(node_modules)], input=json.dumps(request), capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def asked() -> list[dict[str, str]]:
    """The questions of the sample that each fit one window."""
    document = json.loads(sample.HELDOUT.read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    return [
        {"question": qa["question"], "context": paragraph["context"]}
        for paragraph in paragraphs
        for qa in paragraph["qas"]
    ][:60]


def reference(artifact: Path, questions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Answer, token ids and logits by qabuild, one question at a time."""
    import torch

    pipeline = qabuild.load(artifact)
    results = []
    for question in questions:
        inputs = pipeline.tokenizer(question["question"], question["context"], return_tensors="pt")
        with torch.inference_mode():
            output = pipeline.model(**{name: inputs[name] for name in pipeline.model.inputs})
        results.append(
            {
                "answer": pipeline(**question, batch_size=1)["answer"],
                "ids": inputs["input_ids"][0].tolist(),
                "start": output.start_logits[0].tolist(),
                "end": output.end_logits[0].tolist(),
            }
        )
    return results


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return normalise(one["answer"]) == normalise(other["answer"])


@pytest.mark.layouts
@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"), [("fp32", "fp32", 1e-3), ("int8", "q8", 1.0), ("fp16", "fp16", 0.1)]
)
def test_it_answers_in_node_as_verified(build, node_modules, tmp_path, dtype, name, tolerance):
    artifact = build(dtype, FP16 if dtype == "fp16" else "")
    qabuild.export(artifact, "transformers-js", tmp_path / "tiny")
    questions = asked()
    found = run(
        "answers.mjs", node_modules, {"models": str(tmp_path), "name": "tiny", "dtype": name, "questions": questions}
    )
    expected = reference(artifact, questions)
    close = partial(pytest.approx, abs=tolerance)
    for one, other in zip(found, expected, strict=True):
        assert one["ids"] == other["ids"]
        assert one["start"] == close(other["start"])
        assert one["end"] == close(other["end"])
    # The others are too long, or end within a word; docs/guides/layouts.md states the number.
    assert sum(map(same, found, expected)) == 55


@pytest.mark.layouts
@pytest.mark.parametrize("model_type", transformers_js.MODEL_TYPES)
def test_it_runs_every_architecture_that_is_accepted(build, node_modules, tmp_path, tiny_checkpoint, model_type):
    artifact = build("fp32", checkpoint=tiny_checkpoint(model_type))
    qabuild.export(artifact, "transformers-js", tmp_path / "tiny")
    questions = asked()[:2]
    request = {"models": str(tmp_path), "name": "tiny", "dtype": "fp32", "questions": questions}
    for one, other in zip(run("answers.mjs", node_modules, request), reference(artifact, questions), strict=True):
        assert one["ids"] == other["ids"]
        assert one["start"] == pytest.approx(other["start"], abs=1e-3)


@pytest.mark.layouts
def test_the_graphs_run_in_webassembly(build, node_modules, tmp_path):
    if not (node_modules / "onnxruntime-web").is_dir():
        pytest.skip("no onnxruntime-web")
    artifacts = [build("fp32"), build("int8")]
    folder = qabuild.export(artifacts, "transformers-js", tmp_path / "tiny").directory
    (expected,) = reference(artifacts[0], asked()[:1])
    names = ("model.onnx", "model_quantized.onnx")
    request = {"graphs": [str(folder / "onnx" / name) for name in names], "ids": expected["ids"]}
    exact, quantised = run("graphs.mjs", node_modules, request)
    assert exact == pytest.approx(expected["start"], abs=1e-3)
    assert quantised == pytest.approx(expected["start"], abs=1.0)


@pytest.mark.layouts
def test_the_script_of_the_readme_runs(build, node_modules, tmp_path):
    folder = qabuild.export(build("fp32"), "transformers-js", tmp_path / "tiny").directory
    script = re.search(r"```js\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert script is not None
    (tmp_path / "example.mjs").write_text(script[1])
    (tmp_path / "node_modules").symlink_to(node_modules)
    process = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "answer: " in process.stdout


PAGE = """<!doctype html>
<script type="module">
import { env, pipeline } from "./node_modules/@huggingface/transformers/dist/transformers.min.js";
try {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "./";
  env.backends.onnx.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", document.baseURI).href;
  const answer = await pipeline("question-answering", "tiny"); // q8, the default in browsers
  const questions = await (await fetch("questions.json")).json();
  const answers = [];
  for (const { question, context } of questions) answers.push((await answer(question, context)).answer);
  window.answers = answers;
} catch (error) {
  window.answers = [String(error)];
}
</script>
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.layouts
def test_a_browser_loads_it_from_one_site_and_answers_as_node_does(build, node_modules, tmp_path):
    """Chromium finds no other host: all that it needs comes from the server of this test."""
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.support.ui import WebDriverWait

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver and (node_modules / "onnxruntime-web").is_dir()):
        pytest.skip("no Chromium, chromedriver or onnxruntime-web")
    qabuild.export(build("int8"), "transformers-js", tmp_path / "tiny")
    questions = asked()[:10]
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "node_modules").symlink_to(node_modules)
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    for flag in (*flags, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(flag)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        with selenium.Chrome(options, selenium.ChromeService(driver)) as chrome:
            chrome.get(f"http://127.0.0.1:{site.server_port}/")
            WebDriverWait(chrome, 300).until(lambda page: page.execute_script("return window.answers"))
            found = chrome.execute_script("return window.answers")
        site.shutdown()
    request = {"models": str(tmp_path), "name": "tiny", "dtype": "q8", "questions": questions}
    assert found == [one["answer"] for one in run("answers.mjs", node_modules, request)]
