"""Intervals by resampling: of a drop in a metric, of a ratio of median latencies, of one median latency, of one score.

Every bound but that of one score is one-sided at `confidence`: with 0.95, `high` is the value that the truth exceeds one time in
twenty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import betaincinv, ndtr, stdtrit

from fmopt.core.errors import DataError, UnmeasuredError
from fmopt.core.results import Estimate, Latency, Scores
from fmopt.evaluation.metrics import METRICS

RESAMPLES = 10_000
CHUNK_NUMBERS = 4_000_000  # numbers of one chunk of resamples: 32 MB as float64
FEW_CHANGED = 30  # below this the worst that a changed item can do has not been seen yet
LOSS_ITEMS = 2_000  # leave-one-out is asked of at most so many items, those whose values changed most
DRAWS_PER_COUNT = 8  # drawing one item costs about an eighth of drawing how often a kind of item comes up
FEW_SAMPLES = 8  # below this latency samples give their range, not a bootstrap


def paired_drop(
    base: Scores, candidate: Scores, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """How much worse the candidate is than the baseline on the same items, in units of the metric (0.01 is one point).

    Items are resampled in pairs (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for models
    Koehn, EMNLP 2004) as counts per item, so that a resample is one row of weights. Items with the same values before
    and after are one kind of item with copies: the distribution is the same and 20,000 right-or-wrong items are four.

    A plain percentile bound is too sure of itself when few items changed: it knows no other losses than those it has
    seen (two of 500 seen lost give an upper bound of five, the exact one is 6.3). So one more item with the worst loss
    seen (a whole one while fewer than `FEW_CHANGED` items changed) is put into the pot: the number of its copies is
    Binomial(n, 1/n), and k + 1 events resampled give what the exact bound (Clopper and Pearson, Biometrika 1934) gives
    for k. `low` is the mirror image. When no item changed at all the bound is exact: 1 − α^(1/n), the rule of three
    (Hanley and Lippman-Hand, JAMA 1983), for the share of changed items, each taken as wholly lost.

    A candidate whose values are not all numbers, or leave the metric undefined, has lost it whole: a drop of 1, or
    without end where the metric has none (perplexity). DataError when the two are not the same metric on the same
    items, or when the baseline's own metric is undefined.
    """
    ours, theirs, copies = _kinds(*_same_items(base, candidate))
    n = int(copies.sum())
    all_of_it = 1.0 if METRICS[base.metric].bounded else np.inf
    lost = Estimate(point=all_of_it, low=all_of_it, high=all_of_it)
    if np.isfinite(ours).all() and not np.isfinite(theirs).all():
        return lost
    whole = _whole_loss(base.metric, ours, copies)
    if (ours == theirs).all():
        bound = whole * float(1 - (1 - confidence) ** (1 / n))
        return Estimate(point=0.0, low=-bound, high=bound)
    drop = _drop_of(base.metric, ours, theirs, all_of_it)
    point = float(drop(copies[None])[0])
    if point == np.inf:
        return lost
    if not np.isfinite(point):
        raise DataError(f"{base.name} of the baseline is undefined on these {n} items (are all labels the same?)")
    loss, gain = _extremes(drop, point, ours, theirs, copies, whole)
    rng = np.random.default_rng(seed)
    seen = np.concatenate([drop(counts) for counts in _item_counts(rng, copies, resamples)])
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
    Politis and Romano 1992), the same rounds for both, which were timed in turn. A percentile interval of m draws is
    too narrow by √((m − 1)/m) · z/t, and what is drawn here are blocks, of which there may be eight: its quantiles lie
    further out by that much (the expanded percentile interval of Hesterberg, The American Statistician 2015, with
    blocks for observations). Where one was stopped early, the rounds that both have are compared. UnmeasuredError
    without samples.
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
    return expanded_percentile(float(statistic(*series)), np.concatenate(drawn), confidence, n / block)


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


def of_items(scores: Scores, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> Estimate:
    """A metric's value with its two-sided interval for other items of the same kind.

    Exact for a share of items (Clopper and Pearson, 1934), which a bootstrap is too sure of near 0 and 1; else by the
    percentiles of items drawn anew (Efron and Tibshirani, 1993, chapter 13). DataError without items.
    """
    values, metric = scores.array(), METRICS[scores.metric]
    point, n = float(metric.of(values)), len(values)
    if scores.metric == "mean" and np.isin(values, (0, 1)).all():
        right, tail = int(values.sum()), (1 - confidence) / 2
        low = betaincinv(right, n - right + 1, tail) if right else 0.0
        high = betaincinv(right + 1, n - right, 1 - tail) if right < n else 1.0
        return Estimate(point=point, low=float(low), high=float(high))
    rng = np.random.default_rng(seed)
    seen = np.concatenate([metric.of(values, counts) for counts in _item_counts(rng, np.ones(n), resamples)])
    usable = seen[np.isfinite(seen)]
    if not len(usable) or not np.isfinite(point):
        return Estimate(point=point, low=point, high=point)
    low, high = np.quantile(usable, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(point=point, low=min(float(low), point), high=max(float(high), point))


def _same_items(base: Scores, candidate: Scores) -> tuple[np.ndarray, np.ndarray]:
    """The values of both; DataError when they cannot be paired."""
    if not base.values:
        raise DataError(f"{base.name} has no items to judge by")
    if base.metric == candidate.metric and len(base.values) == len(candidate.values):
        ours, theirs = base.paired(candidate)
        if ours.shape == theirs.shape:
            return ours, theirs
    raise DataError(
        f"{base.name} ({base.metric}, {len(base.values)} items) and {candidate.name} ({candidate.metric}, "
        f"{len(candidate.values)} items) cannot be compared in pairs: score both on the same items"
    )


def _kinds(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of rows (k, c), (k, c), and how many items have each (k,)."""
    rows = np.concatenate([ours, theirs], axis=1)
    rows = rows[np.lexsort(rows.T)]  # np.unique of rows compares them as bytes and takes several times as long
    first = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(axis=1)]))
    rows, copies = rows[first], np.diff(np.append(first, len(rows)))
    return rows[:, : ours.shape[1]], rows[:, ours.shape[1] :], copies.astype(np.float64)


