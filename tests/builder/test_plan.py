"""A plan follows from its target and a few facts alone: what decides a step is in its key, and nothing else is."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.builder.closure import ImportGraph
from qabuild.builder.facts import TargetFacts, gather
from qabuild.builder.plan import Plan, PlanStep, describe_changes, history_name, make
from qabuild.builder.preview import preview, previews
from qabuild.builder.store.local import Entry, Store
from qabuild.errors import BadTarget, QABuildError
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.qa import sample
from qabuild.qa.data.dataset_ref import Columns
from qabuild.target.model import Target

CHECKPOINT = Checkpoint(
    directory=Path("/weights"), name="me/model", revision="1" * 40, digest="c" * 64, config={"model_type": "bert"}
)

PACKAGES = (
    "deepspeed",
    "evaluate",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "optimum",
    "optimum-onnx",
    "tokenizers",
    "torch",
    "transformers",
)
STEPS = ("compile", "reference", "verify")

FACTS = TargetFacts(
    checkpoint=CHECKPOINT,
    data={"verify.dataset": "d" * 64, "backend.calibration": "a" * 64},
    versions=dict.fromkeys(PACKAGES, "1.0"),
    code=ImportGraph(),
    machine={
        "cpu": "Xeon",
        "cores": 2,
        "instruction_sets": ["AVX2", "AVX512-VNNI"],
        "system": "Linux x86_64",
        "python": "3.11.9",
    },
    missing=(),
    cached=frozenset(),
    previous={},
)

WITH_GPU = {"gpus": ["H100"], "gpu_architecture": "sm_90", "driver": "570.1"}


def target(backend_name: str = "eager", *, name: str = "x", **tables: Any) -> Target:
    """`target("onnxruntime", backend={"level": 1}, verify={"samples": 8})`"""
    options = {"name": backend_name, **tables.pop("backend", {})}
    return Target.model_validate({"name": name, "checkpoint": {"model": "me/model"}, "backend": options, **tables})


def facts(**changed: Any) -> TargetFacts:
    """FACTS with other values; those of a mapping are put on top of it."""
    merged = {
        name: {**getattr(FACTS, name), **value} if isinstance(value, dict) else value for name, value in changed.items()
    }
    return replace(FACTS, **merged)


def keys(plan: Plan) -> dict[str, str | None]:
    return {step.name: step.key for step in cached_steps(plan)}


def cached_steps(plan: Plan) -> tuple[PlanStep, ...]:
    """The steps whose results the store keeps: all but the first, the checkpoint."""
    first, *others = plan.steps
    assert first.name == "checkpoint"
    return tuple(others)


def changed(before: Plan, after: Plan) -> set[str]:
    """Names of the steps whose keys differ."""
    return {name for name in STEPS if keys(before)[name] != keys(after)[name]}


def shown(value: Any) -> str:
    """A test's id: the same in every process, as that of a set is not."""
    return " ".join(sorted(value)) if isinstance(value, set) else str(value)


ALL = {"compile", "reference", "verify"}
COMPILED = {"compile", "verify"}
ANSWERED = {"reference", "verify"}
VERIFIED = {"verify"}
NONE: set[str] = set()


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"name": "y"}, NONE),
        ({"description": "another"}, NONE),
        ({"publish": {"repo": "me/there"}}, NONE),
        ({"verify": {"gates": {"min_speedup": 2.0, "min_f1_retention": 0.5, "min_agreement": 0.1}}}, NONE),
        # Where Hub ids lead is a fact; what they are called there is not.
        ({"checkpoint": {"model": "me/fork", "revision": "v2"}}, NONE),
        ({"verify": {"revision": "v2"}}, NONE),
        ({"verify": {"fingerprint": "f" * 64}}, NONE),
        ({"verify": {"seed": 1}}, NONE),  # it draws nothing where all questions are asked
        ({"verify": {"samples": 8}}, ANSWERED),
        ({"verify": {"split": "train"}}, ANSWERED),
        ({"verify": {"batch_size": 4}}, VERIFIED),  # of the stock pipeline, which looks on
        ({"verify": {"cross_check": "all"}}, VERIFIED),
        ({"verify": {"dataset": "me/questions"}}, ANSWERED),  # sealed with the answers
        ({"runtime": {"dtype": "bf16"}}, COMPILED),
        ({"runtime": {"device": "cuda"}}, COMPILED),
    ],
    ids=shown,
)
def test_what_a_target_says_changes_the_steps_that_it_decides(tables, expected):
    assert changed(make(target(), FACTS), make(target(**tables), FACTS)) == expected


