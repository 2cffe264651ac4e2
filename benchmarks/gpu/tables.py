"""Fill the section of docs/benchmarks.md on a GPU run from its results.

    python benchmarks/gpu/tables.py FOLDER/results.jsonl [--page docs/benchmarks.md] [--print]

replaces what lies between the markers of the page. Results that hold no measurement change nothing.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import ROOT, latest, read

BEGIN, END = "<!-- gpu run -->", "<!-- /gpu run -->"

STUDY = {
    "baseline": 293.4,
    "amp": 347.2,
    "torchscript-amp": 379.8,
    "ort-fp16": 429.6,
    "distilled-baseline": 384.2,
    "distilled-amp": 416.5,
    "distilled-torchscript-amp": 446.3,
    "distilled-ort-fp16": 477.7,
}
"""Samples/s of the published study. It states DeepSpeed's speed as at least 5 % over TorchScript + AMP."""
PUBLISHED = {name: rate / STUDY["baseline"] for name, rate in STUDY.items()}
PUBLISHED["deepspeed-fp16"] = 1.05 * PUBLISHED["torchscript-amp"]

ROWS = ("baseline", "amp", "torchscript-amp", "ort-fp16", "deepspeed-fp16")

Line = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the section, and write nothing")
    arguments = parser.parse_args()
    text = "\n".join(section(read(arguments.results)))
    if arguments.only_print:
        print(text)
    elif text:
        arguments.page.write_text(replaced(arguments.page.read_text(encoding="utf-8"), text), encoding="utf-8")


def replaced(page: str, text: str) -> str:
    """The page with the text between its markers. Raises ValueError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def section(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of the section; none where nothing was measured."""
    tables = [
        *built(lines, "real", "The checkpoint"),
        *built(lines, "base", "A model of RoBERTa-base's size with random weights"),
        *students(lines),
        *turns(lines, "real", "The checkpoint"),
        *turns(lines, "base", "The model of RoBERTa-base's size"),
        *turns(lines, "compiled", "The checkpoint, with `torch.compile`"),
        *compared(lines),
        *pipeline(lines),
        *training(lines),
        *export(lines),
    ]
    if not tables:
        return
    yield from conditions(lines)
    yield from tables
    yield from remarks(lines)


