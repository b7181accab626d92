"""Formulas from per-item values to a metric, also for thousands of bootstrap resamples at once.

A resample is a row of counts: how often each item was drawn. Every formula works on counts, so that 10,000 resamples
are a few matrix products instead of 10,000 evaluations. Without counts every item counts once. The results equal those
of scikit-learn and scipy on the items written out as often as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fmopt.core.errors import DataError

Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]  # values (n, k), counts (B, n) -> (B,)

CHUNK_NUMBERS = 4_000_000  # counts handled at a time: 32 MB, and a few temporaries of that size


@dataclass(frozen=True)
class Metric:
    """A formula with its name and the columns it reads, none where their number varies (the formula says what they are).
    Where it is undefined (0 items, no spread) it gives NaN.

    `bounded`: it lies within [0, 1] (or −1 and 1), so that 1 is what there is to lose; perplexity has no such end.
    """

    name: str
    columns: tuple[str, ...]
    formula: Formula
    higher_is_better: bool = True
    bounded: bool = True

    def of(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """The metric of `values` (n, k): one number, or one for each row of counts in `weights` (B, n).

        DataError when there are no items or not the columns that the metric reads.
        """
        values = np.asarray(values, dtype=np.float64)
        values = values.reshape(len(values), -1 if len(values) else len(self.columns))
        if not len(values) or (self.columns and values.shape[1] != len(self.columns)):
            raise DataError(
                f"{self.name} reads {', '.join(self.columns) or 'values'} of every item, at least of one; "
                f"given were {len(values)} items × {values.shape[1]}"
            )
        if weights is None:
            return self.formula(values, np.ones((1, len(values))))[0]
        counts = np.asarray(weights, dtype=np.float64)
        rows = max(1, CHUNK_NUMBERS // len(values))
        parts = [self.formula(values, counts[start : start + rows]) for start in range(0, len(counts), rows)]
        return np.concatenate(parts) if parts else np.empty(0)


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _ratio(counts @ values[:, 0], counts.sum(axis=1))


def _micro_f1(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    hits, false, missed = (counts @ values).T
    return np.nan_to_num(_ratio(2 * hits, 2 * hits + false + missed))  # nothing there, nothing found: 0, as seqeval


def _jaccard(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    hits, false, missed = (counts @ values).T
    return np.nan_to_num(_ratio(hits, hits + false + missed))


def _macro_f1(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    classes = np.unique(values)
    true, predicted = (values[:, [column]] == classes for column in (0, 1))  # (n, C)
    hits, wanted, got = (counts @ part.astype(np.float64) for part in (true & predicted, true, predicted))
    f1 = np.nan_to_num(_ratio(2 * hits, wanted + got))
    present = (wanted + got > 0).sum(axis=1)  # a class that a resample lost does not count
    return _ratio(f1.sum(axis=1), present)


def _perplexity(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    nats, tokens = (counts @ values).T
    with np.errstate(over="ignore"):
        return np.exp(_ratio(nats, tokens))  # of all tokens together, so that long texts weigh more


def _error_rate(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    edits, parts = (counts @ values).T
    return _ratio(edits, parts)  # of all words together, as WER is defined


def _bleu(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Corpus BLEU (Papineni et al., 2002) in [0, 1], smoothed as sacrebleu does: the k-th order without any match counts as
    1 / 2^k of a match."""
    sums = counts @ values
    system, reference, hits, total = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    halved = 0.5 ** np.cumsum(hits == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(hits > 0, hits, halved) / total).mean(axis=1)
        brevity = np.minimum(0.0, 1 - reference / system)
        score = np.exp(brevity + logs)
    return np.where((total > 0).all(axis=1) & hits.any(axis=1), score, 0.0)


