"""How fast: throughput by batch size and length, and latency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from qabuild.evaluation.bootstrap import ratio_interval
from qabuild.evaluation.compare.result import Latency, LengthSpeed, Throughput
from qabuild.evaluation.compare.rounds import Run
from qabuild.evaluation.compare.worker import Call
from qabuild.evaluation.compare.worker_pool import Turn

LENGTH_STEP = 32
"""Windows of so many tokens, or of one of its multiples, are counted together with those a little shorter."""


def throughput(batch_size: int, run: Run, standard: Run | None) -> Throughput:
    """Questions a second, and over those of the baseline in the same rounds."""
    turns = run.throughput[batch_size]
    own, other = _seconds(turns), _seconds(standard.throughput[batch_size]) if standard else None
    count = sum(len(turn.answers) for turn in turns)
    calls = [call for turn in turns for call in turn.calls]
    return Throughput(
        batch_size=batch_size,
        questions=count,
        rounds=len(turns),
        samples_per_second=count / sum(own),
        model_samples_per_second=count / sum(spent for _, _, spent in calls),
        speedup=sum(other) / sum(own) if other else None,
        speedup_interval=ratio_interval(other, own) if other and len(other) > 1 else None,  # one tells of no spread
        by_length=_by_length([call for call in calls if call[0] == batch_size]),
    )


def latency(turns: Sequence[Turn]) -> Latency:
    """Of questions that were asked one by one."""
    import numpy as np

    milliseconds = [1000 * spent for turn in turns for spent in turn.seconds]
    median, p99 = np.percentile(milliseconds, (50, 99))
    return Latency(median=float(median), p99=float(p99), milliseconds=milliseconds)


def _seconds(turns: Sequence[Turn]) -> list[float]:
    return [sum(turn.seconds) for turn in turns]


def _by_length(calls: Sequence[Call]) -> list[LengthSpeed]:
    windows: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for count, tokens, spent in calls:
        length = -(-tokens // LENGTH_STEP) * LENGTH_STEP
        windows[length] += count
        seconds[length] += spent
    return [
        LengthSpeed(tokens=length, windows_per_second=windows[length] / seconds[length], windows=windows[length])
        for length in sorted(windows)
    ]
