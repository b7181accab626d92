"""Formulas from per-item values to a metric, also for thousands of bootstrap resamples at once.

A resample is a row of counts: how often each item was drawn. Every formula works on counts, so that 10,000 resamples
are matrix products instead of 10,000 evaluations. Without counts every item counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]   # values (n, k), counts (B, n) -> (B,)


@dataclass(frozen=True)
class Metric:
    """A formula with its name and the columns it reads."""

    name: str
    columns: tuple[str, ...]
    formula: Formula
    higher_is_better: bool = True

    def of(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """The metric of `values` (n, k): one number, or one for each row of counts in `weights` (B, n)."""
        values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        if weights is None:
            return self.formula(values, np.ones((1, len(values))))[0]
        return self.formula(values, np.asarray(weights, dtype=np.float64))


def _mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _ratio(counts @ values[:, 0], counts.sum(axis=1))



def _micro_f1(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    hits, false, missed = (counts @ values).T
    return np.nan_to_num(_ratio(2 * hits, 2 * hits + false + missed))


def _macro_f1(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    classes = np.unique(values)
    true, predicted = (values[:, [column]] == classes for column in (0, 1))      # (n, C)
    hits, wanted, got = (counts @ part.astype(np.float64) for part in (true & predicted, true, predicted))
    present = wanted + got > 0                                                   # classes that a resample lost do not count
    f1 = np.where(present, _ratio(2 * hits, wanted + got), 0.0)
    return _ratio(np.nan_to_num(f1).sum(axis=1), present.sum(axis=1))


def _spearman(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return _pearson(_ranks(values[:, 0], counts), _ranks(values[:, 1], counts), counts)


def _ranks(column: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average ranks (B, n) under counts: ties share the mean of the places that they fill together."""
    order = np.argsort(column, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(column[order]) != 0)])        # equal values, equal group
    filled = np.zeros((len(counts), group[-1] + 1))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(group) != 0]))
    filled[:] = np.add.reduceat(counts[:, order], starts, axis=1)
    last = np.cumsum(filled, axis=1)
    ranks = np.empty_like(counts)
    ranks[:, order] = (last - (filled - 1) / 2)[:, group]
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


METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (
    Metric("mean", ("value",), _mean),
    Metric("lower_mean", ("value",), _mean, higher_is_better=False),
    Metric("micro_f1", ("tp", "fp", "fn"), _micro_f1),
    Metric("macro_f1", ("true", "predicted"), _macro_f1),
    Metric("spearman", ("predicted", "true"), _spearman),
)}