def conditions(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Hardware and versions."""
    run = latest(lines, "run")["environment"]
    machine = run["machine"]
    gpu = f"one {machine['gpus'][0]} (driver {machine['driver']}), " if machine.get("gpus") else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    stock = run["stock"].get("transformers", "-")
    text = (
        f"Measured on {run['started'][:10]} on {gpu}{machine['cores']} cores of {machine['cpu']}, "
        f"Python {machine['python']}, {versions}; stock rows under transformers {stock}. "
        "Published ratios are the study's, on its GPU."
    )
    if run["quick"]:
        text += " It was a quick run, which tests the script: the figures mean nothing."
    yield from textwrap.wrap(text, 120, break_on_hyphens=False)


def built(lines: list[dict[str, Any]], model: str, title: str) -> Iterator[str]:
    """Accuracy of the verification, speed in turns in batches of 8, and the published ratio."""
    rows = [
        [name, first_line(line)]
        if "error" in line
        else [*accuracy(name, line), *speed(lines, f"{model} turns", f"{model}-{name}"), two(PUBLISHED.get(name))]
        for name, line in by_row(lines, model)
    ]
    columns = ["target", "EM", "F1", "F1 retention", "agreement", "questions/s", "times eager fp32", "published"]
    yield from table(f"{title}: targets, in batches of 8", columns, rows)


def students(lines: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [artifact, first_line(line)]
        if "error" in line
        else [artifact, two(line["exact_match"]), two(line["f1"]), *speed(lines, "teacher turns", artifact), published]
        for model in ("teacher", "distilled", "pruned")
        for name, line in by_row(lines, model)
        for artifact, published in [(f"{model}-{name}", two(PUBLISHED.get(f"{model}-{name}")))]
    ]
    columns = ["artifact", "EM", "F1", "questions/s", "times the teacher in eager fp32", "published"]
    yield from table("Students of three layers, distilled, and pruned in width, in batches of 8", columns, rows)


def turns(lines: list[dict[str, Any]], model: str, title: str) -> Iterator[str]:
    rows = [
        [name, first_line(line)]
        if "error" in line
        else [name, one(line["per_second"]), times(line, "stock"), times(line, "stock in half")]
        for name, line in latest(lines, f"{model} turns").items()
    ]
    columns = ["", "questions/s", "times stock in fp32", "times stock in half precision"]
    yield from table(f"{title}: in turns with the stock pipeline at batch 8", columns, rows)


def compared(lines: list[dict[str, Any]]) -> Iterator[str]:
    """What `qabuild compare` says."""
    rows = []
    for name, line in latest(lines, "real compare").items():
        if "error" in line:
            rows.append([name, first_line(line)])
            continue
        rates = [one(line["batches"].get(size, {}).get("samples_per_second")) for size in ("8", "32")]
        latency = line["latency"] or {}
        megabytes = one(line["size"] / 1e6)
        rows.append([name, *rates, one(latency.get("median")), one(latency.get("p99")), megabytes])
    columns = ["artifact", "samples/s, batch 8", "batch 32", "one question, ms: median", "p99", "MB"]
    yield from table("The checkpoint, by `qabuild compare`", columns, rows)


def pipeline(lines: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for part, line in latest(lines, "pipeline").items():
        for name, seconds in line["seconds"].items():
            sampled = (line.get("sampled") or {}).get(name)
            idle = line.get("idle") if name == "qabuild" else None
            rate = one(line["questions"] / statistics.median(seconds))
            rows.append([part, name, rate, percent(idle and 100 * idle), percent(sampled and 100 * sampled)])
    columns = ["", "", "questions/s", "GPU idle, by the profiler", "GPU in use, by the driver's samples"]
    yield from table("The pipeline, alone and with the model", columns, rows)


def training(lines: list[dict[str, Any]]) -> Iterator[str]:
    found = latest(lines, "training")
    plain = found.get("plain", {}).get("per_second")
    rows = []
    for name, line in found.items():
        times_plain = plain and line["per_second"] / plain
        rows.append([name, one(line["per_second"]), *map(two, (times_plain, line["exact_match"], line["f1"]))])
    yield from table("Training", ["recipe", "windows/s", "times plain", "EM", "F1"], rows)


def export(lines: list[dict[str, Any]]) -> Iterator[str]:
    rows = []
    for name, line in latest(lines, "export").items():
        if "error" in line:
            rows.append([name, first_line(line)])
            continue
        seconds, changed = one(line["compile_seconds"]), str(line["changed"])
        rows.append([name, one(line["per_second"]), interval(line["speedup"]), seconds, changed])
    yield from table("torch.export", ["", "questions/s", "times eager", "compiled in, s", "answers changed"], rows)


def remarks(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The tests, and the sections that did not finish."""
    outcomes = [line["outcome"] for line in latest(lines, "tests").values()]
    if outcomes:
        counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
        yield f"\nOf the tests marked `gpu`: {counts}."
    rest = [
        f"{name} ({line['status']}{': ' + line['why'] if 'why' in line else ''})"
        for name, line in latest(lines, "sections").items()
        if line["status"] != "finished"
    ]
    if rest:
        yield f"\nSections that did not finish: {'; '.join(rest)}."


# --- cells ------------------------------------------------------------------------------------------------------------


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """A Markdown table under a title; nothing without rows. Short rows, which hold an error, are filled up."""
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
    return [f"\n{title}:\n", *(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)]


def first_line(line: Line) -> str:
    """Of an error."""
    return str(line["error"]).partition("\n")[0]


def by_row(lines: list[dict[str, Any]], model: str) -> list[tuple[str, Line]]:
    """The targets of a model in their usual order."""
    built = latest(lines, model)
    return [(name, built[name]) for name in ROWS if name in built]


def accuracy(name: str, line: Line) -> list[str]:
    failed = f" (failed {', '.join(line['failed_gates'])})" if line["failed_gates"] else ""
    retention = 100 * line["f1"] / line["checkpoint_f1"] if line["checkpoint_f1"] else None
    scores = two(line["exact_match"]), two(line["f1"])
    return [name + failed, *scores, percent(retention), percent(100 * line["agreement"])]


def speed(lines: list[dict[str, Any]], section: str, name: str) -> list[str]:
    """Questions/s in batches of 8, and the ratio to eager fp32."""
    line = latest(lines, section).get(f"{name}, batch 8", {})
    return [one(line.get("per_second")), times(line, "eager")]


def times(line: Line, peer: str) -> str:
    ratio = (line.get("times") or {}).get(peer)
    return interval(ratio) if ratio else ""


def interval(ratio: Sequence[float]) -> str:
    median, least, greatest = ratio
    return f"{median:.2f} ({least:.2f} to {greatest:.2f})"


def one(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


if __name__ == "__main__":
    main()
