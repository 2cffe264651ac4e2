"""Documents of others: whatever the bytes are, the outcome is a value of the model, or one kind of error.

`QABUILD_FUZZ=20000 pytest -n0 tests/system/test_documents.py` tries that many examples of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import proven
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qabuild.artifact import sealed_reference
from qabuild.artifact.evidence import CrossCheck, Verification, evidence_of
from qabuild.artifact.manifest import Artifact, Manifest, open_artifact
from qabuild.artifact.readme import UserContent
from qabuild.builder.store.local import ENTRY, Store
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput
from qabuild.models.backends.record import Program
from qabuild.models.backends.torch_export import Exported
from qabuild.models.checkpoint.inspect import examine_config, examine_tokenizer
from qabuild.models.checkpoint.weights import examine_weights
from qabuild.models.training.distributed import VARIABLES, Ranks
from qabuild.publishing import card
from qabuild.qa.data import read
from qabuild.qa.data.records import read_records
from qabuild.system import documents, machine
from qabuild.target import lock
from qabuild.target.read import load as load_target

many = settings(
    max_examples=int(os.environ.get("QABUILD_FUZZ", "100")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 2**63, 1e308, float("nan"), float("inf")])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["../x", "\x1b[2J", "\ud800"])
fragments = st.sampled_from([b"NaN", b"1e999", b'"a":1,"a":2,', b"[" * 2000])
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with up to three of its values, at any depth, replaced, removed, added or nested deeply."""
    document = json.loads(json.dumps(document))
    depths = [5, 99, 100, 101, 600]
    for _ in range(draw(st.integers(1, 3))):
        parent, key = _place(draw, document)
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "nest"])):
            case "remove":
                del parent[key]
            case "nest":
                depth = draw(st.sampled_from(depths))
                depths = depths[:1] if depth > depths[0] else depths  # deep once: `json.dumps` has a limit of its own
                for _ in range(depth):
                    parent[key] = [parent[key]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = draw(values)
            case _:
                parent[key] = draw(values)
        if not document:
            break
    return document


def _place(draw: st.DrawFn, document: Any) -> tuple[Any, Any]:
    """A container of the document and one of its keys."""
    parent, key = document, draw(st.sampled_from(_keys(document)))
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.booleans()):
        parent = parent[key]
        key = draw(st.sampled_from(_keys(parent)))
    return parent, key


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


