"""Speed: throughput by batch size and length, and latency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qabuild.evaluation.bootstrap import ratio_interval
from qabuild.evaluation.compare.result import Latency, LengthSpeed, Throughput
from qabuild.evaluation.compare.rounds import Run
from qabuild.evaluation.compare.worker import Call
from qabuild.evaluation.compare.worker_pool import Turn

LENGTH_STEP = 32
"""Windows are grouped by their length in tokens, rounded up to a multiple of this."""


def throughput(batch_size: int, run: Run, baseline: Run | None) -> Throughput:
    """Throughput of a run at one batch size, and its speedup over the baseline in the same rounds."""
    turns = run.throughput[batch_size]
    seconds = _seconds(turns)
    baseline_seconds = _seconds(baseline.throughput[batch_size]) if baseline else None
    count = sum(len(turn.answers) for turn in turns)
    calls = [call for turn in turns for call in turn.calls]
    return Throughput(
        batch_size=batch_size,
        questions=count,
        rounds=len(turns),
        samples_per_second=count / sum(seconds),
        model_samples_per_second=count / sum(duration for _, _, duration in calls),
        speedup=sum(baseline_seconds) / sum(seconds) if baseline_seconds else None,
        # One round says nothing about the variance.
        speedup_interval=ratio_interval(baseline_seconds, seconds)
        if baseline_seconds and len(baseline_seconds) > 1
        else None,
        by_length=_by_length([call for call in calls if call[0] == batch_size]),
        seconds=seconds,
    )


def latency(turns: Sequence[Turn]) -> Latency:
    """Median, 99th percentile and each value of the latency, from turns that answered questions one by one."""
    import numpy as np

    milliseconds = [1000 * seconds for turn in turns for seconds in turn.seconds]
    median, p99 = np.percentile(milliseconds, (50, 99))
    return Latency(median=float(median), p99=float(p99), milliseconds=milliseconds)


def _seconds(turns: Sequence[Turn]) -> list[float]:
    return [sum(turn.seconds) for turn in turns]


def _by_length(calls: Sequence[Call]) -> list[LengthSpeed]:
    windows: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for count, tokens, duration in calls:
        length = -(-tokens // LENGTH_STEP) * LENGTH_STEP
        windows[length] += count
        seconds[length] += duration
    return [
        LengthSpeed(tokens=length, windows_per_second=windows[length] / seconds[length], windows=windows[length])
        for length in sorted(windows)
    ]
