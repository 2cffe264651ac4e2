"""Format a comparison as a table: for the terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io

from qabuild.artifact.evidence import at_batch
from qabuild.evaluation.compare.result import Comparison, Failure, Interval, Measured
from qabuild.system.units import count_of


def columns(comparison: Comparison) -> list[str]:
    """Headings for `rows`."""
    first = comparison.measured[0]
    return [
        "approach",
        "EM",
        "F1",
        "F1 retention",
        f"samples/s, batch {first.throughput[0].batch_size}",
        "speedup",
        "model only",
        *(heading for further in first.throughput[1:] for heading in (f"batch {further.batch_size}", "speedup")),
        *(["median", "p99"] if first.latency else []),
        "size",
        "memory",
        "load",
        "result",
    ]


def rows(comparison: Comparison) -> list[list[str]]:
    """A row for each artifact, with 95 % intervals in brackets; failures come last."""
    width = len(columns(comparison))
    failed = [[failure.name, *["-"] * (width - 2), result(failure)] for failure in comparison.failures]
    return [_row(measured) for measured in comparison.measured] + failed


def to_markdown(comparison: Comparison) -> str:
    """The table in GitHub-flavoured Markdown."""
    headings = columns(comparison)
    lines = [headings, ["---"] * len(headings), *rows(comparison)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_csv(comparison: Comparison) -> str:
    """All figures as CSV, in SI units and full precision, with a row for each artifact and batch size."""
    text = io.StringIO()
    records = _csv_records(comparison)
    writer = csv.DictWriter(text, list(records[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def result(entry: Measured | Failure) -> str:
    """The result in a few words: the error, the failed gates or "as verified"."""
    if isinstance(entry, Failure):
        return f"error: {entry.error.splitlines()[0]}"
    failed = ", ".join(gate.name for gate in entry.failed_gates)
    return f"FAILED: {failed}" if failed else "as verified"


def conditions(comparison: Comparison) -> str:
    """The conditions of the comparison in one line: questions, baseline, machine and durations."""
    main = comparison.measured[0].throughput[0]
    overhead = comparison.time.measuring / comparison.time.answering - 1
    asked = f"{count_of(main.questions, 'question')} in {count_of(main.rounds, 'round')}"
    questions = f"interrupted after {asked}" if comparison.interrupted else asked
    hardware = f"{comparison.machine['cpu']}, {count_of(comparison.machine['cores'], 'core')}"
    return (
        f"{questions}, baseline: {comparison.baseline or 'not measured'}; "
        f"{hardware}; loading {comparison.time.loading:.0f} s, "
        f"answering {comparison.time.answering:.0f} s, overhead {100 * overhead:.1f} %"
    )


def _row(measured: Measured) -> list[str]:
    accuracy, (main, *further) = measured.accuracy, measured.throughput
    retention = accuracy.f1_retention
    return [
        measured.name,
        f"{accuracy.exact_match:.2f}",
        f"{accuracy.f1:.2f}{_bounds(accuracy.f1_interval)}",
        "-" if retention is None else f"{100 * retention:.2f} %{at_batch(accuracy.batch_size)}",
        f"{main.samples_per_second:.1f}",
        _speedup(main.speedup, main.speedup_interval),
        f"{main.model_samples_per_second:.1f}",
        *(cell for other in further for cell in (f"{other.samples_per_second:.1f}", _speedup(other.speedup, None))),
        *([f"{measured.latency.median:.1f} ms", f"{measured.latency.p99:.1f} ms"] if measured.latency else []),
        f"{measured.size / 1e6:.1f} MB",
        f"{measured.peak_memory / 1e6:.0f} MB",
        f"{measured.load_seconds:.1f} s",
        result(measured),
    ]


def _speedup(speedup: float | None, interval: Interval | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x{_bounds(interval)}"


def _bounds(interval: Interval | None) -> str:
    return f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""


def _csv_records(comparison: Comparison) -> list[dict[str, str | float | None]]:
    records = [
        _csv_record(measured, index) for measured in comparison.measured for index in range(len(measured.throughput))
    ]
    for failure in comparison.failures:
        records.append({"approach": failure.name, "artifact": failure.artifact, "result": result(failure)})
    return records


def _csv_record(measured: Measured, index: int) -> dict[str, str | float | None]:
    accuracy, speed = measured.accuracy, measured.throughput[index]
    f1_low, f1_high = accuracy.f1_interval or (None, None)
    low, high = speed.speedup_interval or (None, None)
    return {
        "approach": measured.name,
        "artifact": measured.artifact,
        "batch_size": speed.batch_size,
        "questions": speed.questions,
        "exact_match": accuracy.exact_match,
        "f1": accuracy.f1,
        "f1_low": f1_low,
        "f1_high": f1_high,
        "f1_retention": accuracy.f1_retention,
        "accuracy_batch_size": accuracy.batch_size,
        "samples_per_second": speed.samples_per_second,
        "model_samples_per_second": speed.model_samples_per_second,
        "speedup": speed.speedup,
        "speedup_low": low,
        "speedup_high": high,
        "latency_median_ms": measured.latency.median if measured.latency else None,
        "latency_p99_ms": measured.latency.p99 if measured.latency else None,
        "size_bytes": measured.size,
        "peak_memory_bytes": measured.peak_memory,
        "load_seconds": measured.load_seconds,
        "result": result(measured),
    }
