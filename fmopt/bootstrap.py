"""Intervals by resampling: of a drop in a metric, of a ratio of median latencies, of one median latency.

Every bound here is one-sided at `confidence`: with 0.95, `high` is the value that the truth exceeds one time in twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fmopt.errors import DataError, UnmeasuredError
from fmopt.metrics import METRICS
from fmopt.results import Estimate, Latency, Scores

RESAMPLES = 10_000
CHUNK_NUMBERS = 4_000_000  # numbers of one chunk of resamples: 32 MB as float64
FEW_CHANGED = 30  # below this the worst that a changed item can do has not been seen yet
LOSS_ITEMS = 2_000  # leave-one-out is asked of at most so many items, those whose values changed most
FEW_SAMPLES = 8  # below this latency samples give their range, not a bootstrap


def paired_drop(
    base: Scores, candidate: Scores, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """How much worse the candidate is than the baseline on the same items, in units of the metric (0.01 is one point).

    Items are resampled in pairs (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for models
    Koehn, EMNLP 2004) as counts per item, so that a resample is one row of weights.

    A plain percentile bound is too sure of itself when few items changed: it knows no other losses than those it has
    seen (two of 500 seen lost give an upper bound of five, the exact one is 6.3). So one more item with the worst loss
    seen (a whole one while fewer than `FEW_CHANGED` items changed) is put into the pot: the number of its copies is
    Binomial(n, 1/n), and k + 1 events resampled give what the exact bound (Clopper and Pearson, Biometrika 1934) gives
    for k. `low` is the mirror image. When no item changed at all the bound is exact: 1 − α^(1/n), the rule of three
    (Hanley and Lippman-Hand, JAMA 1983), for the share of changed items, each taken as wholly lost.

    A candidate whose values are not all numbers, or leave the metric undefined, has lost it whole (a drop of 1).
    DataError when the two are not the same metric on the same items, or when the baseline's own metric is undefined.
    """
    ours, theirs = _same_items(base, candidate)
    n = len(ours)
    if np.isfinite(ours).all() and not np.isfinite(theirs).all():
        return Estimate(point=1.0, low=1.0, high=1.0)
    changed = np.flatnonzero((ours != theirs).any(axis=1))
    if not changed.size:
        bound = float(1 - (1 - confidence) ** (1 / n))
        return Estimate(point=0.0, low=-bound, high=bound)
    drop = _drop_of(base.metric, ours, theirs)
    point = float(drop(None))
    if not np.isfinite(point):
        raise DataError(f"{base.name} of the baseline is undefined on these {n} items (are all labels the same?)")
    loss, gain = _extremes(drop, point, ours, theirs, changed)
    rng = np.random.default_rng(seed)
    seen = np.concatenate([drop(counts) for counts in _item_counts(rng, n, resamples)])
    unseen = rng.binomial(n, 1 / n, size=resamples) / n
    usable = np.isfinite(seen)
    high = np.quantile((seen + loss * unseen)[usable], confidence, method="higher")
    low = np.quantile((seen - gain * unseen)[usable], 1 - confidence, method="lower")
    return Estimate(point=point, low=min(float(low), point), high=max(float(high), point))


def speedup(
    reference: Latency, candidate: Latency, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """How many times faster the candidate is: the ratio of medians, with bounds by a circular block bootstrap.

    Successive samples correlate (clock, neighbours), so whole blocks of rounds are drawn (Künsch 1989; circular:
    Politis and Romano 1992), the same rounds for both, which were timed in turn. Where one was stopped early, the
    rounds that both have are compared. UnmeasuredError without samples.
    """
    shared = min(len(reference.samples_ms), len(candidate.samples_ms))
    slow, fast = _samples(reference)[:shared], _samples(candidate)[:shared]
    if shared < FEW_SAMPLES:
        point = float(np.median(slow) / np.median(fast))
        return Estimate(point=point, low=float(slow.min() / fast.max()), high=float(slow.max() / fast.min()))
    return of_rounds(
        lambda slow, fast: np.median(slow, axis=-1) / np.median(fast, axis=-1),
        [slow, fast],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def median_latency(latency: Latency, confidence: float = 0.95, seed: int = 0, resamples: int = 2_000) -> Estimate:
    """The median in milliseconds with bounds by the same block bootstrap. UnmeasuredError without samples."""
    samples = _samples(latency)
    if len(samples) < FEW_SAMPLES:
        return Estimate(point=float(np.median(samples)), low=float(samples.min()), high=float(samples.max()))
    return of_rounds(
        lambda taken: np.median(taken, axis=-1), [samples], confidence=confidence, resamples=resamples, seed=seed
    )


def of_rounds(
    statistic: Callable[..., np.ndarray],
    series: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Estimate:
    """A statistic of series whose i-th numbers were taken in the same round, with bounds by the circular block bootstrap.

    `series` are arrays of the same length n; `statistic` takes as many arrays (…, n) and gives (…). UnmeasuredError
    without numbers.
    """
    n = len(series[0])
    if not n:
        raise UnmeasuredError("there are no samples; time first")
    block = max(map(block_length, series))
    rng = np.random.default_rng(seed)
    drawn = [statistic(*(one[rounds] for one in series)) for rounds in _block_rounds(rng, n, block, resamples)]
    return _interval(float(statistic(*series)), np.concatenate(drawn), confidence)


def block_length(samples: np.ndarray) -> int:
    """Rounds to draw together: twice the lag at which "above the median" is no longer correlated, at least n^(1/3)."""
    n = len(samples)
    above = (samples > np.median(samples)) - 0.5
    above = above - above.mean()
    power = float(above @ above)
    longest = max(1, n // 8)
    lag = 1
    while power and lag < longest and abs(float(above[lag:] @ above[:-lag])) / power > 1.96 / np.sqrt(n):
        lag += 1
    return int(np.clip(max(2 * (lag - 1), round(n ** (1 / 3))), 1, longest))


def _same_items(base: Scores, candidate: Scores) -> tuple[np.ndarray, np.ndarray]:
    """The values of both; DataError when they cannot be paired."""
    if not base.values:
        raise DataError(f"{base.name} has no items to judge by")
    if base.metric == candidate.metric and len(base.values) == len(candidate.values):
        ours, theirs = base.array(), candidate.array()
        if ours.shape == theirs.shape:
            return ours, theirs
    raise DataError(
        f"{base.name} ({base.metric}, {len(base.values)} items) and {candidate.name} ({candidate.metric}, "
        f"{len(candidate.values)} items) cannot be compared in pairs: score both on the same items"
    )


def _drop_of(metric: str, ours: np.ndarray, theirs: np.ndarray) -> Callable[[np.ndarray | None], np.ndarray]:
    """Counts per item (B, n), or None, → drops (B,), or one number."""
    formula = METRICS[metric]
    sign = 1.0 if formula.higher_is_better else -1.0

    def drop(counts: np.ndarray | None) -> np.ndarray:
        before, after = np.asarray(formula.of(ours, counts)), np.asarray(formula.of(theirs, counts))
        return np.where(np.isnan(after) & np.isfinite(before), 1.0, sign * (before - after))

    return drop


def _extremes(
    drop: Callable[[np.ndarray | None], np.ndarray],
    point: float,
    ours: np.ndarray,
    theirs: np.ndarray,
    changed: np.ndarray,
) -> tuple[float, float]:
    """The worst loss and the best gain of one item, by leaving it out (jackknife), in units of the metric."""
    n = len(ours)
    if n < 2:
        return 1.0, 1.0
    moved = np.nan_to_num(np.abs(ours[changed] - theirs[changed]).sum(axis=1), nan=np.inf)
    most = changed[np.argsort(-moved, kind="stable")[:LOSS_ITEMS]]
    losses = []
    for start in range(0, len(most), _rows(n)):
        part = most[start : start + _rows(n)]
        without = np.ones((len(part), n))
        without[np.arange(len(part)), part] = 0
        losses.append(n * point - (n - 1) * drop(without))
    loss = np.nan_to_num(np.concatenate(losses), nan=1.0)
    whole = 1.0 if changed.size < FEW_CHANGED else 0.0
    return max(float(loss.max()), whole), max(float(-loss.min()), whole)


def _rows(n: int) -> int:
    return max(1, CHUNK_NUMBERS // n)


def _item_counts(rng: np.random.Generator, n: int, resamples: int) -> Iterator[np.ndarray]:
    """Chunks of multinomial counts, shape (B, n): how often each item was drawn."""
    for start in range(0, resamples, _rows(n)):
        rows = min(_rows(n), resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _block_rounds(rng: np.random.Generator, n: int, block: int, resamples: int) -> Iterator[np.ndarray]:
    """Chunks of round numbers, shape (B, n): blocks that start anywhere and wrap around."""
    blocks = -(-n // block)
    for start in range(0, resamples, _rows(n)):
        rows = min(_rows(n), resamples - start)
        starts = rng.integers(0, n, size=(rows, blocks, 1))
        yield ((starts + np.arange(block)) % n).reshape(rows, -1)[:, :n]


def _interval(point: float, resampled: np.ndarray, confidence: float) -> Estimate:
    low, high = np.quantile(resampled, [1 - confidence, confidence])
    return Estimate(point=point, low=min(float(low), point), high=max(float(high), point))


def _samples(latency: Latency) -> np.ndarray:
    if not latency.samples_ms:
        raise UnmeasuredError("there are no latency samples to compare; time both in turn first")
    return np.asarray(latency.samples_ms)