@st.composite
def texts(draw: st.DrawFn, document: Any) -> bytes:
    """A document near `document`: with other values, or with bytes that were removed, inserted or replaced."""
    if draw(st.integers(0, 3)):
        return json.dumps(draw(changed(document)), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    content = bytearray(json.dumps(document).encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = draw(
            st.binary(max_size=6) | st.sampled_from([b"NaN", b"1e999", b'"a":1,"a":2,', b"[" * 2000])
        )
    return bytes(content)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact whose manifest and evidence have all of their optional parts."""
    start = {"name": "them/base", "revision": "b" * 40, "digest": "d" * 64, "model_type": "bert"}
    training = {"start": start, "train": {}, "teacher": {**start, "exact_match": 50.0, "f1": 60.0}}
    record = {"needs": {"int8": ["AVX512-VNNI"]}, "limits": ["At most 512 tokens."]}
    folder = proven.make(tmp_path_factory.mktemp("proven") / "tiny", training=training, record=record)
    checked = CrossCheck(questions=2, batch_size=8, differences=1, ties=1, samples_per_second=9.0, speedup=2.0)
    gpu = {**machine.describe(), "gpus": ["H100"], "driver": "1"}
    proven.verify(open_artifact(folder), cross_check=checked, machine=gpu)
    return open_artifact(folder)


def outcome(error: type[QABuildError] | tuple[type[QABuildError], ...], work: Callable[[], Any]) -> Any:
    """What `work` returns; None where it raised that error."""
    with suppress(error):
        return work()
    return None


# --- JSON -------------------------------------------------------------------------------------------------------------


@many
@given(st.data())
def test_a_manifest_is_read_or_refused(artifact, tmp_path, data):
    folder = tmp_path / "x"
    folder.mkdir(exist_ok=True)
    document = json.loads((artifact.directory / "manifest.json").read_text())
    (folder / "manifest.json").write_bytes(data.draw(texts(document)))
    outcome((UntrustedInput, BadTarget), lambda: open_artifact(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qabuild.artifact.manifest._compare", lambda *_: None)
        opened = outcome(UntrustedInput, lambda: open_artifact(folder))
    if opened:
        verification = evidence_of(artifact)
        assert verification
        outcome(UntrustedInput, lambda: (opened.manifest.gates, opened.manifest.cross_check))
        outcome(UntrustedInput, lambda: _card(opened, verification))


@many
@given(st.data())
def test_evidence_is_read_or_refused(artifact, data):
    (path := artifact.directory / "verification.json").write_bytes(before := path.read_bytes())
    try:
        path.write_bytes(data.draw(texts(json.loads(before))))
        verification = outcome(UntrustedInput, lambda: evidence_of(artifact))
    finally:
        path.write_bytes(before)
    if verification:
        outcome(UntrustedInput, lambda: _card(artifact, verification))
        json.dumps(verification.to_dict(), allow_nan=False)


def _card(artifact: Artifact, verification: Verification) -> None:
    card.make(artifact, verification, UserContent(), repo="me/x", revision="main", base_license=None)


@many
@given(st.data())
def test_a_sealed_reference_is_read_or_refused(tmp_path, data):
    document = {"data": proven.DATA, "probes": [["1", "2"]], "answers": {"1": "one", "2": "Ann"}}
    (tmp_path / sealed_reference.ANSWERS).write_bytes(data.draw(texts(document)))
    outcome(UntrustedInput, lambda: sealed_reference.read(tmp_path))


RECORDS: list[tuple[Any, dict[str, Any]]] = [
    (Program, {"inputs": ["input_ids"], "refused": [], "device": "cpu", "traced_shape": [1, 2]}),
    (Exported, {"inputs": ["input_ids"], "refused": [], "device": "cpu", "instructions": ["avx2"]}),
]


@pytest.mark.parametrize(("kind", "document"), RECORDS, ids=lambda each: getattr(each, "__name__", ""))
@many
@given(st.data())
def test_a_backends_record_is_read_or_refused(tmp_path, kind, document, data):
    assert documents.typed(kind, document) == document
    (tmp_path / "record.json").write_bytes(data.draw(texts(document)))
    outcome(UntrustedInput, lambda: documents.load(kind, tmp_path / "record.json", "build it again"))


@many
@given(st.data())
def test_a_cached_entry_is_read_or_counts_as_missing(tmp_path, data):
    store = Store(tmp_path)
    entry = store.make("compile", {"x": 1}, lambda folder: {"record": 1})
    path = store.folder(entry.key) / ENTRY
    before = path.read_bytes()
    assert store.find(entry.key) == entry
    path.write_bytes(data.draw(texts(json.loads(before))))
    assert store.find(entry.key) in (None, entry)
    path.write_bytes(before)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@many
@given(st.data())
def test_a_document_of_a_checkpoint_is_read_or_refused(tiny_checkpoint, tmp_path, name, data):
    source = tiny_checkpoint()
    for other in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / other).write_bytes((source / other).read_bytes())
    (tmp_path / name).write_bytes(data.draw(texts(json.loads((source / name).read_bytes()))))
    outcome((UntrustedInput, BadTarget), lambda: examine_config(tmp_path))
    outcome((UntrustedInput, BadTarget), lambda: examine_tokenizer(tmp_path, 100))


@many
@given(st.data())
def test_a_safetensors_header_is_read_or_refused(tmp_path, data):
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "__metadata__": {"format": "pt"}}
    text = data.draw(texts(header) | st.binary())
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 0, 2**62]))
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(16))
    outcome(UntrustedInput, lambda: examine_weights(tmp_path))


# --- what users write -------------------------------------------------------------------------------------------------

TARGET = """\
description = "x"
[checkpoint]
model = "sample"
[train]
dataset = "sample"
[backend]
name = "onnxruntime"
[runtime]
dtype = "int8"
[verify]
dataset = "sample"
samples = 4
[verify.gates]
min_f1_retention = 0.9
[publish]
repo = "me/x"
"""
LOCK = """\
[checkpoint]
model = "sample"
digest = "d"
[verify]
dataset = "sample"
split = "validation"
fingerprint = "f"
"""
toml_values = st.sampled_from(
    [
        *("inf", "nan", "-1", "1979-05-27", "07:32:00", "[" * 3000, "[[]]", "{}", "''", '"~nobody-9"', "1e400"),
        *("9" * 5000, "true", '"\\u001b[2J"', '"../x"', '"sample"', "[[1], {a = 1}]", "0x7fffffffffffffffffff"),
        *("'''", '"/dev/zero"'),
    ]
)


@st.composite
def tomls(draw: st.DrawFn, text: str) -> bytes:
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition(" =")[0]
        changed = [f"{key} = {draw(toml_values)}", "", f"[{draw(st.text(max_size=6))}]", draw(st.text(max_size=12))]
        lines[number] = draw(st.sampled_from(changed))
    return "\n".join(lines).encode(errors="surrogatepass")


@many
@given(tomls(TARGET))
def test_a_target_is_read_or_refused(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    (tmp_path / "x.lock").unlink(missing_ok=True)
    outcome(BadTarget, lambda: lock.load(tmp_path / "x.toml"))


@many
@given(st.text(max_size=20), toml_values | st.text(max_size=10))
def test_an_override_is_read_or_refused(tmp_path, key, value):
    (tmp_path / "x.toml").write_text(TARGET)
    for name in (key, "verify.samples", "checkpoint.model", "backend", "train.dataset.x"):
        outcome(BadTarget, lambda name=name: load_target(tmp_path / "x.toml", [f"{name}={value}"]))


@many
@given(tomls(LOCK))
def test_a_lock_file_is_read_or_refused(tmp_path, content):
    (tmp_path / "x.lock").write_bytes(content)
    outcome(BadTarget, lambda: lock.read(tmp_path / "x.lock"))


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "Ann built it.",
                    "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}],
                }
            ]
        }
    ]
}


@many
@given(texts(SQUAD))
def test_a_file_of_questions_is_read_or_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    outcome(UntrustedInput, lambda: read(tmp_path / "x.json"))
    for form in ("squad", "jsonl", "csv", "parquet"):
        outcome(UntrustedInput, lambda form=form: list(read_records(str(tmp_path / "x.json"), form)))


@many
@given(
    st.dictionaries(st.sampled_from(VARIABLES), st.sampled_from(["", "0", "1", "2", "-1", "x", "1.5", "٣", "9" * 99]))
)
def test_a_launchers_variables_are_read_or_refused(environment):
    ranks = outcome(MissingEnvironment, lambda: Ranks(environment))
    assert ranks is None or 0 <= ranks.rank < ranks.count


# --- the reader -------------------------------------------------------------------------------------------------------


@many
@given(values)
def test_sound_json_is_read_as_it_is(value):
    try:
        content = json.dumps(value, allow_nan=False).encode()
        json.loads(content)
    except ValueError:  # not finite, or an integer of thousands of digits
        return
    assert documents.read_json(content) == value


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 levels deep"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        (b'{"x": [{"a": NaN}]}', "NaN is no number of JSON"),
        (b"-Infinity", "-Infinity is no number of JSON"),
        (b"[1e400]", "the number 1e400 is too large"),
        (b"\xff\xfe", "can't decode"),
        (b"9" * 5000, "digit"),
    ],
    ids=ascii,
)
def test_what_readers_differ_on_is_refused(content, problem):
    with pytest.raises(ValueError, match=problem):
        documents.read_json(content)


def test_values_are_not_converted_and_the_first_mistake_is_named(artifact):
    document = {**artifact.manifest.to_dict(), "checkpoint": {**artifact.manifest.checkpoint, "digest": 3}}
    del document["format"]
    with pytest.raises(ValueError, match=r"checkpoint\.digest: Input should be a valid string"):
        documents.typed(Manifest, json.loads(json.dumps(document, default=lambda value: vars(value))))
