"""Artifacts that carry code, sealed again so that their digests are right: nothing but the backend's model may run."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qabuild
from qabuild.artifact import handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.manifest import open_artifact, seal
from qabuild.builder.store.local import Store
from qabuild.cli import main
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.runtime import Runtime
from qabuild.system import packages

PACKAGE = Path(qabuild.__file__).parent
TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = 4
[verify.gates]
min_f1_retention = 0.0
"""
QUESTION = {"id": "1", "question": "Who built the lighthouse?", "context": "Mira Voss built the lighthouse in 1871."}

Tamper = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`build("eager")`: the sample as an artifact of that backend, built once."""
    folder = tmp_path_factory.mktemp("sound")

    def make(name: str) -> Path:
        if missing := packages.missing(dict.fromkeys(backend(name).PACKAGES, ()), "cpu"):
            pytest.skip("; ".join(missing))
        if not (folder / "artifacts" / name).exists():
            (folder / f"{name}.toml").write_text(TARGET.format(backend=name))
            qabuild.build(folder / f"{name}.toml", folder / "artifacts", results=Store(folder / "store"))
        return folder / "artifacts" / name

    return make


@pytest.fixture
def tampered(build: Callable[[str], Path], tmp_path: Path) -> Tamper:
    """`tampered("eager", change)`: a copy of that artifact after `change(folder)`, sealed again."""

    def tamper(name: str, change: Callable[[Path], object]) -> Path:
        original = open_artifact(build(name))
        copy = shutil.copytree(original.directory, tmp_path / "tampered")
        change(copy)
        (copy / artifacts.EVIDENCE).unlink()
        seal(copy, **{name: value for name, value in original.manifest.__dict__.items() if name != "files"})
        return copy

    return tamper


@pytest.fixture(params=["verify", "answer"])
def command(request: Any, tmp_path: Path, capfd: Any) -> Callable[[Path], tuple[int, str]]:
    """Exit status and messages of `qabuild verify FOLDER` or `qabuild answer FOLDER questions.jsonl`."""

    def run(folder: Path) -> tuple[int, str]:
        (tmp_path / "questions.jsonl").write_text(json.dumps(QUESTION))
        arguments = [] if request.param == "verify" else [tmp_path / "questions.jsonl", "--allow-unverified"]
        with pytest.raises(SystemExit) as stop:
            main([request.param, str(folder), *map(str, arguments)])
        return int(stop.value.code or 0), capfd.readouterr().err

    return run


# --- TorchScript ----------------------------------------------------------------------------------------------------

SCRIPTS = {
    "a file": """
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
            torch.from_file("PLACEHOLDER", True, 4).copy_(torch.ones(4))
            logits = input_ids.float()
            return logits, logits
    """,
    "a file, by another method": """
        @torch.jit.export
        def write(self):
            torch.from_file("PLACEHOLDER", True, 4).copy_(torch.ones(4))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
            self.write()
            logits = input_ids.float()
            return logits, logits
    """,
    "a file, on loading": """
        @torch.jit.export
        def __getstate__(self):
            return 1, self.training

        @torch.jit.export
        def __setstate__(self, state: Tuple[int, bool]):
            torch.from_file("PLACEHOLDER", True, 4).copy_(torch.ones(4))
            self.training = state[1]

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
            logits = input_ids.float()
            return logits, logits
    """,
    "prints": """
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
            print("PLACEHOLDER")
            logits = input_ids.float()
            return logits, logits
    """,
}


def script(program: str, written: Path, folder: Path) -> None:
    """Replace `model.pt` by a scripted module with those methods, whose code names the file `written`."""
    import importlib.util
    from textwrap import dedent, indent

    import torch

    from qabuild.models.backends.torchscript.archive import save

    text = indent(dedent(program), "    ").replace("PLACEHOLDER", str(written))
    module = folder.parent / "scripted.py"
    module.write_text(f"from typing import Tuple\nimport torch\nclass Module(torch.nn.Module):\n{text}")
    spec = importlib.util.spec_from_file_location("scripted", module)
    assert spec is not None
    assert spec.loader is not None
    scripted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scripted)
    save(torch.jit.script(scripted.Module().eval()), folder / "model.pt")


@pytest.mark.both_lines
@pytest.mark.parametrize("program", SCRIPTS)
def test_a_torchscript_program_with_effects_never_runs(
    program: str, tampered: Tamper, command: Any, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    folder = tampered("torchscript", lambda folder: script(SCRIPTS[program], written, folder))
    status, message = command(folder)
    assert status == 4, message
    assert "model.pt: " in message
    assert not written.exists()


# --- configs that make transformers import modules ------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({written!r}).touch()\nclass Config: pass\nclass Tokenizer: pass\n"


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def versioned(folder: Path) -> None:
    """Another config, for this version of transformers and newer ones."""
    edit(folder, "config.json", configuration_files=["config.4.0.0.json"])
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    edit(folder, "config.4.0.0.json", auto_map={"AutoConfig": "evil.Config"})


CONFIGS: dict[str, Callable[[Path], object]] = {
    "auto_map": lambda folder: edit(folder, "config.json", auto_map={"AutoConfig": "evil.Config"}),
    "nested": lambda folder: edit(folder, "config.json", text={"auto_map": {"AutoConfig": "evil.Config"}}),
    "custom_pipelines": lambda folder: edit(folder, "config.json", custom_pipelines={"qa": {"impl": "evil.Pipeline"}}),
    "kernels of the Hub": lambda folder: edit(folder, "config.json", _attn_implementation="evil/kernels"),
    "another version": versioned,
    "a tokenizer": lambda folder: edit(
        folder, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}
    ),
    "a processor": lambda folder: edit(folder, "processor_config.json", auto_map={"AutoProcessor": "evil.Tokenizer"}),
}


@pytest.mark.both_lines
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["torchscript", "onnxruntime", "openvino", "eager"])
def test_a_config_that_names_code_is_refused(
    name: str, config: str, tampered: Tamper, command: Any, tmp_path: Path
) -> None:
    written = tmp_path / "written"

    def change(folder: Path) -> None:
        (folder / "evil.py").write_text(EVIL.format(written=str(written)))
        CONFIGS[config](folder)

    status, message = command(tampered(name, change))
    assert status == 4, message
    assert "config" in message
    assert "can make transformers run code" in message
    assert not written.exists()


# --- what qabuild asks of transformers ------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """Python text by name: every module of the package, and the snippets and handlers that it writes."""
    texts = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    for name in BACKENDS:
        module = backend(name)
        for device, dtypes in module.DTYPES.items():
            for dtype in dtypes:
                runtime = Runtime(device=device, dtype=dtype)  # type: ignore[arg-type]
                texts[f"snippet of {name} {device} {dtype}"] = module.snippet(module.Options(), runtime)
    return texts


def loads(text: str) -> list[ast.Call]:
    """The calls of `from_pretrained` in a text."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"]


def test_every_from_pretrained_states_that_no_remote_code_runs(tmp_path: Path) -> None:
    handler.write(backend("onnxruntime").Options(), Runtime(), {}, tmp_path)
    texts = {**sources(), "handler": (tmp_path / handler.HANDLER).read_text()}
    calls = {name: found for name, text in texts.items() if (found := loads(text))}
    assert {"models/checkpoint/load.py", "snippet of eager cpu bf16", "handler"} <= set(calls)
    for name, found in calls.items():
        for call in found:
            stated = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert stated.get("trust_remote_code") == "False", f"{name}: {ast.unparse(call)}"


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "deepspeed"])
def test_a_sound_artifact_passes(name: str, build: Callable[[str], Path], command: Any) -> None:
    status, message = command(build(name))
    assert status == 0, message
