"""The benchmarks' baseline, which runs in a process and an environment of its own, and the run on a GPU."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tiny
from server import Local

from benchmarks import stock
from benchmarks.gpu import fatbin
from benchmarks.serving_client import Arrivals
from benchmarks.stock import Stock
from qabuild.errors import MissingEnvironment
from qabuild.qa import sample
from qabuild.qa.data import Question
from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters

ROOT = str(Path(__file__).resolve().parents[1])
GPU = Path(ROOT, "benchmarks", "gpu")
RECORDED = Path(__file__).parent / "support" / "gpu-results.jsonl"
"""What `run.py --device cpu --quick` wrote."""

HERE = Path(sys.prefix)
"""The environment that runs the tests."""

TEXTS = (tiny.QUESTION, "What does the museum keep?", "Where did the keeper find the glass?")
QUESTIONS = [
    Question(
        id=str(number),
        question=text,
        context=" ".join(tiny.CORPUS[number : number + 3]),
        answers=(),
        answer_starts=(),
    )
    for number, text in enumerate(TEXTS)
]


@pytest.mark.line457
def test_the_stock_pipeline_answers_as_in_this_process(tiny_checkpoint: Callable[..., Path]) -> None:
    from transformers import pipeline

    here = pipeline("question-answering", model=str(tiny_checkpoint()))
    with Stock(tiny_checkpoint(), environment=HERE) as ask:
        for questions in (QUESTIONS, QUESTIONS[:1]):
            answered = ask(questions)
            expected = {question.id: here(stock.example(question))["answer"] for question in questions}
            assert answered.answers == expected
            assert answered.seconds > 0


@pytest.mark.line457
def test_a_search_finds_what_the_stock_pipeline_does(tiny_checkpoint: Callable[..., Path]) -> None:
    from transformers import pipeline

    here = pipeline("question-answering", model=str(tiny_checkpoint()))
    examples = [stock.example(question) for question in QUESTIONS]
    cut, searches = {"max_seq_len": 96, "doc_stride": 8}, [{"top_k": 2}, {"top_k": 3, "max_answer_len": 5}]
    with Stock(tiny_checkpoint(), environment=HERE) as ask:
        results, windows = ask.search(examples, cut, searches)
    assert windows > len(examples)
    for search, result in zip(searches, results, strict=True):
        expected = [here(example, **cut, **search) for example in examples]
        assert spans(result) == spans(expected)


def spans(results: list[list[dict[str, Any]]]) -> list[list[tuple[int, int, str]]]:
    return [[(answer["start"], answer["end"], answer["answer"]) for answer in answers] for answers in results]


@pytest.mark.skipif(version("transformers").startswith("4.57."), reason="transformers 4.57 has the pipeline")
def test_an_environment_of_transformers_5_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(MissingEnvironment, match="has no question-answering pipeline"):
        Stock(tiny_checkpoint(), environment=HERE)


def test_benchmarks_use_the_environment_that_was_made_last(tmp_path: Path) -> None:
    for folder in (tmp_path / "earlier", tmp_path / "later"):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        stock.remember(folder)
    assert stock.python() == tmp_path / "later" / "bin" / "python"
    assert stock.python(tmp_path / "earlier") == tmp_path / "earlier" / "bin" / "python"


def test_without_an_environment_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    for environment in (None, tmp_path):
        with pytest.raises(MissingEnvironment, match="--make-environment"):
            stock.python(environment)


# --- the server's load ----------------------------------------------------------------------------------------------


class Fixed:
    """A model that answers at once."""

    digest, backend, batch_size, is_changed = "d" * 64, "fixed", 4, False

    def parameters(self, named: Mapping[str, Any]) -> Parameters:
        return Parameters().updated(named)

    def answer(self, pairs: Sequence[Pair], parameters: Parameters) -> list[Any]:
        return [{"answer": "", "score": 1.0, "start": 0, "end": 0} for _ in pairs]


def test_clients_that_do_not_wait_count_every_answer_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    bodies = [json.dumps({"question": "Who?", "context": context}).encode() for context in ("Ann.", "")]
    with Local({"fixed": Fixed()}) as server:
        server.load()
        asyncio.run(Arrivals(server.port, 200, bodies).run(0.5))
    report = json.loads(capsys.readouterr().out)
    answered, refused = len(report["latencies"]), report["errors"].pop("422")
    assert (report["asked"], report["in_flight"], report["errors"]) == (answered + refused, 0, {})
    assert 20 < report["asked"] < 500
    assert answered - refused in (0, 1)
    assert all(latency > 0 for latency in report["latencies"])


def test_no_request_is_lost_when_a_server_stops(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(ROOT, "benchmarks", "serving.py")), str(artifact)]
    command += ["--stop", "20", "--rounds", "1", "--json", str(tmp_path / "stop.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads((tmp_path / "stop.json").read_text())["rounds"]
    assert (measured["lost"], measured["exit_status"]) == (0, 0)
    assert measured["in_flight"] >= 20


# --- the GPU run -----------------------------------------------------------------------------------------------------


def script(name: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GPU / name), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ROOT})


def statuses(output: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {line["name"]: line["status"] for line in lines if line["section"] == "sections"}


def test_a_gpu_run_skips_sections_without_their_material(tmp_path: Path) -> None:
    done = script("run.py", "--device", "cpu", "--output", tmp_path, "--sections", "real", "pipeline whole", "training")
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == dict.fromkeys(("real", "pipeline whole", "training"), "skipped")


def test_a_gpu_run_kills_a_section_at_its_limit_and_goes_on_later(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    work.mkdir()
    finished = {"section": "sections", "name": "training", "status": "finished"}
    (work / "results.jsonl").write_text(json.dumps(finished) + "\n" + '{"cut o')
    options = ("--device", "cpu", "--quick", "--work", work, "--output", output, "--seconds", 11)
    done = script("run.py", *options, "--sections", "real", "training")
    assert done.returncode == 0, done.stderr
    assert statuses(output) == {"training": "finished", "real": "timed out"}
    assert "== real" in (output / "log.txt").read_text()
    assert "== training" not in (output / "log.txt").read_text()


def test_tables_of_a_gpu_run_fill_the_page_from_its_results(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- gpu run -->\nold\n<!-- /gpu run -->\nafter\n")
    for _ in range(2):
        done = script("tables.py", RECORDED, "--page", page)
        assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- gpu run -->\nMeasured on ")
    assert text.endswith("\n<!-- /gpu run -->\nafter\n")
    assert "old" not in text
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    published = {"amp": "1.18", "torchscript-amp": "1.29", "ort-fp16": "1.46", "deepspeed-fp16": "1.36"}
    assert all(ratio in rows[name] for name, ratio in {**published, "distilled-ort-fp16": "1.63"}.items())
    widths = {line.count("|") for line in text.partition("The checkpoint: targets")[2].splitlines()[2:7]}
    assert widths == {9}


def test_results_without_a_measurement_change_no_page(tmp_path: Path) -> None:
    page, results = tmp_path / "benchmarks.md", tmp_path / "results.jsonl"
    page.write_text("<!-- gpu run -->\nold\n<!-- /gpu run -->\n")
    results.write_text('{"section": "sections", "name": "real", "status": "skipped", "why": "no checkpoint"}\n')
    assert script("tables.py", results, "--page", page).returncode == 0
    assert "old" in page.read_text()


def test_the_page_has_the_markers_of_a_gpu_run() -> None:
    done = script("tables.py", RECORDED, "--print")
    assert done.stdout.startswith("Measured on ")
    text = (Path(ROOT) / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert text.count("<!-- gpu run -->") == text.count("<!-- /gpu run -->") == 1


def test_what_is_packed_in_parts_is_unpacked(tmp_path: Path) -> None:
    parts = tmp_path / "pack"
    options = ("--parts", parts, "--part-size", 1, "--checkpoint", sample.CHECKPOINT, "--train", sample.TRAIN)
    done = script("pack.py", *options, "--data", sample.HELDOUT)
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_size <= 2**20 for path in parts.glob("part-*")] == [True] * 3
    first = (parts / "part-00").read_bytes()
    (parts / "part-00").unlink()  # it has not arrived yet: later files are whole
    done = script("unpack.py", parts)
    assert "dev.json: not all parts of it are here" in done.stdout, done.stderr
    assert (parts / "material" / "train.json").read_bytes() == sample.TRAIN.read_bytes()
    (parts / "part-00").write_bytes(b"damaged")
    assert "part-00: not the part that pack.py made" in script("unpack.py", parts).stderr
    (parts / "part-00").write_bytes(first)
    assert script("unpack.py", parts).returncode == 0
    for path in sample.CHECKPOINT.iterdir():
        assert (parts / "material" / "checkpoint" / path.name).read_bytes() == path.read_bytes()


def test_gpu_code_for_other_architectures_is_cut(tmp_path: Path) -> None:
    def container(*entries: tuple[int, bytes]) -> bytes:
        packed = b""
        for architecture, code in entries:
            header = struct.pack("<HHIQ", 2, 257, 64, len(code)).ljust(28, b"\0") + struct.pack("<I", architecture)
            packed += header.ljust(64, b"\0") + code
        return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(packed)) + packed

    code = container((75, b"turing.." * 3), (90, b"hopper..")) + container((120, b"blackwel"))
    names = b"\0.nv_fatbin\0.names\0"
    sections = [(0, 0, 0), (1, 64, len(code)), (12, 64 + len(code), len(names))]
    table = b"".join(struct.pack("<IIQQQQ", name, 1, 0, 0, at, size).ljust(64, b"\0") for name, at, size in sections)
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", header, 0x28, 64 + len(code) + len(names))
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)
    library = bytearray(header + code + names + table)
    whole = bytes(library)
    assert fatbin.cut(library, 90) == 24
    assert bytes(library) == whole.replace(b"turing..", bytes(8))
    with pytest.raises(ValueError, match="ELF"):
        fatbin.cut(bytearray(b"text"), 90)
