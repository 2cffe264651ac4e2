"""A step's key covers the code that its work may run, and no other."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from typing import Any

import grimp
import pytest
import step_code
from step_code import Known, code_inputs

from qabuild.builder.closure import EXCLUDED, HERE, ImportGraph, import_statements
from qabuild.builder.facts import gather
from qabuild.builder.steps import STEPS
from qabuild.builder.store.local import Store
from qabuild.models.backends import BACKENDS
from qabuild.target.model import Target

MODULES = {
    ".".join(["qabuild", *path.relative_to(HERE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(HERE.rglob("*.py"))
}
SAMPLE = {"checkpoint": {"model": "sample"}, "verify": {"dataset": "sample"}}
TARGETS: dict[str, dict[str, Any]] = {
    **{name: {**SAMPLE, "backend": {"name": name}} for name in BACKENDS},
    "int8": {
        **SAMPLE,
        "backend": {"name": "openvino", "calibration": "sample"},
        "runtime": {"dtype": "int8"},
    },
    "all-stages": {
        **SAMPLE,
        "backend": {"name": "eager"},
        "train": {"dataset": "sample", "samples": 32, "held_out": 8},
        "distill": {"teacher": {"model": "sample"}, "search": {"trials": 1}},
        "prune": {"dataset": "sample", "ffn": 0.5, "recover": {"dataset": "sample"}},
    },
    "pruned": {
        **SAMPLE,
        "backend": {"name": "eager"},
        "prune": {"dataset": "sample", "speedup": 1.5, "recover": {"dataset": "sample"}},
    },
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """The targets above, with the facts about each."""
    store = Store(tmp_path_factory.mktemp("store"))
    targets = {name: Target.model_validate({"name": name, **tables}) for name, tables in TARGETS.items()}
    return {name: (target, gather(target, store, name, fetch=False)) for name, target in targets.items()}


@pytest.fixture(scope="module")
def roots(facts: Known) -> dict[tuple[str, str], tuple[str, ...]]:
    """The modules that the code of each step begins with, by target and step."""
    return step_code.roots(facts)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """The package's imports, as a tool made for it reads them."""
    return grimp.build_graph("qabuild", exclude_type_checking_imports=True, cache_dir=None)


def closure_by_graph(graph: grimp.ImportGraph, roots: tuple[str, ...]) -> set[str]:
    """The import closure: modules, and the packages around them, less what is excluded."""
    closure: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in closure:
            continue
        waiting.append(module.rpartition(".")[0] or module)
        closure.add(module)
        if module not in EXCLUDED:
            waiting += graph.find_modules_directly_imported_by(module)
    return closure - EXCLUDED


def test_every_step_is_examined(roots):
    assert {step for _, step in roots} == {step.name for step in STEPS}


def test_the_closure_is_that_of_the_import_graph(roots, graph):
    for modules in set(roots.values()):
        assert ImportGraph().closure(*modules) == closure_by_graph(graph, modules)


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_found_as_the_parser_finds_them(module):
    text = MODULES[module].read_text(encoding="utf-8")
    found = {ast.unparse(statement) for statement in import_statements(text)}
    assert found >= {ast.unparse(statement) for statement in imports_that_run(ast.parse(text))}


def imports_that_run(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from imports_that_run(other)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if any(name.split(".")[0] == "qabuild" for name in names):
                yield node
        else:
            yield from imports_that_run(node)


def test_work_does_not_hold_what_describes_it(roots):
    """A new table of a target, a command or a step rebuilds nothing."""
    described = ("qabuild.builder", "qabuild.cli", "qabuild.publishing", "qabuild.target.")
    for modules in roots.values():
        assert not [module for module in ImportGraph().closure(*modules) if module.startswith(described)]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_holds_no_other(name):
    others = tuple(module for other, module in BACKENDS.items() if other != name)
    held = ImportGraph().closure(BACKENDS[name])
    assert not [module for module in held for other in others if module == other or module.startswith(f"{other}.")]


def test_a_changed_module_changes_exactly_the_steps_that_hold_it(facts, roots, graph, tmp_path):
    package = shutil.copytree(HERE, tmp_path / "qabuild", ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    before = {(name, step): code for name, step, code in code_inputs(facts, ImportGraph(package))}
    held = {modules: closure_by_graph(graph, modules) for modules in set(roots.values())}
    for module, path in MODULES.items():
        copy = package / path.relative_to(HERE)
        original = copy.read_bytes()
        copy.write_bytes(original + b"# changed\n")
        after = {(name, step): code for name, step, code in code_inputs(facts, ImportGraph(package))}
        changed = {step for step in before if after[step] != before[step]}
        assert changed == {step for step, modules in roots.items() if module in held[modules]}, module
        copy.write_bytes(original)


def test_a_module_that_comes_changes_nothing_until_it_is_imported(facts, tmp_path):
    package = shutil.copytree(HERE, tmp_path / "qabuild", ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    before = list(code_inputs(facts, ImportGraph(package)))
    (package / "models" / "fresh.py").write_text("")
    assert list(code_inputs(facts, ImportGraph(package))) == before
    load = package / "models" / "checkpoint" / "load.py"
    load.write_text(load.read_text() + "\n\ndef later() -> None:\n    from qabuild.models import fresh  # noqa: F401\n")
    imported = list(code_inputs(facts, ImportGraph(package)))
    (package / "models" / "fresh.py").write_text("# changed\n")
    assert list(code_inputs(facts, ImportGraph(package))) != imported


def test_imports_for_the_type_checker_do_not_count():
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from qabuild.a import b\n\n    from qabuild.c import d\n"
        "from qabuild.e import (\n    f,\n    g,\n)\n"
        "def h():\n    import qabuild.i\n"
        '"""\nfrom qabuild on, this is prose\n"""\n'
    )
    assert [ast.unparse(statement) for statement in import_statements(text)] == [
        "from qabuild.e import f, g",
        "import qabuild.i",
    ]
