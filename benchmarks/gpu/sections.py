"""The sections of a run. Each runs in a process of its own and adds its measurements to the results as they come.

Names and fields of the lines are what `tables.py` reads.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import ROOT, Bench, latest

if TYPE_CHECKING:
    from qabuild.qa.ask import Ask

sys.path.append(str(ROOT / "benchmarks"))  # for stock.py and turns.py

TARGETS: Mapping[str, Mapping[str, str]] = {
    "cuda": {
        "baseline": "baseline",
        "amp": "amp",
        "torchscript-amp": "torchscript-amp",
        "ort-fp16": "ort-fp16",
        "deepspeed-fp16": "deepspeed-fp16",
    },
    "cpu": {
        "baseline": "baseline-cpu",
        "amp": "bf16-cpu",
        "torchscript-amp": "torchscript-cpu",
        "ort-fp16": "ort-fp32-cpu",
        "deepspeed-fp16": "deepspeed-cpu",
    },
}
"""The samples in targets/ by the name of their row; those for the CPU stand in for them where the script is tested."""

NO_GATES = {"min_f1_retention": 0.0, "min_agreement": 0.0, "max_logit_difference": 1e9}
"""For random weights, whose answers are arbitrary."""

BASE_SIZE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
"""RoBERTa-base's, which are BERT-base's."""

STOCK_FP32, STOCK_HALF = "stock", "stock in half precision"
COMPILED, OPTIMUM = "stock, torch.compile in half precision", "stock, optimum's ONNX Runtime"
PEERS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "cuda": {
        STOCK_FP32: ("eager", "float32"),
        STOCK_HALF: ("eager", "float16"),
        COMPILED: ("compile", "float16"),
        OPTIMUM: ("onnxruntime", "float16"),
    },
    "cpu": {
        STOCK_FP32: ("eager", "float32"),
        STOCK_HALF: ("eager", "bfloat16"),
        COMPILED: ("compile", "bfloat16"),
        OPTIMUM: ("onnxruntime", "float32"),
    },
}
"""The stock pipeline's models: names of `stock_worker.MODELS`, and their dtype."""
AT_8 = ", batch 8"
"""The end of the name of an artifact that is asked in batches of 8 windows; without it, in automatic ones."""

RECIPES = ("plain", "grouped", "no dropout", "qabuild")
"""Those of benchmarks/training.py."""

Table = Mapping[str, Any]


# --- 1. tests ---------------------------------------------------------------------------------------------------------

RESULT = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED) (tests/\S.*?)\s*$")


