"""OpenVINO: calibrated int8, required instructions, concurrent batches, and loading without qabuild."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from qabuild.builder.store.gc import prune
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, MissingEnvironment
from qabuild.models import calibration
from qabuild.models.backends import backend, logit_check
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.qa import data
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.system import machine

pytest.importorskip("openvino")
pytest.importorskip("nncf")

ov = backend("openvino")
FP32, INT8 = Runtime(), Runtime(dtype="int8")
FEW = {"calibration": "sample", "calibration_samples": 12}

ZEN_3 = "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 25\nmodel : 1\nflags : sse2 avx2 vaes\n"
ZEN_5 = "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 26\nflags : avx2 avx512f avx512_vnni avx512_bf16\n"

needs_vnni = pytest.mark.skipif(machine.lacks_instructions("int8"), reason="this processor has no VNNI")
needs_bf16 = pytest.mark.skipif(machine.lacks_instructions("bf16"), reason="this processor has no bf16")


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`processor(text)`: pretend that /proc/cpuinfo is `text`."""

    def pretend(text: str) -> None:
        path = tmp_path / f"cpuinfo-{len(list(tmp_path.iterdir()))}"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(machine, "CPUINFO", path)

    return pretend


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Callable[..., Path]) -> Any:
    return resolve(tiny_checkpoint("bert"))