def test_the_seed_of_a_draw_decides_which_questions_are_asked():
    drawn, redrawn = (target(verify={"samples": 8, "seed": seed}) for seed in (0, 1))
    assert changed(make(drawn, FACTS), make(redrawn, FACTS)) == ANSWERED


def test_a_file_of_questions_counts_by_its_name_not_by_its_folder():
    here, there, renamed = (
        make(target(verify={"dataset": path}), FACTS) for path in ("/here/dev.json", "/there/dev.json", "/here/d.json")
    )
    assert changed(here, there) == NONE
    assert changed(here, renamed) == ANSWERED
    split = make(target(verify={"dataset": "/here/dev.json", "split": "test"}), FACTS)
    assert changed(here, split) == NONE, "a file has no splits"


def test_calibration_questions_count_by_their_bytes_and_name_where_they_are_read():
    def calibrated(dtype: str, path: str = "/here/train.json", **changed: Any) -> Plan:
        tables = {"backend": {"calibration": path}, "runtime": {"dtype": dtype}}
        return make(target("openvino", **tables), facts(data={"backend.calibration": "a" * 64, **changed}))

    assert changed(calibrated("int8"), calibrated("int8", "/there/train.json")) == NONE
    assert changed(calibrated("int8"), calibrated("int8", **{"backend.calibration": "b" * 64})) == COMPILED
    assert changed(calibrated("fp32"), calibrated("fp32", **{"backend.calibration": "b" * 64})) == NONE
    assert "the bytes of the calibration data changed" in describe_changes(
        calibrated("int8").step("compile").inputs,
        calibrated("int8", **{"backend.calibration": "b" * 64}).step("compile").inputs,
        set(),
    )
    unknown = calibrated("int8", "owner/data", **{"backend.calibration": None})
    assert (unknown.step("compile").key, unknown.step("verify").key) == (None, None)
    assert unknown.step("reference").key


def every_option() -> list[Any]:
    """Every key that any backend has in a target, each with every other value that it may take."""
    return [
        pytest.param(name, key, value, id=f"{name}.{key}={value}")
        for name in BACKENDS
        for key, field in backend(name).Options.model_fields.items()
        if key not in ("name", "calibration_fingerprint")
        for value in _others(field)
    ]


def _others(field: Any) -> list[Any]:
    if isinstance(field.default, bool):
        return [not field.default]
    literals = [value for arm in (field.annotation, *get_args(field.annotation)) for value in get_args(arm)]
    others = [value for value in literals if isinstance(value, (str, int)) and value != field.default]
    if others:
        return others
    if Columns in get_args(field.annotation):
        return [{"question": "frage"}]
    if field.default is None:
        return [0.5 if float in get_args(field.annotation) else "main"]
    if isinstance(field.default, float):
        return [field.default / 2 or 0.5]
    return [f"./{field.default}"] if isinstance(field.default, str) else [field.default + 1]


@pytest.mark.parametrize(("name", "key", "value"), every_option())
def test_every_option_of_a_backend_decides_what_it_compiles(name, key, value):
    assert changed(make(target(name), FACTS), make(target(name, backend={key: value}), FACTS)) == COMPILED


def test_a_fingerprint_checks_bytes_and_decides_nothing():
    asked = {"dtype": "int8"}
    pinned = {"calibration_fingerprint": "a" * 64}
    one, other = (
        make(target("openvino", runtime=asked, backend=options), facts(data={"backend.calibration": "b" * 64}))
        for options in ({}, pinned)
    )
    assert changed(one, other) == NONE


