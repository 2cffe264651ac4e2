"""What a step runs, traced function by function, lies in the closure that its key covers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import step_code

from qabuild.builder.closure import EXCLUDED, HERE, ImportGraph
from qabuild.builder.facts import gather
from qabuild.builder.requirements import requirements
from qabuild.builder.store.local import Store
from qabuild.models.backends import BACKENDS
from qabuild.system import packages
from qabuild.target.read import load

# Notes the modules of qabuild whose functions run in this process, for each step that is under way. Every function of
# the package gets one more line when it is imported, so that nothing else is slowed down.
SITE = """\
import ast, atexit, builtins, json, os, sys
from collections import defaultdict
from importlib.machinery import PathFinder, SourceFileLoader

files = defaultdict(set)


def ran(file):
    if step := os.environ.get("TRACED_STEP"):
        files[step].add(file)


def write():
    with open(os.path.join(os.environ["TRACED_OUTPUT"], f"{os.getpid()}.json"), "w") as file:
        json.dump({step: sorted(names) for step, names in files.items()}, file)


class Loader(SourceFileLoader):
    def get_code(self, name):
        tree = ast.parse(self.get_data(self.path))
        line = ast.parse(f"__ran__({self.path!r})").body
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                start = 1 if ast.get_docstring(node) else 0
                node.body[start:start] = line
        tree.body += line
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name.split(".")[0] == "qabuild" else None
        if spec and spec.origin:
            spec.loader = Loader(spec.name, spec.origin)
        return spec


builtins.__ran__ = ran
sys.meta_path.insert(0, Finder)
atexit.register(write)
"""

BUILD = """\
import os, sys
import qabuild
from qabuild.builder.steps import STEPS


def traced(step):
    run = step.run

    def run_traced(context, directory):
        before = os.environ.get("TRACED_STEP")
        os.environ["TRACED_STEP"] = step.name
        try:
            return run(context, directory)
        finally:
            os.environ.pop("TRACED_STEP") if before is None else os.environ.update(TRACED_STEP=before)

    type(step).run = lambda self, context, directory: run_traced(context, directory)


for step in STEPS:
    traced(step)
built = qabuild.build(sys.argv[1], sys.argv[2])
assert built.verification.passed
"""

TARGET = """\
[checkpoint]
model = "sample"

[backend]
name = "{name}"

[verify]
dataset = "sample"
samples = 8
"""
TARGETS = {
    **{name: TARGET.format(name=name) for name in BACKENDS},
    "all-stages": TARGET.format(name="eager")
    + """
[verify.gates]
min_f1_retention = 0

[train]
dataset = "sample"
samples = 24
held_out = 8
epochs = 1
max_seq_len = 96
doc_stride = 32

[distill]
teacher.model = "sample"
search.trials = 1

[prune]
dataset = "sample"
samples = 32
ffn = 0.75

[prune.recover]
dataset = "sample"
samples = 16
max_seq_len = 96
doc_stride = 32
""",
    "int8": TARGET.format(name="openvino").replace(
        'name = "openvino"', 'name = "openvino"\ncalibration = "sample"\ncalibration_samples = 8\noverflow_fix = true'
    )
    + '\n[verify.gates]\nmin_f1_retention = 0\n\n[runtime]\ndtype = "int8"\n',
}

DESCRIBES = ("qabuild.builder.", "qabuild.target.")
"""Modules that describe steps and targets, and hand the work over."""


def executed(folder: Path) -> dict[str, set[str]]:
    """The modules that ran in each step of a build of traced.toml, in this process and those that it started."""
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "build.py").write_text(BUILD)
    (folder / "out").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(HERE.parent)]),
        "TRACED_OUTPUT": str(folder / "out"),
        "QABUILD_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "build.py", "traced.toml", str(folder / "artifacts")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules: dict[str, set[str]] = {}
    for path in (folder / "out").glob("*.json"):
        for step, files in json.loads(path.read_text()).items():
            modules.setdefault(step, set()).update(map(module_of, files))
    return modules


def module_of(file: str) -> str:
    parts = Path(file).relative_to(HERE).with_suffix("").parts
    return ".".join(["qabuild", *parts]).removesuffix(".__init__")


@pytest.mark.parametrize("name", TARGETS)
def test_what_runs_in_a_step_lies_in_its_closure(name, tmp_path):
    (tmp_path / "traced.toml").write_text(TARGETS[name])
    target = load(tmp_path / "traced.toml")
    if missing := packages.missing(requirements(target), "cpu"):
        pytest.skip("; ".join(missing))
    facts = gather(target, Store(tmp_path / "empty"), "x", fetch=False)
    roots = step_code.roots({name: (target, facts)})
    ran = executed(tmp_path)
    assert set(ran) == {step for _, step in roots}
    for step, modules in ran.items():
        work = {module for module in modules - EXCLUDED if not module.startswith(DESCRIBES)}
        assert work
        assert work <= ImportGraph().closure(*roots[name, step]), step