def _chrf(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Corpus chrF2 (Popović, 2015) in [0, 1]: F2 of the mean precision and recall of character 1- to 6-grams."""
    ours, theirs, hits = np.moveaxis((counts @ values).reshape(len(counts), -1, 3), 2, 0)
    used = (ours > 0) & (theirs > 0)
    orders = np.maximum(used.sum(axis=1), 1)
    precision = np.where(used, hits / np.maximum(ours, 1), 0).sum(axis=1) / orders
    recall = np.where(used, hits / np.maximum(theirs, 1), 0).sum(axis=1) / orders
    return np.nan_to_num(_ratio(5 * precision * recall, 4 * precision + recall))


def _mean_ap(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over classes of the area under precision against recall (Pascal VOC since 2010: every point, the precision
    made monotone), (B,). A class without true boxes in a resample is left out of its mean.

    A row of values holds the number of classes, the true boxes of each, then (class, score, hit) of every box found, filled
    up with 0. Which boxes hit is a matter of their own image, so that one sort of all scores serves every resample: a
    image drawn twice adds its boxes twice at the same place.
    """
    classes = int(values[0, 0])
    wanted = counts @ values[:, 1 : 1 + classes]  # (B, C)
    found = values[:, 1 + classes :]
    found = found[:, : found.shape[1] // 3 * 3].reshape(len(values), -1, 3)
    image, place = np.nonzero(found[..., 1] > 0)
    boxes = found[image, place]
    areas = np.full(wanted.shape, np.nan)
    for number in range(classes):
        own = np.flatnonzero(boxes[:, 0] == number)
        own = own[np.argsort(-boxes[own, 1], kind="stable")]
        hit = boxes[own, 2]
        rows = max(1, CHUNK_NUMBERS // max(1, len(own)))
        for start in range(0, len(counts), rows):
            part = slice(start, start + rows)
            drawn = counts[part][:, image[own]]  # (rows, boxes of this class)
            right, all_of_them = np.cumsum(drawn * hit, axis=1), np.cumsum(drawn, axis=1)
            precision = np.divide(right, all_of_them, out=np.zeros_like(right), where=all_of_them > 0)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            areas[part, number] = _ratio((drawn * hit * precision).sum(axis=1), wanted[part, number])
    there = ~np.isnan(areas)
    return _ratio(np.nansum(areas, axis=1), there.sum(axis=1))


def _spearman(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _pearson(_ranks(values[:, 0], counts), _ranks(values[:, 1], counts), counts)


def _ranks(column: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average ranks (B, n) under counts: equal values share the mean of the places that they fill together.

    One sort serves all resamples: drawing items again does not change their order, only how many places each fills.
    """
    order = np.argsort(column, kind="stable")
    first = np.concatenate([[True], np.diff(column[order]) != 0])  # the first of every group of equal values
    filled = np.add.reduceat(counts[:, order], np.flatnonzero(first), axis=1)  # (B, groups)
    middle = np.cumsum(filled, axis=1) - (filled - 1) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = middle[:, np.cumsum(first) - 1]
    return ranks


def _pearson(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True)
    first = first - (counts * first).sum(axis=1, keepdims=True) / total
    second = second - (counts * second).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1))
    return _ratio((counts * first * second).sum(axis=1), spread)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, np.nan)


ORDERS = range(1, 5)
BLEU_COUNTS = ("tokens", "reference tokens", *(f"{n}-gram hits" for n in ORDERS), *(f"{n}-grams" for n in ORDERS))
CHRF_COUNTS = tuple(f"{n}-grams {whose}" for n in range(1, 7) for whose in ("ours", "theirs", "common"))

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("mean", ("value",), _mean),
        Metric("lower_mean", ("value",), _mean, higher_is_better=False),
        Metric("micro_f1", ("tp", "fp", "fn"), _micro_f1),
        Metric("jaccard", ("tp", "fp", "fn"), _jaccard),
        Metric("macro_f1", ("true", "predicted"), _macro_f1),
        Metric("mean_ap", (), _mean_ap),
        Metric("spearman", ("predicted", "true"), _spearman),
        # Above 1 only where more is put in than was said: a recogniser that says nothing has lost all there is to lose.
        Metric("error_rate", ("edits", "parts"), _error_rate, higher_is_better=False),
        Metric("bleu", BLEU_COUNTS, _bleu),
        Metric("chrf", CHRF_COUNTS, _chrf),
        Metric("perplexity", ("nats", "tokens"), _perplexity, higher_is_better=False, bounded=False),
    )
}