def test_backends_share_the_answers_of_the_checkpoint():
    plans = [make(target(name), FACTS) for name in BACKENDS]
    assert len({plan.step("reference").key for plan in plans}) == 1
    assert len({plan.step("compile").key for plan in plans}) == len(BACKENDS)
    assert len({plan.step("verify").key for plan in plans}) == len(BACKENDS)


@pytest.mark.parametrize(
    ("name", "package", "expected"),
    [
        ("eager", "torch", ALL),
        ("eager", "transformers", ALL),
        ("eager", "tokenizers", ALL),
        ("eager", "evaluate", VERIFIED),
        ("onnxruntime", "onnxruntime", COMPILED),
        ("onnxruntime", "onnx", COMPILED),
        ("onnxruntime", "optimum", NONE),
        ("deepspeed", "deepspeed", COMPILED),
    ],
)
def test_another_version_of_a_package_changes_the_steps_that_it_takes_part_in(name, package, expected):
    assert changed(make(target(name), FACTS), make(target(name), facts(versions={package: "1.1"}))) == expected


@pytest.mark.parametrize("package", ["optimum", "optimum-onnx"])
def test_the_version_of_optimum_counts_where_it_exports(package):
    asked = target("onnxruntime", backend={"exporter": "optimum"})
    assert changed(make(asked, FACTS), make(asked, facts(versions={package: "1.1"}))) == COMPILED


def test_onnxruntime_counts_under_the_name_that_it_is_installed_by():
    def with_gpu_package(version: str) -> Plan:
        versions = {name: number for name, number in FACTS.versions.items() if name != "onnxruntime"}
        return make(target("onnxruntime"), replace(FACTS, versions={**versions, "onnxruntime-gpu": version}))

    assert changed(make(target("onnxruntime"), FACTS), with_gpu_package("1.0")) == COMPILED
    assert changed(with_gpu_package("1.0"), with_gpu_package("1.1")) == COMPILED


@pytest.mark.parametrize(
    ("tables", "machine", "expected"),
    [
        ({}, {"cpu": "EPYC"}, VERIFIED),
        ({}, {"cores": 64}, VERIFIED),
        ({}, WITH_GPU, VERIFIED),
        ({}, {"python": "3.12.1", "system": "Linux aarch64"}, NONE),
        ({}, {"instruction_sets": ["AVX2"]}, NONE),
        ({"runtime": {"dtype": "int8"}}, {"instruction_sets": ["AVX2"]}, COMPILED),
        ({"runtime": {"device": "cuda"}}, WITH_GPU, ALL),  # now the checkpoint answers on the GPU as well
    ],
    ids=shown,
)
def test_the_machine_counts_where_it_decides(tables, machine, expected):
    asked = target("onnxruntime", **tables)
    assert changed(make(asked, FACTS), make(asked, facts(machine=machine))) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gpu_architecture": "sm_100", "gpus": ["B200"]}, COMPILED),
        ({"gpu_architecture": "sm_100"}, COMPILED),
        ({"gpus": ["H100", "H100"]}, VERIFIED),
        ({"driver": "580.2"}, VERIFIED),
    ],
    ids=shown,
)
def test_what_is_compiled_for_a_gpu_is_compiled_for_its_architecture(change, expected):
    asked = target(runtime={"device": "cuda", "dtype": "fp16"})
    assert changed(make(asked, facts(machine=WITH_GPU)), make(asked, facts(machine={**WITH_GPU, **change}))) == expected


def test_other_bytes_of_checkpoint_or_data_change_what_is_made_of_them():
    plan = make(target(), FACTS)
    other = replace(CHECKPOINT, digest="e" * 64)
    assert changed(plan, make(target(), facts(checkpoint=other))) == ALL
    assert changed(plan, make(target(), facts(data={"verify.dataset": "e" * 64}))) == ANSWERED
    moved = replace(CHECKPOINT, directory=Path("/moved"), name="me/copy", revision=None)
    assert changed(plan, make(target(), facts(checkpoint=moved))) == NONE


declared = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["validation", "train"]),
        "samples": st.none() | st.integers(1, 3),
        "seed": st.integers(0, 2),
    }
)


