"""A comparison as the table of the field, for people (terminal, Markdown) and for spreadsheets (CSV)."""

from __future__ import annotations

import csv
import io

from qabuild.evaluation.compare.result import Comparison, Failure, Interval, Measured


def columns(found: Comparison) -> list[str]:
    """Headings of `rows`."""
    first = found.measured[0]
    return [
        "approach",
        "EM",
        "F1",
        "F1 retention",
        f"samples/s, batch {first.throughput[0].batch_size}",
        "speedup",
        "model only",
        *(heading for each in first.throughput[1:] for heading in (f"batch {each.batch_size}", "speedup")),
        *(["median", "p99"] if first.latency else []),
        "size",
        "memory",
        "load",
        "result",
    ]


def rows(found: Comparison) -> list[list[str]]:
    """A row for each artifact, its 95 % intervals in brackets; those that could not be measured last."""
    width = len(columns(found))
    failed = [[each.name, *["-"] * (width - 2), result(each)] for each in found.failures]
    return [_row(each) for each in found.measured] + failed


def markdown(found: Comparison) -> str:
    """The table in GitHub's Markdown."""
    headings = columns(found)
    lines = [headings, ["---"] * len(headings), *rows(found)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def comma_separated(found: Comparison) -> str:
    """All figures, in SI units and full precision; a row for each artifact and batch size."""
    text = io.StringIO()
    fields = _fields(found)
    writer = csv.DictWriter(text, list(fields[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(fields)
    return text.getvalue().rstrip("\n")


def result(each: Measured | Failure) -> str:
    """What became of it, in a few words."""
    if isinstance(each, Failure):
        return f"error: {each.error.splitlines()[0]}"
    failed = ", ".join(gate.name for gate in each.failed_gates)
    return f"FAILED: {failed}" if failed else "as verified"


def conditions(found: Comparison) -> str:
    """One line on what was asked, where, and what was timed beside the answering."""
    main = found.measured[0].throughput[0]
    overhead = found.time.measuring / found.time.answering - 1
    rounds = "1 round" if main.rounds == 1 else f"{main.rounds} rounds"
    return (
        f"{main.questions} questions in {rounds}, baseline: {found.baseline or 'not measured'}; "
        f"{found.machine['cpu']}, {found.machine['cores']} cores; loading {found.time.loading:.0f} s, "
        f"answering {found.time.answering:.0f} s, {100 * overhead:.1f} % on top"
    )


def _row(each: Measured) -> list[str]:
    accuracy, (main, *further) = each.accuracy, each.throughput
    kept = accuracy.f1_retention
    return [
        each.name,
        f"{accuracy.exact_match:.2f}",
        f"{accuracy.f1:.2f}{_within(accuracy.f1_interval)}",
        "-" if kept is None else f"{100 * kept:.2f} %",
        f"{main.samples_per_second:.1f}",
        _times(main.speedup, main.speedup_interval),
        f"{main.model_samples_per_second:.1f}",
        *(cell for other in further for cell in (f"{other.samples_per_second:.1f}", _times(other.speedup, None))),
        *([f"{each.latency.median:.1f} ms", f"{each.latency.p99:.1f} ms"] if each.latency else []),
        f"{each.size / 1e6:.1f} MB",
        f"{each.peak_memory / 1e6:.0f} MB",
        f"{each.load_seconds:.1f} s",
        result(each),
    ]


def _times(speedup: float | None, interval: Interval | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x{_within(interval)}"


def _within(interval: Interval | None) -> str:
    return f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""


def _fields(found: Comparison) -> list[dict[str, str | float | None]]:
    fields = [_field(each, index) for each in found.measured for index in range(len(each.throughput))]
    for failure in found.failures:
        fields.append({"approach": failure.name, "artifact": failure.artifact, "result": result(failure)})
    return fields


def _field(each: Measured, index: int) -> dict[str, str | float | None]:
    accuracy, speed = each.accuracy, each.throughput[index]
    f1_low, f1_high = accuracy.f1_interval or (None, None)
    low, high = speed.speedup_interval or (None, None)
    return {
        "approach": each.name,
        "artifact": each.artifact,
        "batch_size": speed.batch_size,
        "questions": speed.questions,
        "exact_match": accuracy.exact_match,
        "f1": accuracy.f1,
        "f1_low": f1_low,
        "f1_high": f1_high,
        "f1_retention": accuracy.f1_retention,
        "samples_per_second": speed.samples_per_second,
        "model_samples_per_second": speed.model_samples_per_second,
        "speedup": speed.speedup,
        "speedup_low": low,
        "speedup_high": high,
        "latency_median_ms": each.latency.median if each.latency else None,
        "latency_p99_ms": each.latency.p99 if each.latency else None,
        "size_bytes": each.size,
        "peak_memory_bytes": each.peak_memory,
        "load_seconds": each.load_seconds,
        "result": result(each),
    }
