"""Targets: read once, all mistakes reported at once, no side effects."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.errors import BadTarget, QABuildError, RenamedKey
from qabuild.models.backends import BACKENDS
from qabuild.qa.data.dataset_ref import SAME_NAMES, Columns
from qabuild.target.lock import load_all
from qabuild.target.model import Target, Verify, json_schema
from qabuild.target.paths import require_paths
from qabuild.target.read import applicable, load

MINIMAL = """\
[checkpoint]
model = "sample"

[backend]
name = "eager"
"""

DESCRIBED_SAMPLES = str(Verify.model_fields["samples"].description)

TARGETS = sorted(Path(__file__).parents[2].glob("targets/*.toml"))


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "x.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load_error(path: Path, *overrides: str) -> str:
    with pytest.raises(BadTarget) as caught:
        load(path, overrides)
    return str(caught.value)


def test_the_old_name_of_a_key_works_and_prints_a_warning(write):
    path = write(MINIMAL + "[verify]\nstock = 0.5\n")
    with pytest.warns(RenamedKey, match=r"x\.toml: verify\.stock is now called verify\.cross_check"):
        assert load(path).verify.cross_check == 0.5
    with pytest.warns(RenamedKey, match=r"--set verify\.stock=0: verify\.stock is now called"):
        assert load(write(MINIMAL), ["verify.stock=0"]).verify.cross_check == 0
    both = load_error(write(MINIMAL + "[verify]\nstock = 0.5\ncross_check = 0.5\n"))
    assert "verify.stock is the old name of verify.cross_check" in both


def test_a_minimal_target_has_defaults(write):
    target = load(write(MINIMAL, "tiny.toml"))
    assert target.name == "tiny"
    assert (target.runtime.device, target.runtime.dtype) == ("cpu", "fp32")
    assert (target.verify.dataset, target.verify.split, target.verify.samples) == (
        "rajpurkar/squad",
        "validation",
        None,
    )
    assert target.verify.gates.min_f1_retention == 0.99


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_every_target_of_the_project_loads(path):
    assert load(path).description


def test_a_target_is_frozen(write):
    target = load(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        target.runtime.dtype = "fp16"


def test_all_mistakes_of_a_file_are_reported_at_once_with_line_key_and_accepted_values(write):
    path = write(
        '[checkpoint]\nmodel = "sample"\nrevison = "main"\n\n[backend]\nname = "onnxruntime"\nlevel = 7\n\n'
        '[runtime]\ndtype = "fp8"\nsamples = 3\n\n[verify.gates]\nmin_f1_retention = "high"\n'
    )
    message = load_error(path)
    assert "5 mistakes" in message
    assert f"{path}:3: checkpoint.revison: unknown key; perhaps you meant 'revision'" in message
    assert f"{path}:7: backend.level: given 7; accepted:" in message
    assert f"{path}:10: runtime.dtype: given 'fp8'" in message
    assert "'bf16'" in message
    tables = "[train] or [distill.search] or [prune] or [prune.recover] or [verify]"
    assert f"{path}:11: runtime.samples: unknown key; it belongs to {tables}" in message
    assert f"{path}:14: verify.gates.min_f1_retention: given 'high'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        ("checkpoint = [", "not TOML"),
        ('[checkpoint]\nmodel = "a"\nmodel = "b"\n', "not TOML"),
        ("checkpoint = 3\n[backend]\nname = 'eager'\n", "checkpoint: given 3"),
        ("[backend]\nname = 'eager'\n", "checkpoint: is missing"),
        ("[checkpoint]\nmodel = 'sample'\n", "backend: is missing"),
        ("[checkpoint]\nmodel = 'sample'\n[backend]\n", "accepted: eager, deepspeed"),
        ("[checkpoint]\nmodel = 'sample'\n[backend]\nname = 'onxruntime'\n", "perhaps you meant 'onnxruntime'"),
        ("[checkpoint]\nmodel = 'sample'\n[backend]\nname = 3\n", "backend"),
        (MINIMAL + "[verify]\nsamples = 0\n", "verify.samples: given 0"),
        (MINIMAL + "[verify]\nsamples = true\n", "verify.samples: given True"),
        (MINIMAL + "[publish]\nrepo = 'no-owner'\n", "publish.repo: given 'no-owner'"),
        (MINIMAL + "[publish]\nlicense = 'Apache 2.0'\n", "on the Hub: perhaps 'apache-2.0'"),
        (MINIMAL + "[publsh]\nrepo = 'a/b'\n", "perhaps you meant 'publish'"),
        (MINIMAL + "[verify]\ncross_check = 1.5\n", "one mistake"),
        (MINIMAL + "[verify]\ncross_check = 1.5\n", "verify.cross_check: given 1.5"),
        (MINIMAL + "[verify.gates]\nmax_logit_difference = inf\n", "verify.gates.max_logit_difference: given inf"),
        (MINIMAL + "[answer]\nalign_to_words = 'never'\n", "answer.align_to_words: given 'never'"),
        (MINIMAL + "[answer]\nmax_question_len = 0\n", "answer.max_question_len: given 0"),
        (MINIMAL + "[answer]\nmax_seq_len = 64\ndoc_stride = 64\n", "must be less than `max_seq_len`, and is 64 to 64"),
        (MINIMAL + "[verify]\nmax_answer_len = 3\n", "verify.max_answer_len: unknown key; it belongs to [answer]"),
        ("name = 5\n" + MINIMAL, "name: unknown key; the name of a target is that of its file"),
        ("[checkpoint]\nmodel = 'sample'\n", "backend: is missing; accepted: a table with a name: eager"),
        (MINIMAL + "level = 2\n", "backend.level: unknown key of backend eager; it belongs to onnxruntime"),
        (MINIMAL + MINIMAL, "a table is defined twice"),
        ("extends = 3\n" + MINIMAL, "extends: given 3"),
        ("extends = 'gone.toml'\n" + MINIMAL, "gone.toml: no such target (extended by"),
    ],
)
def test_a_mistake_is_reported(write, text, expected):
    assert expected in load_error(write(text))


def test_mistakes_are_reported_in_file_order_without_pydantic_wording(write):
    path = write(
        "[verify]\nsamples = 'many'\nbatch_size = 0\n[checkpoint]\nmodel = 3\n[backend]\nname = 'onxruntime'\n"
        "levle = 1\n[runtime]\ndtype = 'fp8'\n"
    )
    heading, *lines = load_error(path).splitlines()
    assert heading.endswith("6 mistakes")
    assert [line.split(": ")[0].strip() for line in lines] == [f"{path}:{number}" for number in (2, 3, 5, 7, 8, 10)]
    assert lines[0].endswith("given 'many'; accepted: a whole number: " + DESCRIBED_SAMPLES)
    assert "backend.levle: unknown key; perhaps you meant 'level'" in lines[4]
    assert "Input should" not in "".join(lines)


@pytest.mark.parametrize(
    ("tables", "place"),
    [
        ("[backend]\nname = 'openvino'\nrest = 'bf16'\n", "5: backend.rest = 'bf16'"),
        ("[backend]\nname = 'onnxruntime'\n[runtime]\ndtype = 'bf16'\n", "6: runtime.dtype = 'bf16'"),
        ("[backend]\nname = 'deepspeed'\ntensor_parallel = 2\n", "5: backend.tensor_parallel"),
    ],
)
def test_incompatible_keys_are_reported_with_their_line(write, tables, place):
    path = write("[checkpoint]\nmodel = 'sample'\n" + tables)
    assert load_error(path).startswith(f"{path}:{place}")


def test_all_missing_paths_are_reported_at_once(write):
    base = write("[checkpoint]\nmodel = './gone'\n[backend]\nname = 'eager'\n", "base/x.toml")
    path = write(
        "[checkpoint]\ntarget = './base/x.toml'\n[backend]\nname = 'openvino'\ncalibration = './gone.json'\n"
        "[runtime]\ndtype = 'int8'\n[verify]\ndataset = './gone.json.gz'\n",
        "y.toml",
    )
    with pytest.raises(BadTarget) as caught:
        require_paths(load(path, ["verify.dataset=~/gone.json"]))
    lines = str(caught.value).splitlines()
    assert lines[0] == "y: 3 paths do not exist"
    assert lines[1] == f"  {base}:2: checkpoint.model: {base.parent / 'gone'}: no such file or folder"
    assert lines[2] == f"  {path}:5: backend.calibration: {path.parent / 'gone.json'}: no such file or folder"
    assert lines[3] == f"  --set: verify.dataset: {Path.home() / 'gone.json'}: no such file or folder"
    with pytest.raises(BadTarget, match=rf"^{base}:2: checkpoint\.model: \S+gone: no such file or folder\n"):
        require_paths(load(path, ["runtime.dtype=fp32", "verify.dataset=sample"]))  # fp32 reads no calibration


def test_a_target_builds_on_the_checkpoint_of_another(write):
    write(MINIMAL.replace("sample", "./weights"), "base/first.toml")
    write("[checkpoint]\ntarget = 'first'\n[backend]\nname = 'torchscript'\n", "base/second.toml")
    path = write("[checkpoint]\ntarget = 'base/second.toml'\n[backend]\nname = 'onnxruntime'\n")
    assert load(path).checkpoint.model == str(path.parent / "base" / "weights")
    assert load(path).backend.name == "onnxruntime"


def test_naming_a_target_drops_an_inherited_model_and_naming_a_model_drops_an_inherited_target(write):
    write(MINIMAL.replace('"sample"', '"me/base"\nrevision = "v1"'), "base.toml")
    write(MINIMAL, "first.toml")
    path = write("extends = 'base.toml'\n[checkpoint]\ntarget = 'first'\n")
    assert (load(path).checkpoint.model, load(path).checkpoint.revision) == ("sample", None)
    again = write("extends = 'x.toml'\n[checkpoint]\nmodel = 'me/other'\n", "y.toml")
    assert (load(again).checkpoint.model, load(again).checkpoint.target) == ("me/other", None)


def test_a_cycle_of_targets_that_build_on_each_other_shows_the_path(write):
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        write(f"[checkpoint]\ntarget = '{other}'\n[backend]\nname = 'eager'\n", f"{name}.toml")
    message = load_error(write("[checkpoint]\ntarget = 'a'\n[backend]\nname = 'eager'\n"))
    assert "build on each other's checkpoint in a circle" in message
    assert [part.rsplit("/", 1)[-1] for part in message.split("\n")[0].split(" -> ")] == [
        "x.toml",
        "a.toml",
        "b.toml",
        "c.toml",
        "a.toml",
    ]


def test_a_missing_base_target_shows_the_path(write):
    write("[checkpoint]\ntarget = 'gone'\n[backend]\nname = 'eager'\n", "first.toml")
    path = write("[checkpoint]\ntarget = 'first'\n[backend]\nname = 'eager'\n")
    message = load_error(path)
    assert "gone.toml: no such target (built on by" in message
    assert f"{path} -> {path.parent / 'first.toml'}" in message


@pytest.mark.parametrize("table", ["", "model = 'sample'\ntarget = 'first'\n"])
def test_a_checkpoint_has_one_source(write, table):
    assert "checkpoint: name one of `model` and `target`" in load_error(
        write(f"[checkpoint]\n{table}[backend]\nname = 'eager'\n")
    )


def test_a_missing_target_suggests_a_similar_name(write):
    path = write(MINIMAL, "ort-fp16.toml")
    assert "perhaps you meant" in load_error(path.with_name("ort-fp61.toml"))
    (path.parent / "targets").mkdir()
    within = path.rename(path.parent / "targets" / path.name)
    assert f"perhaps you meant {within}" in load_error(path)
    assert "perhaps" not in load_error(path.with_name("mine.toml")), (
        "the shared file extension does not count as similarity"
    )


def test_a_folder_and_a_file_that_is_not_utf8_are_refused(tmp_path):
    assert "is a folder" in load_error(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'description = "caf\xe9"\n')
    assert "not UTF-8 at byte 18" in load_error(tmp_path / "latin.toml")


def test_a_name_that_is_not_a_valid_folder_name_is_refused(write):
    assert "rename the file" in load_error(write(MINIMAL, "a b.toml"))
    assert "rename the file" in load_error(write(MINIMAL, "x.failed.toml"))


def test_extends_merges_tables_and_the_extending_file_wins(write):
    write('[checkpoint]\nmodel = "../weights"\nrevision = "v1"\n[verify]\nsamples = 7\nbatch_size = 2\n', "base/a.toml")
    path = write('extends = "base/a.toml"\n[backend]\nname = "eager"\n[verify]\nsamples = 9\n')
    target = load(path)
    assert (target.verify.samples, target.verify.batch_size) == (9, 2)
    # A relative path is relative to the file that states it.
    assert Path(target.checkpoint.model) == path.parent / "base" / ".." / "weights"


def test_another_data_set_inherits_no_columns(write):
    path = write(MINIMAL + '[verify]\ndataset = "./a.csv"\nmax_misplaced = 0.1\ncolumns = { question = "frage" }\n')
    assert load(path).verify.data.columns.question == "frage"
    other = load(path, ["verify.dataset=./b.csv"]).verify.data
    assert (other.columns, other.max_misplaced) == (SAME_NAMES, 0.1)
    named = load(path, ["verify.dataset=./b.csv", "verify.columns.context=text"]).verify.data
    assert named.columns == Columns(context="text")


def test_another_backend_inherits_no_options_and_another_model_no_revision(write):
    write('[checkpoint]\nmodel = "me/a"\nrevision = "v1"\n[backend]\nname = "onnxruntime"\nlevel = 1\n', "base.toml")
    target = load(write('extends = "base.toml"\n[checkpoint]\nmodel = "me/b"\n[backend]\nname = "eager"\n'))
    assert target.backend.name == "eager"
    assert target.checkpoint.revision is None


def test_a_mistake_in_a_base_is_reported_at_its_place_in_the_base(write):
    base = write(MINIMAL + "[verify]\nsampels = 3\n", "base.toml")
    assert f"{base}:7: verify.sampels: unknown key" in load_error(write('extends = "base.toml"\n'))


def test_a_cycle_of_extends_shows_the_path(write):
    write('extends = "b.toml"\n', "a.toml")
    path = write('extends = "a.toml"\n', "b.toml")
    assert "b.toml -> " in load_error(path)
    assert "a.toml -> " in load_error(path)


def test_overrides(write, monkeypatch, tmp_path):
    path = write(MINIMAL)
    monkeypatch.chdir(tmp_path)
    target = load(path, ["verify.samples=200", "verify.dataset=./dev.json", "runtime.dtype=bf16"])
    assert (target.verify.samples, target.runtime.dtype) == (200, "bf16")
    assert target.verify.dataset == str(tmp_path / "dev.json")
    assert "--set: verify.sampels: unknown key; perhaps you meant 'samples'" in load_error(path, "verify.sampels=2")
    assert "not of the form key=value" in load_error(path, "verify.samples")
    assert "--set: verify.samples: given 'many'" in load_error(path, "verify.samples=many")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda values: (
            st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["name", "model", "x"]), values, max_size=3)
        ),
        max_leaves=8,
    ).filter(lambda value: value is not None),
    st.sampled_from(sorted({*Target.model_fields} - {"name"})),
)
def test_any_value_of_a_table_gives_a_target_or_a_clear_error(value, table):
    from pydantic import ValidationError

    from qabuild.target.explain import explain
    from qabuild.target.source_map import File, Places

    path = Path("x.toml")
    content = {"checkpoint": {"model": "sample"}, "backend": {"name": "eager"}, table: value, "name": "x"}
    try:
        Target.model_validate(content)
        return
    except ValidationError as caught:
        error = caught
    assert table in explain(error, path, Places([File(path, "", {})], []))


@given(st.binary(max_size=200))
def test_any_file_gives_a_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    with pytest.raises(QABuildError, match=r"fuzz\.toml"):
        load(path)


def test_reading_a_target_uses_no_network_or_device_and_imports_nothing_heavy(write):
    path = write(MINIMAL.replace("sample", "me/nowhere"))
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from qabuild.target.read import load\n"
        f"load({str(path)!r})\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'optimum', 'datasets', 'numpy', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert socket.socket  # this process is unchanged


def test_the_schema_has_every_table_and_names_every_backend():
    schema = json_schema()
    assert {"extends", "checkpoint", "backend", "runtime", "verify", "publish"} <= set(schema["properties"])
    text = json.dumps(schema)
    assert all(f'"{name}"' in text for name in BACKENDS)


# --- overrides of several targets -------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> list[Path]:
    """An eager target, one that trains, and one for OpenVINO in int8 that extends the first."""
    base = '[checkpoint]\nmodel = "sample"\n[verify]\ndataset = "sample"\n'
    (tmp_path / "eager.toml").write_text(f'{base}[backend]\nname = "eager"\n')
    (tmp_path / "trained.toml").write_text(f'{base}[train]\ndataset = "sample"\n[backend]\nname = "eager"\n')
    (tmp_path / "int8.toml").write_text(
        'extends = "eager.toml"\n[backend]\nname = "openvino"\n[runtime]\ndtype = "int8"\n'
    )
    return [tmp_path / f"{name}.toml" for name in ("eager", "trained", "int8")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("verify.samples=5", {"eager", "trained", "int8"}),
        ("verify.gates.confidence=0.9", {"eager", "trained", "int8"}),
        ("backend.calibration=./mine.json", {"int8"}),
        ("backend.rest=bf16", {"int8"}),
        ("train.epochs=3", {"trained"}),
        ("distill.alpha=0.5", {"eager", "trained", "int8"}),  # none has the table
        ("backend.calbration=x", {"eager", "trained", "int8"}),  # a typo
    ],
)
def test_an_override_is_given_to_the_targets_that_have_its_key(several, override, expected):
    chosen = applicable(several, [override])
    assert {path.stem for path, overrides in zip(several, chosen, strict=True) if overrides} == expected


def test_an_override_may_follow_one_of_the_backend(several):
    chosen = applicable(several, ["backend.name=onnxruntime", "backend.level=1"])
    assert chosen == [["backend.name=onnxruntime", "backend.level=1"]] * 3


def test_a_key_that_no_target_has_is_an_error(several):
    with pytest.raises(BadTarget, match=r"backend\.calbration: unknown key"):
        load_all(several, ["backend.calbration=x"])
    with pytest.raises(BadTarget, match="no such target"):
        load_all([*several, several[0].with_name("typo.toml")], ["verify.samples=5"])
    (alone,) = load_all(several[:1], ["verify.samples=5"])
    assert alone.verify.samples == 5


# --- calibration ------------------------------------------------------------------------------------------------------

INT8 = '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\n{}\n[runtime]\ndtype = "int8"\n'
TRAIN = '[train]\ndataset = "me/questions"\nrevision = "v2"\nconfiguration = "de"\n'


def test_int8_is_calibrated_on_what_the_target_trains_on(tmp_path):
    def calibration(text: str) -> Any:
        (tmp_path / "x.toml").write_text(text)
        return load(tmp_path / "x.toml").datasets["backend.calibration"]

    trained = calibration(INT8.format("") + TRAIN)
    assert (trained.dataset, trained.configuration, trained.revision) == ("me/questions", "de", "v2")
    read = calibration(INT8.format("") + TRAIN + 'max_misplaced = 0.1\ncolumns = { question = "frage" }\n')
    assert (read.max_misplaced, read.columns) == (0.1, Columns(question="frage"))
    assert calibration(INT8.format("")).dataset == "rajpurkar/squad"
    assert calibration(INT8.format('calibration_revision = "v1"') + TRAIN).dataset == "rajpurkar/squad"
    own = calibration(INT8.format('calibration = "sample"') + TRAIN)
    assert (own.dataset, own.configuration, own.revision) == ("sample", None, None)
    assert "backend.calibration" not in load_fp32(tmp_path).datasets


def load_fp32(folder: Path) -> Target:
    (folder / "fp32.toml").write_text(INT8.format("").replace("int8", "fp32") + TRAIN)
    return load(folder / "fp32.toml")