@given(declared, declared, st.sampled_from([*BACKENDS]), st.sampled_from([*BACKENDS]))
def test_the_same_questions_have_the_same_reference_and_others_another(one, other, backend_one, backend_other):
    def asked(verify: dict[str, Any]) -> Any:
        return verify["split"], verify["samples"], verify["seed"] if verify["samples"] else None

    first, second = make(target(backend_one, verify=one), FACTS), make(target(backend_other, verify=other), FACTS)
    same_questions, same_backend = asked(one) == asked(other), backend_one == backend_other
    assert (first.step("reference").key == second.step("reference").key) == same_questions
    assert (first.step("compile").key == second.step("compile").key) == same_backend
    assert (first.step("verify").key == second.step("verify").key) == (same_questions and same_backend)


def test_making_a_plan_changes_nothing_and_is_the_same_every_time():
    given_facts, before = facts(machine=WITH_GPU), copy.deepcopy(facts(machine=WITH_GPU))
    first = make(target(), given_facts)
    assert make(target(), given_facts) == first
    assert given_facts == before
    shuffled = replace(before, versions=dict(reversed(before.versions.items())))
    assert keys(make(target(), shuffled)) == keys(first)


# --- what is cached, and why ------------------------------------------------------------------------------------------


def built(plan: Plan) -> dict[str, Entry]:
    """The results of a plan that was carried out, as the store gives them back."""
    return {
        step.name: Entry(
            directory=Path("/store"),
            step=step.name,
            key=str(step.key),
            inputs=json.loads(json.dumps(dict(step.inputs))),
            files={},
            seconds=3.5,
            record={},
        )
        for step in cached_steps(plan)
    }


def replanned(old: Target, new: Target, **new_facts: Any) -> dict[str, tuple[bool, str]]:
    """Whether each step is cached, and why, after `old` was built and `new` is asked for."""
    before = make(old, FACTS)
    cached = frozenset(key for key in keys(before).values() if key)
    plan = make(new, replace(facts(**new_facts), cached=cached, previous=built(before)))
    return {step.name: (step.cached, step.reason) for step in cached_steps(plan)}


def test_what_was_never_built_says_so():
    plan = make(target(), FACTS)
    assert {(step.cached, step.reason, step.seconds) for step in cached_steps(plan)} == {
        (False, "not built before", None)
    }


def test_what_is_unchanged_is_kept():
    assert set(replanned(target(), target()).values()) == {(True, "nothing changed")}


def test_steps_say_how_long_they_took():
    plan = make(target(), replace(FACTS, previous=built(make(target(), FACTS))))
    assert [step.seconds for step in cached_steps(plan)] == [3.5, 3.5, 3.5]


def test_what_left_the_store_says_so():
    plan = make(target(), replace(FACTS, previous=dict.fromkeys(("compile", "reference", "verify"))))
    expected = (False, "its last result is no longer in the store", None)
    assert {(step.cached, step.reason, step.seconds) for step in cached_steps(plan)} == {expected}


def test_what_another_target_made_says_so():
    cached = frozenset(key for key in keys(make(target(name="other"), FACTS)).values() if key)
    plan = make(target(), replace(FACTS, cached=cached))
    assert {(step.cached, step.reason) for step in cached_steps(plan)} == {(True, "another build made it")}


def test_a_package_that_moved_is_named_with_both_versions():
    reasons = replanned(target(), target(), versions={"transformers": "1.1"})
    assert reasons["compile"] == (False, "transformers 1.0 became 1.1")
    assert reasons["reference"] == (False, "transformers 1.0 became 1.1")
    assert reasons["verify"] == (False, "follows compile; follows reference; transformers 1.0 became 1.1")


def test_an_option_that_changed_is_named_with_both_values():
    reasons = replanned(target(), target(runtime={"dtype": "bf16"}))
    assert reasons["compile"] == (False, "runtime.dtype: fp32 became bf16")
    assert reasons["reference"] == (True, "nothing changed")
    assert reasons["verify"] == (False, "follows compile")


