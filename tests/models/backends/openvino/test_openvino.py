"""OpenVINO: calibrated int8, which processors may run it, several batches at once, and what others can open."""

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
    """`processor(text)`: the machine whose /proc/cpuinfo is `text`."""

    def become(text: str) -> None:
        path = tmp_path / f"cpuinfo-{len(list(tmp_path.iterdir()))}"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(machine, "CPUINFO", path)

    return become


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Callable[..., Path]) -> Any:
    return resolve(tiny_checkpoint("bert"))


Compiled = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def compiled(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """`compiled(runtime, **options)`: the folder and the record, made once; not to be changed."""
    made: dict[str, Any] = {}

    def run(runtime: Runtime = FP32, **options: Any) -> Any:
        key = json.dumps([runtime.model_dump(), options], sort_keys=True)
        if key not in made:
            directory = tmp_path_factory.mktemp("openvino")
            made[key] = directory, ov.compile(source, ov.Options(**options), runtime, directory)
        return made[key]

    return run


def inputs(source: Any) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(source.directory)
    return list(logit_check.probes(tokenizer, tokenizer.model_input_names, load_model(source).config))


def difference(source: Any, model: Any, dtype: str) -> float:
    """The largest of a logit to the eager model's."""
    batches = inputs(source)
    expected = logit_check.answers(load_model(source), batches)
    return logit_check.require_same(expected, model, batches, logit_check.TOLERANCES[dtype], dtype)


# --- int8 -----------------------------------------------------------------------------------------------------------


@needs_vnni
def test_int8_is_calibrated_on_training_questions_and_says_on_which(source: Any, compiled: Compiled) -> None:
    directory, record = compiled(INT8, **FEW)
    graph = ov.core().read_model(directory / ov.FILE)
    assert sum(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()) > 10
    drawn = data.load(data.DatasetRef("sample", split="train", samples=12, seed=0))
    assert record["calibration"]["fingerprint"] == drawn.fingerprint
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
    # It can be made there, if not be run.
    directory, record = compiled(INT8, calibration="sample", calibration_samples=2, calibration_seed=1)
    assert record["largest_difference"] is None
    assert "AVX512-VNNI" in record["not_compared"][0]
    with pytest.raises(MissingEnvironment, match=r"AVX512-VNNI(.|\n)*answers be wrong(.|\n)*overflow_fix = true"):
        ov.load(directory, ov.Options(**FEW), INT8)
    processor(ZEN_5)
    assert ov.lacks(ov.Options(**FEW), INT8) == []


def test_with_the_overflow_fix_int8_runs_everywhere(
    source: Any, compiled: Compiled, processor: Callable[[str], None]
) -> None:
    options = {**FEW, "overflow_fix": True}
    directory, record = compiled(INT8, **options)
    assert record["needs"] == {}
    processor(ZEN_3)
    model = ov.load(directory, ov.Options(**options), INT8)
    assert difference(source, model, "int8") < 2


def test_bf16_is_refused_where_it_would_be_fp32(compiled: Compiled, processor: Callable[[str], None]) -> None:
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
def test_accuracy_control_gives_back_layers_until_f1_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qabuild.models.backends.openvino import build as _openvino_build

    monkeypatch.setattr(_openvino_build, "HELD_BACK", 40)
    sample = resolve("sample")
    options = ov.Options(**FEW, accuracy_drop=0.5)
    record = ov.compile(sample, options, INT8, tmp_path)
    assert record["held_back"]["f1_drop"] <= 0.5
    assert record["held_back"]["fingerprint"] != record["calibration"]["fingerprint"]


# --- which questions ------------------------------------------------------------------------------------------------


def test_held_back_questions_are_no_calibration_questions() -> None:
    options = ov.Options(**FEW)
    everything = calibration.questions(options)
    drawn, others = calibration.draw(options, everything), calibration.held_back(options, everything, 30)
    assert len(others) == 30
    assert not {each.id for each in drawn.questions} & {each.id for each in others.questions}


@pytest.mark.parametrize("renamed", [False, True], ids=["same id", "same texts"])
def test_what_the_verification_asks_is_not_calibrated_on(renamed: bool) -> None:
    from dataclasses import replace

    options = ov.Options(**FEW)
    drawn = calibration.draw(options, calibration.questions(options))
    first = drawn.questions[0]
    data.refuse_asked(drawn.questions, [])
    other = {"id": "another"} if renamed else {"question": "Another?"}
    with pytest.raises(BadTarget, match=r"^1 of its 12 questions"):
        data.refuse_asked(drawn.questions, [replace(first, **other)])


def test_a_build_that_would_calibrate_on_what_it_asks_makes_nothing(working_directory: Path) -> None:
    import qabuild

    Path("x.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration = "sample"\noverflow_fix = true\n'
        'calibration_samples = 20\n[runtime]\ndtype = "int8"\n[verify]\ndataset = "sample"\nsplit = "train"\n'
    )
    with pytest.raises(BadTarget, match=r"^x: backend\.calibration: 20 of its 20 questions(.|\n)*verify on others"):
        qabuild.build("x.toml")
    assert not [path for path in Path("artifacts").glob("*") if path.name != ".gitignore"]


def test_a_calibration_file_is_found_from_the_targets_own_folder(tmp_path: Path) -> None:
    from qabuild.target.read import load

    (tmp_path / "x.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration = "./train.json"\n'
    )
    options = load(tmp_path / "x.toml").backend
    assert options.calibration == str(tmp_path / "train.json")
    assert calibration.sealed(options)["calibration"] == "train.json"


def test_the_revision_of_one_calibration_set_is_not_that_of_another(tmp_path: Path) -> None:
    from qabuild.target.read import load

    (tmp_path / "base.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration_revision = "main"\n'
    )
    (tmp_path / "x.toml").write_text('extends = "base.toml"\n[backend]\ncalibration = "./train.json"\n')
    assert load(tmp_path / "base.toml").backend.calibration_revision == "main"
    assert load(tmp_path / "x.toml").backend.calibration_revision is None


# --- running --------------------------------------------------------------------------------------------------------


def test_batches_in_flight_come_back_as_they_were_sent(source: Any, compiled: Compiled) -> None:
    import torch

    directory, _ = compiled()
    model = ov.load(directory, ov.Options(), FP32)
    batches = inputs(source) * 5
    running = [model.submit(**batch) for batch in batches]
    for batch, promise in zip(batches, running, strict=True):
        output, alone = promise.result(), model(**batch)
        assert torch.equal(output.start_logits, alone.start_logits)
        assert torch.equal(output.end_logits, alone.end_logits)


def test_the_graph_meets_few_lengths_and_none_beyond_its_positions(source: Any, compiled: Compiled) -> None:
    import torch

    directory, _ = compiled()
    model, plain = ov.load(directory, ov.Options(), FP32), load_model(source)
    longest = model.config.max_position_embeddings
    met = set()
    for length in (1, 15, 16, 17, 40, longest - 1, longest):
        ids = torch.arange(length).remainder(20).add(5).expand(2, -1)
        met.add(model._arrays({"input_ids": ids})["input_ids"].shape[1])
        with torch.inference_mode():
            expected = plain(ids).start_logits
        for logits in (model(ids).start_logits, model.submit(input_ids=ids).result().start_logits):
            assert logits.shape == (2, length)
            assert torch.allclose(logits, expected, atol=1e-4)
    assert all(length % 16 == 0 or length == longest for length in met)


def test_the_pipeline_answers_as_with_one_batch_at_a_time(source: Any, compiled: Compiled) -> None:
    directory, _ = compiled()
    model, tokenizer = ov.load(directory, ov.Options(), FP32), load_tokenizer(source.directory)
    asked = [{"question": tiny.QUESTION, "context": " ".join(tiny.CORPUS[: 1 + n % 7])} for n in range(40)]

    class OneByOne:
        config, device = model.config, model.device

        def __call__(self, **tensors: Any) -> Any:
            return model(**tensors)

    expected = QuestionAnsweringPipeline(OneByOne(), tokenizer, batch_tokens=128, top_k=3)(asked)
    assert QuestionAnsweringPipeline(model, tokenizer, batch_tokens=128, top_k=3)(asked) == expected


def test_it_takes_the_cores_that_the_process_may_use(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = compiled()
    monkeypatch.setattr(machine, "cores", lambda: 1)
    model = ov.load(directory, ov.Options(), FP32)
    assert model.together.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.together.get_property("NUM_STREAMS") == 1


def test_what_openvino_compiled_is_kept_outside_the_artifact_and_damage_does_no_harm(
    source: Any, compiled: Compiled, isolated_cache: Path
) -> None:
    directory, _ = compiled()
    before = sorted(path.name for path in directory.iterdir())
    expected = difference(source, ov.load(directory, ov.Options(), FP32), "fp32")
    (kept,) = isolated_cache.rglob("*.blob")
    again = ov.load(directory, ov.Options(), FP32)
    assert difference(source, again, "fp32") == expected
    assert again.alone.get_property("LOADED_FROM_CACHE")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert difference(source, ov.load(directory, ov.Options(), FP32), "fp32") == expected
    assert sorted(path.name for path in directory.iterdir()) == before
    prune(Store())
    assert not [*isolated_cache.rglob("*.blob")]


def test_a_cache_that_cannot_be_written_is_done_without(
    source: Any, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = compiled()
    (tmp_path / "file").touch()
    monkeypatch.setenv("QABUILD_CACHE", str(tmp_path / "file"))
    assert difference(source, ov.load(directory, ov.Options(), FP32), "fp32") < 1e-4


def test_a_preloaded_tcmalloc_is_named_before_it_does_harm(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = compiled()
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    with pytest.raises(MissingEnvironment, match="tcmalloc: unset LD_PRELOAD"):
        ov.load(directory, ov.Options(), FP32)


def test_nothing_is_sent_to_anyone_and_nothing_printed(compiled: Compiled, tmp_path: Path) -> None:
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


def test_an_interruption_is_one_after_models_that_came_and_went(compiled: Compiled) -> None:
    """A signal is handled on a stack that OpenVINO brings, and takes away."""
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


# --- what others can open -------------------------------------------------------------------------------------------


def test_the_snippet_runs_without_qabuild(source: Any, compiled: Compiled) -> None:
    directory, _ = compiled()
    space: dict[str, Any] = {"directory": str(directory)}
    text = ov.snippet(ov.Options(), FP32)
    assert "qabuild" not in text
    exec(text, space)
    assert difference(source, space["model"], "fp32") < 1e-4
    assert space["tokenizer"].is_fast
    assert "avx512_vnni" in ov.snippet(ov.Options(), INT8)


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("int8", marks=needs_vnni)])
def test_optimum_intel_opens_it_untouched(dtype: Any, source: Any, compiled: Compiled) -> None:
    """In an environment of its own: its optimum is not the one that exports to ONNX."""
    pytest.importorskip("optimum.intel")
    from optimum.intel import OVModelForQuestionAnswering

    directory, _ = compiled(Runtime(dtype=dtype), **(FEW if dtype == "int8" else {}))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    model = OVModelForQuestionAnswering.from_pretrained(directory)  # in bf16 where the processor has it
    assert difference(source, model, "int8" if dtype == "int8" else "bf16") < 2
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}
