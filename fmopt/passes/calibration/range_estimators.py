"""From a tensor's histogram to the range its integers span: five ways to choose what to clip.

All return (low, high) with low ≤ 0 ≤ high, so that zero is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Calibrator = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]

BINS = 2048
PERCENTILE = 99.999  # 99.99 cuts the outlier channels of post-LN encoders, one value in 10,000, and all is lost
_MAGNITUDES = BINS // 2


@dataclass(frozen=True)
class Histogram:
    """Counts of values in 2048 equal bins over [-limit, limit]."""

    counts: np.ndarray  # float64 [2048]
    limit: float

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64 [2048]."""
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit

    @staticmethod
    def of(values: np.ndarray) -> Histogram:
        """The histogram of an array in memory."""
        limit = max(float(np.abs(values).max(initial=0.0)), 1e-6)
        return Histogram(np.histogram(values, BINS, (-limit, limit))[0].astype(np.float64), limit)


@dataclass(frozen=True)
class Spread:
    """Everything a calibrator may look at."""

    low: float  # smallest and largest value seen
    high: float
    mean_low: float  # their moving averages over items
    mean_high: float
    make_histogram: Callable[[], Histogram]  # only some calibrators want it

    @cached_property
    def histogram(self) -> Histogram:
        """Of all values."""
        return self.make_histogram()


def find_range(spread: Spread, calibrator: Calibrator, *, symmetric: bool, levels: int = 256) -> tuple[float, float]:
    """The range that `levels` integers shall span; symmetric ranges are (-t, t)."""
    low, high = _CALIBRATORS[calibrator](spread, symmetric, levels)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    return (low, high) if high - low > 1e-12 else (-1e-6 * symmetric, 1e-6)


def _minmax(spread: Spread, symmetric: bool, levels: int) -> tuple[float, float]:
    return spread.low, spread.high


def _moving_average(spread: Spread, symmetric: bool, levels: int) -> tuple[float, float]:
    return spread.mean_low, spread.mean_high


def _percentile(spread: Spread, symmetric: bool, levels: int) -> tuple[float, float]:
    """All but 0.001 % of the values on either side."""
    share = np.cumsum(spread.histogram.counts) / max(spread.histogram.counts.sum(), 1.0)
    centres = spread.histogram.centres
    tail = 1 - PERCENTILE / 100
    low = float(centres[int(np.searchsorted(share, tail))])
    high = float(centres[min(int(np.searchsorted(share, 1 - tail)), BINS - 1)])
    return max(low, spread.low), min(high, spread.high)


def _entropy(spread: Spread, symmetric: bool, levels: int) -> tuple[float, float]:
    """The clip that loses least information: KL divergence over magnitudes, as in TensorRT (Migacz, GTC 2017)."""
    counts = spread.histogram.counts
    magnitudes = counts[_MAGNITUDES:] + counts[:_MAGNITUDES][::-1]
    kept = levels // 2
    best, limit = float("inf"), spread.histogram.limit
    for size in range(kept, _MAGNITUDES + 1, 4):
        loss = _divergence(magnitudes, size, kept)
        if loss < best:
            best, limit = loss, spread.histogram.limit * size / _MAGNITUDES
    return max(-limit, spread.low), min(limit, spread.high)


def _divergence(magnitudes: np.ndarray, size: int, kept: int) -> float:
    """KL(P ‖ Q) with P the first `size` bins, the tail added to the last, and Q the same in `kept` levels."""
    inside = magnitudes[:size]
    wanted = inside.copy()
    wanted[-1] += magnitudes[size:].sum()
    level = (np.arange(size) * kept) // size
    used = inside > 0
    sums = np.bincount(level, inside, kept)
    shares = np.bincount(level[used], minlength=kept)
    got = np.where(used, sums[level] / np.maximum(shares[level], 1), 0.0)
    p, q = wanted / max(wanted.sum(), 1.0), got / max(got.sum(), 1.0)
    # A value clipped into a bin that was empty counts as lost, not as infinitely surprising.
    q = np.maximum(q, 1e-9)
    given = p > 0
    return float(np.sum(p[given] * np.log(p[given] / q[given])))


def _mse(spread: Spread, symmetric: bool, levels: int) -> tuple[float, float]:
    """The range with the least squared error, clipping and rounding together; each end is narrowed in turn."""
    used = spread.histogram.counts > 0
    weights, values = spread.histogram.counts[used], spread.histogram.centres[used]
    shares = np.linspace(1.0, 0.1, 46)

    def error(low: float, high: float) -> float:
        step = max(high - low, 1e-12) / (levels - 1)
        zero = round(-low / step)
        integers = np.clip(np.round(values / step) + zero, 0, levels - 1)
        return float(np.dot(weights, (values - (integers - zero) * step) ** 2))

    low, high = min(spread.low, 0.0), max(spread.high, 0.0)
    if symmetric:
        reach = max(-low, high)
        best = min(shares, key=lambda s: error(-s * reach, s * reach))
        return -best * reach, best * reach
    at_low = at_high = 1.0
    for _ in range(3):
        at_high = min(shares, key=lambda s: error(at_low * low, s * high))
        at_low = min(shares, key=lambda s: error(s * low, at_high * high))
    return at_low * low, at_high * high


_CALIBRATORS: dict[Calibrator, Callable[[Spread, bool, int], tuple[float, float]]] = {
    "minmax": _minmax,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