@pytest.mark.parametrize(
    ("new", "new_facts", "step", "reason"),
    [
        ({}, {"checkpoint": replace(CHECKPOINT, digest="e" * 64)}, "compile", "the bytes of the checkpoint changed"),
        ({}, {"data": {"verify.dataset": "e" * 64}}, "reference", "the bytes of the data set changed"),
        ({}, {"machine": {"cpu": "EPYC"}}, "verify", "machine.cpu: Xeon became EPYC"),
        ({"verify": {"samples": 8}}, {}, "reference", "verify.samples: unset became 8"),
        ({"verify": {"max_misplaced": 0.5}}, {}, "reference", "verify.max_misplaced: 0.0 became 0.5"),
        ({"verify": {"columns": {"id": "nr"}}}, {}, "reference", "verify.columns.id: unset became nr"),
        (
            {"verify": {"dataset": "./q.json"}},
            {},
            "reference",
            "verify.source: rajpurkar/squad became the file q.json; publish.data: full became ids",
        ),
    ],
    ids=shown,
)
def test_reasons_are_words(new, new_facts, step, reason):
    assert replanned(target(), target(**new), **new_facts)[step] == (False, reason)


def test_instruction_sets_are_listed_not_dumped():
    quantised = target("onnxruntime", runtime={"dtype": "int8"})
    reasons = replanned(quantised, quantised, machine={"instruction_sets": ["AVX2"]})
    assert reasons["compile"] == (False, "instruction sets: AVX2, AVX512-VNNI became AVX2")


def test_packages_that_come_and_go_are_told():
    old, new = {"package onnxruntime": "1.0"}, {"package onnxruntime-gpu": "1.1"}
    assert describe_changes(old, new, set()) == [
        "onnxruntime-gpu (none) became 1.1",
        "onnxruntime 1.0 became (none)",
    ]


def test_a_change_back_to_what_was_built_before_is_kept_and_says_both():
    first, second = make(target(), FACTS), make(target(runtime={"dtype": "bf16"}), FACTS)
    everything = frozenset(key for plan in (first, second) for key in keys(plan).values() if key)
    again = make(target(), replace(FACTS, cached=everything, previous=built(second)))
    assert again.step("compile").cached
    assert again.step("compile").reason == "runtime.dtype: bf16 became fp32, and that was built before"


def test_what_a_hub_id_stands_for_is_unknown_until_it_is_resolved():
    no_checkpoint = make(target(), facts(checkpoint=None))
    assert keys(no_checkpoint) == {"compile": None, "reference": None, "verify": None}
    assert {step.reason for step in no_checkpoint.steps} == {"unknown until its Hub id is resolved"}
    no_data = make(target(), facts(data={"verify.dataset": None}))
    assert no_data.step("compile").key == make(target(), FACTS).step("compile").key
    assert (no_data.step("reference").key, no_data.step("verify").key) == (None, None)
    assert not any(step.cached for step in cached_steps(no_checkpoint))


# --- facts ----------------------------------------------------------------------------------------------------------


def test_looking_finds_all_that_the_sample_needs(tmp_path):
    asked = target(checkpoint={"model": "sample"}, verify={"dataset": "sample"})
    found = gather(asked, Store(tmp_path), "x", fetch=False)
    assert found.checkpoint is not None
    assert found.checkpoint.name == "sample"
    assert {"torch", "transformers", "tokenizers", "evaluate"} <= set(found.versions)
    assert (found.missing, found.cached, found.previous) == ((), frozenset(), {})
    assert None not in keys(make(asked, found)).values()
    assert list(tmp_path.iterdir()) == []


def test_a_hub_id_that_is_not_in_the_cache_is_unknown_but_one_that_is_none_is_refused(tmp_path):
    found = gather(target(), Store(tmp_path), "x", fetch=False)
    assert (found.checkpoint, found.data) == (None, {"verify.dataset": None})
    with pytest.raises(QABuildError, match="not in the cache"):
        gather(target(), Store(tmp_path), "x", fetch=True, offline=True)
    for tables in ({"checkpoint": {"model": "no such/id"}}, {"verify": {"dataset": "no such/id"}}):
        with pytest.raises(BadTarget, match="no such/id"):
            gather(target(**tables), Store(tmp_path), "x", fetch=False)


