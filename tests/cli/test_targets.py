"""`init` and `targets --copy`: a user's first target, written for a checkpoint or copied from the samples."""

from __future__ import annotations

import contextlib
import glob
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qabuild.builder.requirements import missing
from qabuild.cli import main
from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS, BASELINE, backend
from qabuild.models.dtype_speed import speed_rule
from qabuild.models.recommendation import recommended
from qabuild.models.support import check, model_types
from qabuild.qa import sample
from qabuild.system import machine
from qabuild.target import sample_targets, scaffold
from qabuild.target.model import Target, is_name
from qabuild.target.read import load

pytestmark = pytest.mark.both_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG = json.loads((sample.CHECKPOINT / "config.json").read_text())


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def qabuild(working_directory: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`qabuild("init")`: the command line in this process, in an empty folder."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return Result(int(stop.value.code or 0), streams.out, streams.err)

    return run


def uncommented(text: str) -> str:
    """The text with all the keys and tables that it offers in comments."""
    return re.sub(r"^# (\[[\w.]+\]|\w+ = .+)$", r"\1", text, flags=re.MULTILINE)


# --- init -----------------------------------------------------------------------------------------------------------


def test_the_first_target_can_be_planned(qabuild):
    written = qabuild("init")
    assert (written.status, written.out) == (0, "sample.toml\n")
    assert written.err.endswith("next: qabuild plan sample.toml, then qabuild build sample.toml\n")
    assert load("sample.toml").verify.dataset == "sample"
    assert qabuild("plan", "sample.toml").status == 0


def test_init_prints_the_target_as_one_json_document(qabuild):
    document = json.loads(qabuild("init", "-o", "a/mine.toml", "--json").out)
    assert document == {"target": "a/mine.toml", **load("a/mine.toml").model_dump(mode="json")}


def test_what_the_file_offers_in_comments_can_be_planned(qabuild):
    qabuild("init", "--device", "cpu")
    text = uncommented(Path("sample.toml").read_text())
    Path("more.toml").write_text(text)
    tables = tomllib.loads(text)
    assert {"train", "prune", "publish"} <= tables.keys()
    assert tables["verify"]["samples"]
    planned = qabuild("plan", "more.toml", "--json")
    assert planned.status == 0, planned.err
    assert {"train", "prune"} <= {step["name"] for step in json.loads(planned.out)[0]["steps"]}


EVERY = [form for device in ("cpu", "cuda") for form in recommended(CONFIG, device)]


@pytest.mark.parametrize("form", EVERY, ids=lambda form: f"{form.backend}-{form.runtime.device}-{form.runtime.dtype}")
@pytest.mark.parametrize(("model", "data"), [("sample", "sample"), ("owner/name", "owner/data"), ("./x", "./y.json")])
def test_the_target_reads_with_whatever_is_chosen(tmp_path, form, model, data):
    path = tmp_path / "mine.toml"
    text = scaffold.text("mine", "name", model, data, [*EVERY, form])
    path.write_text(text)
    target = load(path)
    assert (target.backend.name, target.runtime) == (form.backend, form.runtime)
    assert target.verify.gates.min_f1_retention == 0.99
    assert all(len(line) <= 120 for line in text.splitlines())
    path.write_text(uncommented(text))
    more = load(path)
    assert more.stages == ("train", "prune")
    assert more.publish.repo == "your-name/mine"
    assert (more.checkpoint.revision is not None) == (model == "owner/name")
    dtype = form.runtime.dtype
    if dtype != "fp32":  # the way back that the file names
        line = text.splitlines().index(f'dtype = "{dtype}"')
        assert (
            f'{dtype} may change answers; the verification decides whether too many. "fp32"'
            in text.splitlines()[line - 1]
        )
        path.write_text(text.replace(f'dtype = "{dtype}"', 'dtype = "fp32"'))
        exact = load(path)
        check(CONFIG, exact.backend, exact.runtime)


@pytest.mark.parametrize(
    ("model", "data", "training"),
    [
        ("sample", "sample", "sample"),
        ("owner/name", "owner/questions", "owner/questions"),
        ("sample", "./questions.json", "sample"),
        ("owner/name", "./questions.json", "rajpurkar/squad"),
    ],
)
def test_int8_is_calibrated_on_training_questions(tmp_path, model, data, training):
    calibrated = [form for form in EVERY if "calibration" in type(form.options).model_fields]
    for form in calibrated:
        path = tmp_path / "mine.toml"
        path.write_text(scaffold.text("mine", "name", model, data, [form]))
        stated = tomllib.loads(path.read_text())["backend"].get("calibration")
        assert stated == (training if form.runtime.dtype == "int8" else None)
        assert ("set yours here" in path.read_text()) == (stated not in (None, data))


# --- the choice -----------------------------------------------------------------------------------------------------


def targets_ready_here(folder: Path, device: str) -> Iterator[Target]:
    """A target for each backend and dtype that this machine lacks nothing for, but perhaps the device."""
    for name in BACKENDS:
        for dtype in ("fp32", "fp16", "bf16", "int8"):
            path = folder / "x.toml"
            path.write_text(f'checkpoint.model = "sample"\nbackend.name = "{name}"\nruntime.dtype = "{dtype}"\n')
            try:
                target = load(path, [f"runtime.device={device}"])
            except BadTarget:
                continue
            here = target.model_copy(update={"runtime": target.runtime.model_copy(update={"device": "cpu"})})
            if not missing(here) and not backend(name).missing(target.backend, target.runtime):
                yield target


@given(
    st.sets(st.sampled_from([*machine.INSTRUCTION_SETS.values()])), st.sampled_from(["GenuineIntel", "AuthenticAMD"])
)
@example(set(), "")
@settings(max_examples=20)
def test_nothing_that_is_ready_here_is_expected_to_be_faster(tmp_path_factory, instructions, vendor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "instruction_sets", lambda: tuple(instructions))
        patch.setattr(machine, "vendor", lambda: vendor)
        for device in ("cpu", "cuda"):
            choice = recommended(CONFIG, device)[-1]
            ready = [*targets_ready_here(tmp_path_factory.mktemp("targets"), device)]
            rules = {(t.backend.name, t.runtime.dtype): speed_rule(t.runtime, t.backend.name) for t in ready}
            assert (choice.backend, choice.runtime.dtype) in rules
            fastest = max(rule.rate for rule in rules.values() if rule)
            tied = [name for (name, _), rule in rules.items() if rule and rule.rate == fastest]
            assert (choice.expected.rate, choice.backend) == (fastest, max(tied, key=[*BACKENDS].index))


@pytest.mark.parametrize("absent", [("openvino",), ("openvino", "onnx"), ("openvino", "onnx", "deepspeed")], ids=str)
def test_a_backend_whose_packages_are_missing_is_not_chosen(qabuild, monkeypatch, absent):
    real = metadata.version

    def version(name: str) -> str:
        if name.startswith(absent):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert qabuild("init").status == 0
    assert not load("sample.toml").backend.name.startswith(absent)
    assert not re.search(r"nstalled: .*openvino", Path("sample.toml").read_text())


def test_a_backend_that_lacks_something_else_is_not_chosen(monkeypatch):
    first = recommended(CONFIG, "cpu")[-1].backend
    assert first != BASELINE
    monkeypatch.setattr(backend(first), "missing", lambda options, runtime: ["a compiler"])
    assert recommended(CONFIG, "cpu")[-1].backend != first


@pytest.mark.parametrize("model_type", model_types())
def test_every_architecture_has_a_choice_that_supports_it(model_type):
    choice = recommended({**CONFIG, "model_type": model_type}, "cpu")[-1]
    check({**CONFIG, "model_type": model_type}, choice.options, choice.runtime)


def test_a_gpu_is_used_where_there_is_one(qabuild, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ("NVIDIA H200",))
    qabuild("init")
    assert load("sample.toml").runtime.device == "cuda"
    qabuild("init", "--device", "cpu", "-o", "cpu.toml")
    assert load("cpu.toml").runtime.device == "cpu"


# --- names and paths ------------------------------------------------------------------------------------------------

folders = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@given(folders, st.sampled_from(["project/targets", "project", "project/models", "elsewhere/targets"]))
@example("~root", "project")
@example('a "quoted"\\\x7f\n# name', "project/targets")
@settings(max_examples=20)
def test_a_local_checkpoint_is_found_from_the_target(tmp_path_factory, name, place):
    root = tmp_path_factory.mktemp("root")
    source = root / "project" / "models" / name
    shutil.copytree(sample.CHECKPOINT, source)
    prefix = {"project": "./models/", "project/models": "./", "project/targets": "../models/"}
    with contextlib.chdir(root / "project"):
        for given, written in (
            (str(source), str(source)),
            (f"./models/{name}", f"{prefix.get(place, '../../project/models/')}{name}"),
        ):
            path = root / place / "mine.toml"
            path.unlink(missing_ok=True)
            scaffold.write(given, path, data="sample", device="cpu")
            assert Path(load(path).checkpoint.model).resolve() == source.resolve()
            assert tomllib.loads(path.read_text())["checkpoint"]["model"] == written


@given(st.text(), st.booleans())
@example("x.failed.failed", False)
@example("...", True)
def test_any_checkpoint_has_a_name_for_its_target(name, on_hub):
    assert is_name(scaffold.name_of(f"owner/{name}" if on_hub else name))


def test_the_target_is_named_after_the_checkpoint(qabuild, working_directory):
    shutil.copytree(sample.CHECKPOINT, working_directory / "my model.v2")
    assert qabuild("init", "./my model.v2").out == "my-model.v2.toml\n"
    shutil.copytree(sample.CHECKPOINT, working_directory / "~root")  # no home, since it begins with ./
    assert qabuild("init", "./~root").out == "root.toml\n"
    assert tomllib.loads(Path("root.toml").read_text())["checkpoint"]["model"] == "./~root"
    shutil.copy(sample.HELDOUT, "questions.json")
    qabuild("init", "./my model.v2", "--data", "./questions.json", "-o", "sub/x.toml")
    assert tomllib.loads(Path("sub/x.toml").read_text())["verify"]["dataset"] == "../questions.json"


# --- refusals -------------------------------------------------------------------------------------------------------


def folder_names() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["-o", "mine.toml"], 2, "mine.toml exists and is not overwritten name another file with --output"),
        (["-o", "dangling.toml"], 2, "dangling.toml exists"),
        (["-o", "mine.toml/x.toml"], 5, "the folder mine.toml: Not a directory"),
        (["-o", "x.failed.toml"], 2, "'x.failed' cannot be the name of a target"),
        (["-o", ".toml"], 2, "'.toml' cannot be the name of a target"),
        (["-o", "x.txt"], 2, "x.txt: no .toml file"),
        (["--data", "./gone.json"], 2, "./gone.json: there is no such file"),
        (["--data", "gone.json"], 2, "gone.json: there is no such file check the path, which begins with './'"),
        (["--data", "mine.toml"], 2, "write './mine.toml' for the local one"),
        (["--data", "no/such/id"], 2, "an id looks like 'owner/name'"),
        (["./gone"], 2, "./gone: there is no such folder"),
        (["./empty"], 4, "there is no config.json in it"),
        (["./decoder"], 2, "gpt2"),
        (["empty"], 2, "write './empty' for the local one"),
        (["owner/name", "--offline"], 5, "owner/name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_init_refuses_and_writes_nothing(qabuild, working_directory, arguments, status, expected):
    Path("mine.toml").write_text("mine")
    Path("dangling.toml").symlink_to("gone.toml")
    Path("empty").mkdir()
    shutil.copytree(sample.CHECKPOINT, "decoder")
    Path("decoder/config.json").write_text(
        json.dumps({**CONFIG, "model_type": "gpt2", "architectures": ["GPT2ForQuestionAnswering"]})
    )
    before = folder_names()
    result = qabuild("init", *arguments)
    assert (result.status, result.out, expected in " ".join(result.err.split())) == (status, "", True), result.err
    assert folder_names() == before
    assert Path("mine.toml").read_text() == "mine"


# --- targets --copy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sample_targets.names())
def test_a_sample_target_is_copied_with_all_it_needs(qabuild, working_directory, name):
    copied = qabuild("targets", "--copy", name)
    assert (copied.status, copied.out.splitlines()[0]) == (0, f"{name}.toml")
    assert copied.err == f"next: qabuild plan {name}.toml, then qabuild build {name}.toml\n"
    files = {str(path) for path in Path().rglob("*.toml")}
    assert files == set(copied.out.splitlines())
    assert all(Path(file).read_bytes() == (ROOT / "targets" / file).read_bytes() for file in files)
    target = load(f"{name}.toml")
    assert target.paths == ()  # files of this repository are not elsewhere
    for file in files - {f"{name}.toml"}:  # and each of them is needed
        Path(file).rename("aside")
        with pytest.raises(BadTarget, match="no such target"):
            load(f"{name}.toml")
        Path("aside").rename(file)


def test_sample_targets_that_are_copied_are_listed(qabuild):
    assert qabuild("targets", "--copy", "quickstart", "mine").out == "mine/quickstart.toml\n"
    assert "mine/quickstart.toml" in qabuild("targets", "mine").out
    document = json.loads(qabuild("targets", "--copy", "distil-amp", "--json").out)
    assert document["target"] == "distil-amp.toml"
    assert "base/squad.toml" in document["files"]


def test_the_samples_are_those_of_the_repository():
    assert sample_targets.names() == sorted(path.stem for path in ROOT.glob("targets/*.toml"))


def test_a_wrong_name_is_answered_with_the_nearest_and_all_others(qabuild):
    result = qabuild("targets", "--copy", "quikstart")
    assert (result.status, folder_names()) == (2, set())
    assert "perhaps you meant 'quickstart'; there are amp, baseline" in result.err
    assert qabuild("targets", "--copy", "../targets/quickstart").status == 2


@pytest.mark.parametrize("content", ["mine", None])
def test_another_file_is_not_overwritten_and_nothing_is_copied(qabuild, content):
    Path("base").mkdir()
    other = Path("base/roberta-squad2.toml")
    other.symlink_to("gone") if content is None else other.write_text(content)
    before = folder_names()
    result = qabuild("targets", "--copy", "ort-int8-cpu")
    assert (result.status, folder_names()) == (2, before)
    assert "base/roberta-squad2.toml" in result.err
    assert content is None or other.read_text() == content


def test_an_equal_file_is_left(qabuild):
    qabuild("targets", "--copy", "ort-int8-cpu")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert qabuild("targets", "--copy", "pruned-ort-int8-cpu").status == 0
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()}.items() <= before.items()


def test_an_empty_folder_says_where_targets_come_from(qabuild):
    result = qabuild("targets")
    assert result.status == 2
    assert "qabuild init" in result.err
    assert "qabuild targets --copy NAME" in result.err


def test_every_file_of_the_package_is_in_its_package_data():
    settings: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["qabuild"]
    package = ROOT / "qabuild"
    packed = {path for pattern in patterns for path in glob.glob(pattern, root_dir=package, recursive=True)}
    held = {path for path in glob.glob("**/*", root_dir=package, recursive=True) if (package / path).is_file()}
    assert {path for path in held if not path.endswith((".py", ".pyc"))} - packed == set()
    assert "target/samples/base/squad.toml" in packed
