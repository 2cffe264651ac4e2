"""A backend or a stage comes with the files that are its own, one line in a table, and nothing else.

Each test adds one to a copy of the package and uses it as everyone would.
"""

from __future__ import annotations

import json
from pathlib import Path

import package_copy
import pytest
from package_copy import edit

TARGET = """\
description = "answers in lower case"

[checkpoint]
model = "sample"

[backend]
name = "{backend}"

[verify]
dataset = "sample"
samples = 8
"""

NUDGE = """
[nudge]
size = 0.5
"""

STEP = '''\
"""The step `nudge`: the bias of the head, moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.builder.keys import Inputs, flat, package_inputs
from qabuild.builder.steps.step import Context, Facts, Requirements
from qabuild.target.model import Target


class Nudge:
    name: ClassVar[str] = "nudge"
    stage: ClassVar[str] = "nudge"
    folder: ClassVar[str | None] = None

    def requires(self, target: Target) -> Requirements:
        return {"torch": ()} if target.nudge else {}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        return {
            "checkpoint": facts.identity,
            **flat("nudge", target.stage_table("nudge").model_dump(mode="json")),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest("qabuild.models.nudging"),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.models import nudging

        return nudging.nudge(context.checkpoint, context.target.nudge.size, directory)
'''

WORK = '''\
"""Moves the bias of the question-answering head."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qabuild.models.checkpoint.resolve import Checkpoint


def nudge(checkpoint: Checkpoint, size: float, directory: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint.directory, directory, dirs_exist_ok=True)
    tensors = load_file(directory / "model.safetensors")
    tensors["qa_outputs.bias"] += size
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return {"moved": "qa_outputs.bias"}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of package and targets, of whose files nothing was built yet."""
    return package_copy.copy(tmp_path)


def test_a_backend_is_one_folder_and_one_line(folder):
    backends = folder / "qabuild" / "models" / "backends"
    before = package_copy.keys(folder, "targets/quickstart.toml")
    (backends / "other").mkdir()
    eager = (backends / "eager.py").read_text(encoding="utf-8")
    eager = eager.replace('"eager"', '"other"').replace('RUNTIME = ("torch", "torch")', 'RUNTIME = ("Other", "numpy")')
    (backends / "other" / "__init__.py").write_text(eager, encoding="utf-8")
    edit(backends / "__init__.py", '    "eager": "', '    "other": "qabuild.models.backends.other",\n    "eager": "')
    (folder / "lower.toml").write_text(TARGET.format(backend="other"))

    (built,) = package_copy.document(folder, "build", "lower.toml")
    assert built["verification"]["passed"]
    (verified,) = package_copy.document(folder, "verify", "artifacts/lower")
    assert verified["verification"]["passed"]
    found = package_copy.document(folder, "doctor", "lower.toml")
    assert found["backends"]["other"] == []
    assert "Other" in {part["subject"] for part in found["machine"]}
    assert '"other"' in package_copy.run(folder, "schema").stdout
    assert package_copy.keys(folder, "targets/quickstart.toml") == before


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the stage, and two targets, with it and without, that were built."""
    folder = package_copy.copy(tmp_path_factory.mktemp("staged"))
    package = folder / "qabuild"
    before = package_copy.keys(folder, "targets/quickstart-distil.toml")
    (package / "builder" / "steps" / "nudge.py").write_text(STEP, encoding="utf-8")
    (package / "models" / "nudging.py").write_text(WORK, encoding="utf-8")
    table = package / "builder" / "steps" / "__init__.py"
    edit(table, "import compile, deviation", "import compile, deviation, nudge")
    edit(table, "    compile.Compile(),", "    nudge.Nudge(),\n    compile.Compile(),")
    model = package / "target" / "model.py"
    edit(model, 'STAGES = ("train", "prune", "recover")', 'STAGES = ("train", "prune", "recover", "nudge")')
    edit(model, "class Publish(Frozen):", "class Nudge(Frozen):\n    size: float = 1.0\n\n\nclass Publish(Frozen):")
    edit(model, "    backend: BackendOptions\n", "    nudge: Nudge | None = None\n    backend: BackendOptions\n")
    assert package_copy.keys(folder, "targets/quickstart-distil.toml") == before
    (folder / "plain.toml").write_text(TARGET.format(backend="eager"))
    (folder / "nudged.toml").write_text(TARGET.format(backend="eager") + NUDGE)
    built = package_copy.document(folder, "build", "plain.toml", "nudged.toml")
    assert [each["verification"]["passed"] for each in built] == [True, True]
    return folder


def steps(folder: Path, *arguments: str) -> dict[str, bool]:
    """The steps of a plan, and whether each is there already."""
    (plan,) = package_copy.document(folder, "plan", *arguments)
    return {step["name"]: step["cached"] for step in plan["steps"]}


def test_a_stage_is_a_step_its_work_and_a_table(staged):
    artifacts = staged / "artifacts"
    manifest = json.loads((artifacts / "nudged" / "manifest.json").read_text())
    (stage,) = manifest["stages"]
    assert (stage["stage"], stage["options"], stage["moved"]) == ("nudge", {"size": 0.5}, "qa_outputs.bias")
    plain, nudged = ((artifacts / name / "model.safetensors").read_bytes() for name in ("plain", "nudged"))
    assert plain != nudged


def test_a_stage_is_planned_as_the_others_are(staged):
    names = ["checkpoint", "nudge", "compile", "reference", "verify"]
    assert steps(staged, "nudged.toml") == dict.fromkeys(names, True)
    assert not steps(staged, "nudged.toml", "--set", "nudge.size=2")["nudge"]
    ran = package_copy.run(staged, "plan", "nudged.toml", "--set", "nudge.sise=2")
    assert (ran.returncode, "perhaps you meant 'size'" in ran.stderr) == (2, True), ran.stderr


def test_a_target_that_is_built_on_another_has_its_stages(staged):
    """The same checkpoint, made once."""
    (staged / "on-it.toml").write_text(
        TARGET.format(backend="torchscript").replace('model = "sample"', 'target = "nudged"')
    )
    planned = steps(staged, "on-it.toml")
    assert (planned["nudge"], planned["reference"], planned["compile"]) == (True, True, False)