def tests(bench: Bench) -> None:
    """The tests marked `gpu`, in parallel, since DeepSpeed's kernels take minutes to compile."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-n", "4", "--dist", "load", "-p", "no:cacheprovider"]
    process = subprocess.Popen([*command, *map(str, files)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        print(line, end="")
        if found := RESULT.search(line):
            bench.add("tests", found[2], outcome=found[1].lower())
    if (status := process.wait()) not in (0, 1):  # 1: some failed
        sys.exit(f"pytest ended with status {status}")


# --- 2. the real checkpoint -------------------------------------------------------------------------------------------


def real(bench: Bench) -> None:
    samples = {"samples": 16} if bench.quick else {}
    build_all(bench, "real", TARGETS[bench.device], verify=samples)


def real_turns(bench: Bench) -> None:
    take_turns(bench, "real", bench.checkpoint)


def real_compiled(bench: Bench) -> None:
    """Apart from the others, since compiling for each length takes long."""
    peers = (STOCK_FP32, STOCK_HALF, COMPILED)
    take_turns(bench, "real", bench.checkpoint, peers=peers, section="compiled turns")


def real_compare(bench: Bench) -> None:
    """`qabuild compare`, which also measures batches of 32, latency and loading."""
    compare(bench, "real", bench.size(2048, 32))


# --- 3. the size of RoBERTa-base --------------------------------------------------------------------------------------


def base(bench: Bench) -> None:
    checkpoint = random_checkpoint(bench)
    verify = {"samples": bench.size(1024, 8), "gates": NO_GATES}
    build_all(bench, "base", TARGETS[bench.device], checkpoint=checkpoint, verify=verify)


def base_turns(bench: Bench) -> None:
    take_turns(bench, "base", random_checkpoint(bench))


def random_checkpoint(bench: Bench) -> Path:
    """A BERT of RoBERTa-base's size with random weights and the checkpoint's tokenizer. Its head is scaled up, so that
    the logits differ as much as those of a trained one."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

    directory = bench.work / "base-size"
    if directory.is_dir():
        return directory
    tokenizer = AutoTokenizer.from_pretrained(bench.checkpoint)
    size = {**BASE_SIZE, "num_hidden_layers": bench.size(12, 2)}
    torch.manual_seed(0)
    positions = 512
    model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **size))
    model.qa_outputs.weight.data *= 10
    tokenizer.model_max_length = positions
    partial = directory.with_suffix(".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    return partial.rename(directory)


# --- 4. the pipeline --------------------------------------------------------------------------------------------------


def pipeline_whole(bench: Bench) -> None:
    pipeline(bench, "whole", ["--whole-questions", str(bench.size(2000, 40)), "--device", bench.device])


def pipeline_alone(bench: Bench) -> None:
    pipeline(bench, "alone", ["--questions", str(bench.size(4000, 40))])


def pipeline(bench: Bench, part: str, options: Sequence[str]) -> None:
    written = bench.work / "pipeline.json"
    options = [*options, "--rounds", str(bench.size(5, 2)), "--only", part, "--json", str(written)]
    options += ["--checkpoint", str(bench.checkpoint), "--data", str(bench.data)]
    script("pipeline.py", *options, "--environment", str(bench.environment))
    bench.add("pipeline", part, **json.loads(written.read_text(encoding="utf-8"))[part])


# --- 5. training ------------------------------------------------------------------------------------------------------


def training(bench: Bench) -> None:
    """The plain recipe and qabuild's."""
    paths = [str(path) for path in (bench.checkpoint, bench.train, bench.data)]
    sizes = ["--questions", str(bench.size(4096, 32)), "--asked", str(bench.size(1000, 16))]
    for recipe in RECIPES:
        out = script("training.py", *paths, *sizes, "--device", bench.device, "--recipe", recipe)
        bench.add("training", recipe, **json.loads(out.splitlines()[-1]))


def students(bench: Bench) -> None:
    """A student of three layers, distilled from the checkpoint, and the checkpoint with narrower layers, recovered."""
    dataset, samples = str(bench.train), bench.size(8000, 64)
    config = json.loads((bench.checkpoint / "config.json").read_text(encoding="utf-8")) if bench.checkpoint else {}
    last = config["num_hidden_layers"] - 1
    kept = sorted({0, (last - 1) // 2, last})
    train = {"dataset": dataset, "samples": samples, "layers": kept, "epochs": 1, "learning_rate": 1e-4, "dropout": 0.0}
    recover = {"dataset": dataset, "samples": samples, "learning_rate": 3e-5}
    prune = {"dataset": dataset, "samples": bench.size(256, 32), "ffn": 0.65, "heads": 0.75, "recover": recover}
    rows = {name: target for name, target in TARGETS[bench.device].items() if name != "deepspeed-fp16"}
    verify = {"samples": bench.size(2048, 16), "gates": NO_GATES}
    for student, tables in (
        ("distilled", {"train": train, "distill": {"teacher": {"model": str(bench.checkpoint)}}}),
        ("pruned", {"prune": prune}),
    ):
        baseline = {"baseline": rows["baseline"]}
        build_all(bench, student, baseline, tables=tables, verify=verify)  # trains; the others start from its result
        others = {name: target for name, target in rows.items() if name not in baseline}
        build_all(bench, student, others, tables=tables, verify=verify)


def students_turns(bench: Bench) -> None:
    """In turns with the teacher in eager fp32."""
    verify = {"samples": bench.size(2048, 16), "gates": NO_GATES}
    build_all(bench, "teacher", {"baseline": TARGETS[bench.device]["baseline"]}, verify=verify)
    take_turns(bench, "teacher", None, "distilled", "pruned")


# --- 6. torch.export --------------------------------------------------------------------------------------------------


def export(bench: Bench) -> None:
    written = bench.work / "export.json"
    options = ["--checkpoint", str(bench.checkpoint), "--data", str(bench.data), "--device", bench.device, "--brief"]
    options += ["--questions", str(bench.size(512, 8)), "--rounds", str(bench.size(5, 2)), "--json", str(written)]
    script("torch_export.py", *options, "--dtypes", "fp16" if bench.device == "cuda" else "fp32")
    for row in json.loads(written.read_text(encoding="utf-8")):
        bench.add("export", row.pop("name"), **row)


# --- what the sections share ------------------------------------------------------------------------------------------


def script(name: str, *options: str) -> str:
    """Run another benchmark; returns what it prints. Its errors go to the log."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    print(*command)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout


def build_all(
    bench: Bench,
    model: str,
    rows: Mapping[str, str],
    *,
    checkpoint: Path | None = None,
    tables: Mapping[str, Table] | None = None,
    verify: Mapping[str, Any] | None = None,
) -> None:
    """Build the artifacts of one model at once, each by a process: they take their turns when `compare` times them."""
    source = str(checkpoint or bench.checkpoint)
    asked = {"dataset": str(bench.data), **(verify or {})}
    tables = {"checkpoint": {"model": source}, **(tables or {}), "verify": asked}
    folder = bench.work / "targets"
    folder.mkdir(exist_ok=True)

    def build(row: str) -> None:
        path = folder / f"{model}-{row}.toml"
        path.write_text(derived(rows[row], tables), encoding="utf-8")
        command = [sys.executable, "-m", "qabuild", "build", str(path), "--output", str(bench.work / "artifacts")]
        begin = time.monotonic()
        done = subprocess.run([*command, "--offline", "--json"], stdout=subprocess.PIPE, text=True, check=False)
        seconds = round(time.monotonic() - begin, 1)
        bench.add(model, row, **outcome(done.stdout), build_seconds=seconds)

    with ThreadPoolExecutor(len(rows)) as pool:
        list(pool.map(build, rows))


def derived(target: str, tables: Mapping[str, Table]) -> str:
    """A target that changes tables of one in targets/."""
    import tomli_w

    extended = os.fspath(ROOT / "targets" / f"{target}.toml")
    return tomli_w.dumps({"extends": extended, **tables})


def outcome(printed: str) -> dict[str, Any]:
    """What the results keep of what a build prints: a list with one document, an error, or nothing."""
    documents = json.loads(printed or '{"error": "it printed nothing"}')
    document = documents[0] if isinstance(documents, list) else documents
    verification = document.get("verification")
    if not verification:
        return {"error": document["error"]}
    measured = verification["measurement"]
    kept = ("questions", "exact_match", "f1", "checkpoint_f1", "agreement", "logit_difference", "truncated_questions")
    gates = [gate["name"] for gate in verification["gates"] if not gate["passed"]]
    return {
        "artifact": document["artifact"],
        "passed": not gates,
        "failed_gates": gates,
        **{name: measured[name] for name in kept if name in measured},
    }


def artifacts(bench: Bench, *models: str) -> Iterator[tuple[str, Path]]:
    """Name and folder of the models' artifacts, also of those that failed their verification."""
    for model in models:
        built = latest(bench.lines(), model)
        for row in TARGETS[bench.device]:  # builds at once are recorded in any order
            if "artifact" in built.get(row, {}):
                yield f"{model}-{row}", Path(built[row]["artifact"])


def compare(bench: Bench, section: str, samples: int) -> None:
    import qabuild

    folders = [str(folder) for _, folder in artifacts(bench, section)]
    comparison = qabuild.compare(
        folders, batch_sizes=(32,), latency=True, dataset=str(bench.data), samples=samples, offline=True
    )
    for failure in comparison.failures:
        bench.add(f"{section} compare", failure.name, error=failure.error)
    for measured in comparison.measured:
        latency = measured.latency
        bench.add(
            f"{section} compare",
            measured.name,
            exact_match=measured.accuracy.exact_match,
            f1=measured.accuracy.f1,
            batches={
                str(throughput.batch_size): {
                    "questions": throughput.questions,
                    "samples_per_second": throughput.samples_per_second,
                    "model_samples_per_second": throughput.model_samples_per_second,
                    "speedup": throughput.speedup,
                    "speedup_interval": throughput.speedup_interval,
                }
                for throughput in measured.throughput
            },
            latency=latency and {"median": latency.median, "p99": latency.p99},
            size=measured.size,
            load_seconds=measured.load_seconds,
        )


def take_turns(
    bench: Bench,
    model: str,
    checkpoint: Path | None,
    *others: str,
    peers: Sequence[str] = (STOCK_FP32, STOCK_HALF, OPTIMUM),
    section: str | None = None,
) -> None:
    """The artifacts of the model, and of others, in qabuild's pipeline: in batches of 8, as in the study, and in
    automatic ones. In turns with them, the stock pipeline at batch 8 with the models of `peers` over the checkpoint."""
    from stock import Stock
    from turns import seconds_by_round, speedup

    from qabuild.errors import QABuildError
    from qabuild.qa import data

    section, rounds = section or f"{model} turns", bench.size(5, 2)
    questions = data.subset(data.load(data.DatasetRef(bench.data)).questions, bench.size(500, 8))
    asks: dict[str, Ask] = {}
    with ExitStack() as stack:
        for name in peers if checkpoint and bench.environment else ():
            kind, dtype = PEERS[bench.device][name]
            try:
                peer = Stock(checkpoint, kind, environment=bench.environment, device=bench.device, dtype=dtype)
                stack.enter_context(peer)
                peer(questions)  # compiles
                asks[name] = peer
            except (QABuildError, OSError) as error:
                bench.add(section, name, error=str(error))
        for name, folder in artifacts(bench, model, *others):
            asks[f"{name}{AT_8}"] = asking(folder, batch_size=8)
            asks[name] = asking(folder)
        seconds = seconds_by_round(asks, questions, rounds)
    bases = {"eager": f"{model}-baseline{AT_8}", "stock": STOCK_FP32, "stock in half": STOCK_HALF}
    for name, own in seconds.items():
        ratios = {base: speedup(seconds[peer], own) for base, peer in bases.items() if peer in seconds}
        rate = len(questions) / statistics.median(own)
        bench.add(section, name, per_second=rate, times=ratios, questions=len(questions), rounds=rounds)


def asking(folder: Path, **parameters: Any) -> Ask:
    """A function that asks an artifact, also one that failed its verification."""
    from qabuild.artifact.load import load_model
    from qabuild.artifact.manifest import open_artifact
    from qabuild.qa.ask import answerer

    model, tokenizer = load_model(open_artifact(folder), allow_unverified=True)
    return answerer(model, tokenizer, **parameters)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the run, and its limit."""

    name: str
    measure: Callable[[Bench], None]
    seconds: float
    needs: tuple[str, ...] = ()
    """Fields of the bench."""


CHECKPOINT = ("checkpoint", "data")
STOCK, TRAIN = (*CHECKPOINT, "environment"), (*CHECKPOINT, "train")

SECTIONS = (
    Section(name="tests", measure=tests, seconds=150),
    Section(name="real", measure=real, seconds=90, needs=CHECKPOINT),
    Section(name="real turns", measure=real_turns, seconds=90, needs=CHECKPOINT),
    Section(name="base", measure=base, seconds=70, needs=CHECKPOINT),
    Section(name="base turns", measure=base_turns, seconds=70, needs=CHECKPOINT),
    Section(name="pipeline whole", measure=pipeline_whole, seconds=50, needs=STOCK),
    Section(name="training", measure=training, seconds=90, needs=TRAIN),
    Section(name="students", measure=students, seconds=110, needs=TRAIN),
    Section(name="students turns", measure=students_turns, seconds=60, needs=TRAIN),
    Section(name="export", measure=export, seconds=80, needs=CHECKPOINT),
    Section(name="real compare", measure=real_compare, seconds=110, needs=CHECKPOINT),
    Section(name="compiled turns", measure=real_compiled, seconds=150, needs=STOCK),
    Section(name="pipeline alone", measure=pipeline_alone, seconds=60, needs=STOCK),
)
"""In their order, the most important first."""
