"""Wrong results that hand-written lists of modules have let through, each as someone would meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import package_copy
import pytest

SAMPLE = ("--set", "checkpoint.model=sample", "--set", "verify.dataset=sample")
CALIBRATED = (*SAMPLE, "--set", "backend.calibration=sample")


@pytest.fixture
def changes(tmp_path: Path) -> Callable[..., set[str]]:
    """`changes(edit, *arguments)`: the steps of `qabuild plan ARGUMENTS` whose keys an edit of the package changes."""

    def changed(edit: Callable[[Path], None], *arguments: str) -> set[str]:
        folder = package_copy.copy(tmp_path)
        before = package_copy.keys(folder, *arguments)
        edit(folder / "qabuild")
        after = package_copy.keys(folder, *arguments)
        return {name for name in before if after[name] != before[name]}

    return changed


def comment(module: str) -> Callable[[Path], None]:
    """An edit that appends a comment to a module."""

    def append(package: Path) -> None:
        path = package / module
        path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")

    return append


def test_teacher_logits_follow_the_template_of_special_tokens(changes):
    edit = comment("qa/pipeline/template.py")
    assert changes(edit, "targets/quickstart-distil.toml") >= {"logits", "train"}


def test_what_is_compiled_follows_the_guard_on_instruction_sets(changes):
    def one_more(package: Path) -> None:
        path = package / "system" / "machine.py"
        package_copy.edit(path, '"AVX512-BF16", "AMX-BF16")', '"AVX512-BF16", "AMX-BF16", "AVX10")')
        package_copy.edit(path, '"AVX-VNNI", "AMX-INT8")', '"AVX-VNNI", "AMX-INT8", "AVX10")')

    assert "compile" in changes(one_more, "targets/openvino-int8-cpu.toml", *CALIBRATED)


def test_a_search_follows_the_code_that_scores_its_trials(changes):
    arguments = ("--set", "distill.search.trials=2", "--set", "train.held_out=10")
    edit = comment("qa/ask.py")
    assert "search" in changes(edit, "targets/quickstart-distil.toml", *arguments)


@pytest.mark.parametrize("key", ["max_question_len=9", "align_to_words=true", "handle_impossible_answer=true"])
def test_how_questions_are_answered_changes_what_is_answered_and_nothing_that_is_compiled(key, tmp_path):
    folder = package_copy.copy(tmp_path)
    arguments = ("targets/openvino-int8-cpu.toml", *CALIBRATED)
    before, after = (package_copy.keys(folder, *arguments, *more) for more in ((), ("--set", f"answer.{key}")))
    assert {name for name in before if after[name] != before[name]} == {"reference", "deviation", "verify"}


def test_one_backends_files_rebuild_no_other(changes):
    assert changes(comment("models/backends/openvino/build.py"), "targets/ort-fp32-cpu.toml", *SAMPLE) == set()


def test_a_new_backend_rebuilds_no_other(changes):
    def add(package: Path) -> None:
        eager = package / "models" / "backends" / "eager.py"
        (eager.parent / "other.py").write_text(eager.read_text().replace('"eager"', '"other"'))
        table = package / "models" / "backends" / "__init__.py"
        package_copy.edit(table, '    "eager": "', '    "other": "qabuild.models.backends.other",\n    "eager": "')

    assert changes(add, "targets/ort-fp32-cpu.toml", *SAMPLE) == set()


def test_a_backend_that_states_no_architectures_supports_none(tmp_path):
    folder = package_copy.copy(tmp_path)
    eager = folder / "qabuild" / "models" / "backends" / "eager.py"
    package_copy.edit(eager, "WAYS = (EAGER,)", "WAYS = ()")
    ran = package_copy.run(folder, "plan", "targets/quickstart.toml", "--set", "backend.name=eager")
    assert (ran.returncode, "the backend eager states no architectures" in ran.stderr) == (2, True), ran.stderr


def test_an_architecture_that_a_backend_does_not_state_is_refused_by_name(tmp_path):
    folder = package_copy.copy(tmp_path)
    eager = folder / "qabuild" / "models" / "backends" / "eager.py"
    package_copy.edit(eager, '"roberta", ', "")
    ran = package_copy.run(folder, "plan", "targets/quickstart.toml", "--set", "backend.name=eager")
    assert ran.returncode == 2
    assert "the backend eager does not support model_type 'roberta'" in ran.stderr


def test_a_change_of_code_is_the_reason_that_a_plan_gives(tmp_path):
    folder = package_copy.copy(tmp_path)
    target = ("targets/quickstart.toml", "--set", "verify.samples=8")
    assert package_copy.run(folder, "build", *target).returncode == 0
    comment("evaluation/measure.py")(folder / "qabuild")
    (plan,) = package_copy.document(folder, "plan", *target)
    reasons = {step["name"]: (step["cached"], step["reason"]) for step in plan["steps"]}
    assert reasons["verify"] == (False, "qabuild's own code for this step changed")
    assert reasons["compile"] == reasons["reference"] == (True, "nothing changed")