Compiled = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def compiled(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """`compiled(runtime, **options)`: folder and record of a compilation, cached; do not change the folder."""
    cache: dict[str, Any] = {}

    def run(runtime: Runtime = FP32, **options: Any) -> Any:
        key = json.dumps([runtime.model_dump(), options], sort_keys=True)
        if key not in cache:
            directory = tmp_path_factory.mktemp("openvino")
            cache[key] = directory, ov.compile(source, ov.Options(**options), runtime, directory)
        return cache[key]

    return run


def inputs(source: Any) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(source.directory)
    return list(logit_check.probes(tokenizer, tokenizer.model_input_names, load_model(source).config))


def difference(source: Any, model: Any, dtype: str) -> float:
    """The largest logit difference from the eager model."""
    batches = inputs(source)
    expected = logit_check.outputs_of(load_model(source), batches)
    return logit_check.require_same(expected, model, batches, logit_check.TOLERANCES[dtype], dtype)


# --- int8 -----------------------------------------------------------------------------------------------------------


@needs_vnni
def test_int8_is_calibrated_on_training_questions_and_records_them(source: Any, compiled: Compiled) -> None:
    directory, record = compiled(INT8, **FEW)
    graph = ov.core().read_model(directory / ov.FILE)
    assert sum(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()) > 10
    sample = data.load(data.DatasetRef("sample", split="train", samples=12, seed=0))
    assert record["calibration"]["fingerprint"] == sample.fingerprint
    assert record["calibration"]["questions"] == 12
    assert record["needs"] == {"int8": ["AVX512-VNNI", "AVX-VNNI", "AMX-INT8"]}
    model = ov.load(directory, ov.Options(**FEW), INT8)
    assert 0 < difference(source, model, "int8") < 2
    fp32, _ = compiled()
    weights = "openvino_model.bin"
    assert (directory / weights).stat().st_size < (fp32 / weights).stat().st_size / 2


def test_int8_without_the_overflow_fix_is_refused_on_a_processor_without_vnni(
    compiled: Compiled, processor: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    processor(ZEN_3)
    # It can be compiled there, but not run.
    directory, record = compiled(INT8, calibration="sample", calibration_samples=2, calibration_seed=1)
    assert record["largest_difference"] is None
    assert "AVX512-VNNI" in record["not_compared"][0]
    with pytest.raises(MissingEnvironment, match=r"AVX512-VNNI(.|\n)*answers be wrong(.|\n)*overflow_fix = true"):
        ov.load(directory, ov.Options(**FEW), INT8)
    processor(ZEN_5)
    assert ov.missing(ov.Options(**FEW), INT8) == []


def test_int8_with_the_overflow_fix_runs_on_any_processor(
    source: Any, compiled: Compiled, processor: Callable[[str], None]
) -> None:
    options = {**FEW, "overflow_fix": True}
    directory, record = compiled(INT8, **options)
    assert record["needs"] == {}
    processor(ZEN_3)
    model = ov.load(directory, ov.Options(**options), INT8)
    assert difference(source, model, "int8") < 2


def test_bf16_is_refused_without_bf16_instructions(compiled: Compiled, processor: Callable[[str], None]) -> None:
    directory, _ = compiled()
    processor(ZEN_3)
    for options, runtime in ((ov.Options(), Runtime(dtype="bf16")), (ov.Options(rest="bf16"), INT8)):
        with pytest.raises(MissingEnvironment, match="AVX512-BF16"):
            ov.load(directory, options, runtime)


@needs_bf16
def test_bf16_is_computed_in_bf16(source: Any, compiled: Compiled) -> None:
    bf16 = Runtime(dtype="bf16")
    directory, _ = compiled(bf16)
    assert 1e-4 < difference(source, ov.load(directory, ov.Options(), bf16), "bf16") < 0.3
    assert difference(source, ov.load(directory, ov.Options(), FP32), "fp32") < 1e-4


@needs_vnni
def test_accuracy_control_keeps_the_f1_drop_within_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qabuild.models.backends.openvino import build

    monkeypatch.setattr(build, "HELD_BACK", 40)
    sample = resolve("sample")
    options = ov.Options(**FEW, accuracy_drop=0.5)
    record = ov.compile(sample, options, INT8, tmp_path)
    assert record["held_back"]["f1_drop"] <= 0.5
    assert record["held_back"]["fingerprint"] != record["calibration"]["fingerprint"]


# --- calibration data -----------------------------------------------------------------------------------------------


def test_held_back_questions_are_not_calibrated_on() -> None:
    options = ov.Options(**FEW)
    everything = calibration.questions(options)
    sample, held_back = calibration.draw(options, everything), calibration.held_back(options, everything, 30)
    assert len(held_back) == 30
    assert not {question.id for question in sample.questions} & {question.id for question in held_back.questions}


@pytest.mark.parametrize("renamed", [False, True], ids=["same id", "same texts"])
def test_calibrating_on_verification_questions_is_refused(renamed: bool) -> None:
    from dataclasses import replace

    options = ov.Options(**FEW)
    sample = calibration.draw(options, calibration.questions(options))
    first = sample.questions[0]
    data.refuse_leakage(sample.questions, [])
    other = {"id": "another"} if renamed else {"question": "Another?"}
    with pytest.raises(BadTarget, match=r"^1 of its 12 questions"):
        data.refuse_leakage(sample.questions, [replace(first, **other)])


def test_a_build_that_would_calibrate_on_verification_questions_is_refused(working_directory: Path) -> None:
    import qabuild

    Path("x.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration = "sample"\noverflow_fix = true\n'
        'calibration_samples = 20\n[runtime]\ndtype = "int8"\n[verify]\ndataset = "sample"\nsplit = "train"\n'
    )
    with pytest.raises(BadTarget, match=r"^x: backend\.calibration: 20 of its 20 questions(.|\n)*verify on others"):
        qabuild.build("x.toml")
    assert not [path for path in Path("artifacts").glob("*") if path.name != ".gitignore"]


def test_a_calibration_file_is_relative_to_the_target(tmp_path: Path) -> None:
    from qabuild.target.read import load

    (tmp_path / "x.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration = "./train.json"\n'
    )
    options = load(tmp_path / "x.toml").backend
    assert options.calibration == str(tmp_path / "train.json")
    assert calibration.options_record(options)["calibration"] == "train.json"


@pytest.mark.parametrize("key", ["calibration_configuration", "calibration_revision"])
def test_what_belongs_to_a_calibration_is_not_inherited_by_another_data_set(tmp_path: Path, key: str) -> None:
    from qabuild.target.read import load

    (tmp_path / "base.toml").write_text(
        f'[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\n{key} = "main"\n'
    )
    (tmp_path / "x.toml").write_text('extends = "base.toml"\n[backend]\ncalibration = "./train.json"\n')
    assert getattr(load(tmp_path / "base.toml").backend, key) == "main"
    assert getattr(load(tmp_path / "x.toml").backend, key) is None


# --- running --------------------------------------------------------------------------------------------------------


def test_submitted_batches_return_their_own_outputs(source: Any, compiled: Compiled) -> None:
    import torch

    directory, _ = compiled()
    model = ov.load(directory, ov.Options(), FP32)
    batches = inputs(source) * 5
    futures = [model.submit(**batch) for batch in batches]
    for batch, future in zip(batches, futures, strict=True):
        output, alone = future.result(), model(**batch)
        assert torch.equal(output.start_logits, alone.start_logits)
        assert torch.equal(output.end_logits, alone.end_logits)


def test_batches_are_padded_to_few_lengths_within_the_positions(source: Any, compiled: Compiled) -> None:
    import torch

    directory, _ = compiled()
    model, plain = ov.load(directory, ov.Options(), FP32), load_model(source)
    longest = model.config.max_position_embeddings
    lengths = set()
    for length in (1, 15, 16, 17, 40, longest - 1, longest):
        ids = torch.arange(length).remainder(20).add(5).expand(2, -1)
        lengths.add(model._arrays({"input_ids": ids})["input_ids"].shape[1])
        with torch.inference_mode():
            expected = plain(ids).start_logits
        for logits in (model(ids).start_logits, model.submit(input_ids=ids).result().start_logits):
            assert logits.shape == (2, length)
            assert torch.allclose(logits, expected, atol=1e-4)
    assert all(length % 16 == 0 or length == longest for length in lengths)


def test_concurrent_batches_do_not_change_the_pipelines_answers(source: Any, compiled: Compiled) -> None:
    directory, _ = compiled()
    model, tokenizer = ov.load(directory, ov.Options(), FP32), load_tokenizer(source.directory)
    questions = [{"question": tiny.QUESTION, "context": " ".join(tiny.CORPUS[: 1 + n % 7])} for n in range(40)]

    class OneByOne:
        config, device = model.config, model.device

        def __call__(self, **tensors: Any) -> Any:
            return model(**tensors)

    expected = QuestionAnsweringPipeline(OneByOne(), tokenizer, batch_tokens=128, top_k=3)(questions)
    assert QuestionAnsweringPipeline(model, tokenizer, batch_tokens=128, top_k=3)(questions) == expected


def test_the_graph_uses_the_cores_that_the_process_may_use(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = compiled()
    monkeypatch.setattr(machine, "cores", lambda: 1)
    model = ov.load(directory, ov.Options(), FP32)
    assert model.together.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.together.get_property("NUM_STREAMS") == 1


def test_the_compiled_model_is_cached_outside_the_artifact_and_a_damaged_entry_rebuilt(
    source: Any, compiled: Compiled, isolated_cache: Path
) -> None:
    directory, _ = compiled()
    before = sorted(path.name for path in directory.iterdir())
    expected = difference(source, ov.load(directory, ov.Options(), FP32), "fp32")
    (entry,) = isolated_cache.rglob("*.blob")
    again = ov.load(directory, ov.Options(), FP32)
    assert difference(source, again, "fp32") == expected
    assert again.alone.get_property("LOADED_FROM_CACHE")
    entry.write_bytes(entry.read_bytes()[:1000])
    assert difference(source, ov.load(directory, ov.Options(), FP32), "fp32") == expected
    assert sorted(path.name for path in directory.iterdir()) == before
    prune(Store())
    assert not [*isolated_cache.rglob("*.blob")]


def test_a_cache_that_cannot_be_written_is_skipped(
    source: Any, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = compiled()
    (tmp_path / "file").touch()
    monkeypatch.setenv("QABUILD_CACHE", str(tmp_path / "file"))
    assert difference(source, ov.load(directory, ov.Options(), FP32), "fp32") < 1e-4


def test_a_preloaded_tcmalloc_is_refused(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = compiled()
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    with pytest.raises(MissingEnvironment, match="tcmalloc: unset LD_PRELOAD"):
        ov.load(directory, ov.Options(), FP32)


def test_loading_sends_no_telemetry_and_prints_nothing(compiled: Compiled, tmp_path: Path) -> None:
    directory, _ = compiled()
    code = (
        "import socket, sys; from pathlib import Path; from qabuild.models.backends import Runtime, backend\n"
        "def connect(*_): raise SystemExit('a connection')\n"
        "socket.socket.connect = socket.create_connection = connect\n"
        "import torch; ov = backend('openvino')\n"
        f"model = ov.load(Path({str(directory)!r}), ov.Options(), Runtime())\n"
        "model(torch.ones(1, 4, dtype=torch.long))\n"
        "assert 'openvino_telemetry.main' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [*tmp_path.glob("intel*")]


def test_an_interrupt_after_models_were_freed_is_handled(compiled: Compiled) -> None:
    """Signals are handled on a stack that OpenVINO installs and frees."""
    directory, _ = compiled()
    load = f"ov.load(Path({str(directory)!r}), ov.Options(), Runtime())"
    code = (
        "import gc, signal, torch\nfrom pathlib import Path\n"
        "from qabuild.models.backends import Runtime, openvino as ov\n"
        "ids = torch.ones(1, 4, dtype=torch.long)\n"
        f"first = {load}\nfirst(ids)\nsecond = {load}\nsecond(ids)\n"
        "del first\ngc.collect()\ndel second\ngc.collect()\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


# --- without qabuild ------------------------------------------------------------------------------------------------


def test_the_snippet_runs_without_qabuild(source: Any, compiled: Compiled) -> None:
    directory, _ = compiled()
    namespace: dict[str, Any] = {"directory": str(directory)}
    text = ov.snippet(ov.Options(), FP32)
    assert "qabuild" not in text
    exec(text, namespace)
    assert difference(source, namespace["model"], "fp32") < 1e-4
    assert namespace["tokenizer"].is_fast
    assert "avx512_vnni" in ov.snippet(ov.Options(), INT8)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("int8", marks=needs_vnni)])
def test_optimum_intel_loads_the_unchanged_artifact(dtype: Any, source: Any, compiled: Compiled) -> None:
    """Needs a separate environment: its optimum is not the version that exports to ONNX."""
    pytest.importorskip("optimum.intel")
    from optimum.intel import OVModelForQuestionAnswering

    directory, _ = compiled(Runtime(dtype=dtype), **(FEW if dtype == "int8" else {}))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    model = OVModelForQuestionAnswering.from_pretrained(directory)  # in bf16 where the processor has it
    assert difference(source, model, "int8" if dtype == "int8" else "bf16") < 2
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}