@pytest.mark.parametrize("stage", [{}, {"train": {"dataset": "sample"}}])
def test_an_architecture_that_the_backend_lacks_is_refused_before_it_is_trained(tmp_path, tiny_checkpoint, stage):
    longformer = {"model": str(tiny_checkpoint("longformer"))}
    with pytest.raises(BadTarget, match="onnxruntime does not support model_type 'longformer'"):
        gather(target("onnxruntime", checkpoint=longformer, **stage), Store(tmp_path), "x", fetch=False)


def test_what_an_earlier_target_makes_is_there_for_those_behind_it(tmp_path):
    asked = {"checkpoint": {"model": "sample"}, "verify": {"dataset": "sample", "samples": 5}}
    targets = [target(name, name=name, **asked) for name in ("eager", "torchscript", "deepspeed")]
    first, *others = previews(targets, Store(tmp_path), tmp_path)
    assert first.steps == preview(targets[0], Store(tmp_path), "x").steps
    for other in others:
        cached = {step.name: step.cached for step in cached_steps(other)}
        assert cached == {"compile": False, "reference": True, "verify": False}
        assert other.step("reference").reason == "eager makes it"


def test_questions_that_are_here_are_checked_before_they_are_asked(tmp_path):
    """What the build would refuse, the plan refuses; what is on the Hub, it passes over."""

    def previewed(**tables: Any) -> Plan:
        return preview(target(checkpoint={"model": "sample"}, **tables), Store(tmp_path), "x")

    assert previewed(verify={"dataset": "sample", "samples": 5}).reads_data
    with pytest.raises(BadTarget, match=r"x: verify\.dataset: 1000 samples are asked for, of 135 questions"):
        previewed(verify={"dataset": "sample", "samples": 1000})
    with pytest.raises(BadTarget, match="no split 'test'"):
        previewed(verify={"dataset": "sample", "split": "test"})
    assert previewed(verify={"dataset": "owner/questions", "samples": 1000}).step("reference").key is None
    with pytest.raises(BadTarget, match=r"x: backend\.calibration: 9999 samples are asked for"):
        previewed(
            verify={"dataset": "owner/questions"},
            backend={"name": "openvino", "calibration": "sample", "calibration_samples": 9999},
            runtime={"device": "cpu", "dtype": "int8"},
        )


def test_a_file_of_questions_that_is_not_there_is_told_before_any_work(tmp_path):
    asked = target(checkpoint={"model": "sample"}, verify={"dataset": str(tmp_path / "gone.json")})
    with pytest.raises(BadTarget, match=r"gone\.json: No such file"):
        gather(asked, Store(tmp_path), "x", fetch=True)


def test_a_backend_that_cannot_do_it_refuses_before_any_work(tmp_path):
    weights = shutil.copytree(sample.CHECKPOINT, tmp_path / "weights")
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "model_type": "deberta-v2"}))
    asked = target(
        "deepspeed",
        backend={"replace_with_kernel_inject": True},
        checkpoint={"model": str(weights)},
        runtime={"device": "cuda", "dtype": "fp16"},
        verify={"dataset": "sample"},
    )
    with pytest.raises(BadTarget, match="deberta-v2"):
        gather(asked, Store(tmp_path / "store"), "x", fetch=True)


def test_builds_into_one_folder_share_a_history_however_the_folder_is_written(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    names = {history_name(target(), Path(path)) for path in ("out", "./out", "out/../out", "link", tmp_path / "out")}
    assert len(names) == 1
    assert history_name(target(), Path("other")) not in names
    assert history_name(target(name="y"), Path("out")) not in names


# --- the checkpoint ---------------------------------------------------------------------------------------------


def test_the_first_step_is_the_checkpoint_whose_digest_the_others_follow():
    first = make(target(), FACTS).steps[0]
    assert (first.name, first.key, first.cached) == ("checkpoint", FACTS.checkpoint.digest, True)
    assert make(target(), facts(checkpoint=None)).steps[0].reason == "unknown until its Hub id is resolved"
