"""Intervals of what was measured, by the bootstrap over pairs: what is compared was measured on the same things."""

from __future__ import annotations

from collections.abc import Sequence

RESAMPLES = 2000  # the interval's ends then move by less than a tenth of its width
AT_ONCE = 1 << 20  # pairs


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the sum of `numerators` over that of `denominators`, two values of each pair.

    Pairs are drawn again (paired bootstrap, Efron 1979). The percentiles are those of Hesterberg 2015, "What Teachers
    Should Know about the Bootstrap", section 5.3: further out the fewer the pairs, as Student's t is beside the normal
    distribution, since plain percentiles of 16 rounds hold the true value in 91 of 100 cases only. One pair tells
    nothing of its spread: its interval is the ratio itself.
    """
    import numpy as np

    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    count = len(top)
    generator = np.random.default_rng(0)
    ratios: list[float] = []
    while len(ratios) < RESAMPLES:  # as many at a time as memory holds lightly
        drawn = generator.integers(0, count, (min(RESAMPLES, AT_ONCE // count + 1), count))
        ratios += (top[drawn].sum(1) / bottom[drawn].sum(1)).tolist()
    low, high = np.percentile(ratios[:RESAMPLES], _percentiles(count))
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, as of the differences of pairs."""
    return ratio_interval(values, [1.0] * len(values))


def _percentiles(count: int) -> tuple[float, float]:
    """Which percentiles of the resampled statistic bound the interval, for so many pairs."""
    from scipy import stats

    if count < 2:
        return 0.0, 100.0
    tail = 100 * stats.norm.cdf(-((count / (count - 1)) ** 0.5) * stats.t.ppf(0.975, count - 1))
    return float(tail), float(100 - tail)