def _drop_of(metric: str, ours: np.ndarray, theirs: np.ndarray, all_of_it: float) -> Callable[[np.ndarray], np.ndarray]:
    """Counts per kind of item (B, k) → drops (B,); `all_of_it` where the candidate's metric is undefined."""
    formula = METRICS[metric]
    sign = 1.0 if formula.higher_is_better else -1.0

    def drop(counts: np.ndarray) -> np.ndarray:
        before, after = formula.of(ours, counts), formula.of(theirs, counts)
        return np.where(np.isnan(after) & np.isfinite(before), all_of_it, sign * (before - after))

    return drop


def _whole_loss(metric: str, ours: np.ndarray, copies: np.ndarray) -> float:
    """What one item can take with it, n times: the whole of a share; where there is no whole, as much as there is."""
    formula = METRICS[metric]
    return 1.0 if formula.bounded else abs(float(formula.of(ours, copies[None])[0]))


def _extremes(
    drop: Callable[[np.ndarray], np.ndarray],
    point: float,
    ours: np.ndarray,
    theirs: np.ndarray,
    copies: np.ndarray,
    whole: float,
) -> tuple[float, float]:
    """The worst loss and the best gain of one item, by leaving it out (jackknife), in units of the metric."""
    n = copies.sum()
    if n < 2:
        return whole, whole
    changed = np.flatnonzero((ours != theirs).any(axis=1))
    moved = np.nan_to_num(np.abs(ours[changed] - theirs[changed]).sum(axis=1), nan=np.inf)
    most = changed[np.argsort(-moved, kind="stable")[:LOSS_ITEMS]]
    losses = []
    for start in range(0, len(most), _rows(len(ours))):
        part = most[start : start + _rows(len(ours))]
        without = np.tile(copies, (len(part), 1))
        without[np.arange(len(part)), part] -= 1
        losses.append(n * point - (n - 1) * drop(without))
    loss = np.nan_to_num(np.concatenate(losses), nan=whole)
    least = whole if copies[changed].sum() < FEW_CHANGED else 0.0
    return max(float(loss.max()), least), max(float(-loss.min()), least)


def _rows(n: int) -> int:
    return max(1, CHUNK_NUMBERS // n)


def _item_counts(rng: np.random.Generator, copies: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Chunks of multinomial counts, shape (B, k): how often an item of each kind was drawn in n draws."""
    n, kinds = int(copies.sum()), len(copies)
    kind_of = np.repeat(np.arange(kinds), copies.astype(np.int64))
    for start in range(0, resamples, _rows(n)):
        rows = min(_rows(n), resamples - start)
        if kinds * DRAWS_PER_COUNT <= n:
            yield rng.multinomial(n, copies / n, size=rows).astype(np.float64)
            continue
        drawn = kind_of[rng.integers(0, n, size=(rows, n))] + kinds * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * kinds).reshape(rows, kinds).astype(np.float64)


def _block_rounds(rng: np.random.Generator, n: int, block: int, resamples: int) -> Iterator[np.ndarray]:
    """Chunks of round numbers, shape (B, n): blocks that start anywhere and wrap around."""
    blocks = -(-n // block)
    for start in range(0, resamples, _rows(n)):
        rows = min(_rows(n), resamples - start)
        starts = rng.integers(0, n, size=(rows, blocks, 1))
        yield ((starts + np.arange(block)) % n).reshape(rows, -1)[:, :n]


def expanded_percentile(point: float, resampled: np.ndarray, confidence: float, blocks: float) -> Estimate:
    """The expanded percentile interval of a statistic of so many blocks; of one block nothing is known but its value."""
    if blocks <= 1:
        return Estimate(point=point, low=point, high=point)
    out = float(ndtr(np.sqrt(blocks / (blocks - 1)) * stdtrit(blocks - 1, confidence)))
    low, high = np.quantile(resampled, [1 - out, out])
    return Estimate(point=point, low=min(float(low), point), high=max(float(high), point))


def _samples(latency: Latency) -> np.ndarray:
    if not latency.samples_ms:
        raise UnmeasuredError("there are no latency samples to compare; time both in turn first")
    return np.asarray(latency.samples_ms)
