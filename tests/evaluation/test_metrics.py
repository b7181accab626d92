"""Every formula equals scikit-learn's or scipy's, also on resamples written out item by item."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from fmopt.core.errors import DataError
from fmopt.evaluation import metrics
from fmopt.evaluation.metrics import METRICS

SMALL = settings(max_examples=60, deadline=None)


def resamples(seed: int, n: int, count: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=count)


def written_out(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.repeat(values, counts, axis=0)


@SMALL
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 99))
def test_mean(column, seed):
    values, counts = np.array(column)[:, None], resamples(seed, len(column))
    assert METRICS["mean"].of(values) == pytest.approx(np.mean(column))
    wanted = [written_out(values, row).mean() for row in counts]
    np.testing.assert_allclose(METRICS["mean"].of(values, counts), wanted, atol=1e-12)


@SMALL
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.integers(0, 99))
def test_macro_f1_is_scikit_learns(pairs, seed):
    values, counts = np.array(pairs), resamples(seed, len(pairs))

    def wanted(rows):
        return f1_score(rows[:, 0], rows[:, 1], average="macro", zero_division=0.0)

    assert METRICS["macro_f1"].of(values) == pytest.approx(wanted(values), abs=1e-12)
    got = METRICS["macro_f1"].of(values, counts)
    np.testing.assert_allclose(got, [wanted(written_out(values, row)) for row in counts], atol=1e-12)


@SMALL
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20), st.integers(0, 99))
def test_micro_f1_counts_spans_over_all_items(rows, seed):
    values, counts = np.array(rows), resamples(seed, len(rows))
    for row, got in zip(counts, METRICS["micro_f1"].of(values, counts), strict=True):
        hits, false, missed = written_out(values, row).sum(axis=0)
        true = [1] * hits + [0] * false + [1] * missed + [0]
        predicted = [1] * hits + [1] * false + [0] * missed + [0]
        assert got == pytest.approx(f1_score(true, predicted, zero_division=0.0), abs=1e-12)


@SMALL
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([2, 5, 1000]))
def test_spearman_is_scipys_also_with_ties(seed, n, distinct):
    rng = np.random.default_rng(seed)
    values, counts = rng.integers(0, distinct, size=(n, 2)) / 10, resamples(seed, n)
    got = METRICS["spearman"].of(values, counts)
    for row, number in zip([np.ones(n, dtype=int), *counts], [METRICS["spearman"].of(values), *got], strict=True):
        first, second = written_out(values, row).T
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            assert np.isnan(number)  # without spread there is no correlation
        else:
            assert number == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_many_resamples_come_in_chunks_with_the_same_result(name, monkeypatch):
    rng = np.random.default_rng(0)
    metric = METRICS[name]
    values, counts = rng.integers(0, 3, size=(50, len(metric.columns) or 8)), resamples(1, 50, 200)
    if not metric.columns:
        values[:, 0] = 1  # class: then its true boxes, and two found ones
    whole = metric.of(values, counts)
    monkeypatch.setattr(metrics, "CHUNK_NUMBERS", 333)
    np.testing.assert_array_equal(metric.of(values, counts), whole)
    assert whole.shape == (200,)


@SMALL
@given(st.lists(st.tuples(st.floats(0, 400), st.integers(1, 90)), min_size=1, max_size=30), st.integers(0, 99))
def test_perplexity_is_that_of_all_tokens_together(rows, seed):
    values, counts = np.array(rows), resamples(seed, len(rows))
    for row, got in zip(counts, METRICS["perplexity"].of(values, counts), strict=True):
        # torch's definition: exp of the mean cross-entropy over tokens, whatever text they stand in
        each = [nats / tokens for nats, tokens in written_out(values, row) for _ in range(int(tokens))]
        assert got == pytest.approx(np.exp(np.mean(each)), rel=1e-9)


def test_distances_perplexity_and_error_rates_are_better_when_lower():
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"lower_mean", "perplexity", "error_rate"}
    assert {name for name, metric in METRICS.items() if not metric.bounded} == {"perplexity"}


@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.zeros((4, 3)), np.zeros(0)])
def test_what_cannot_be_judged_is_said(values):
    with pytest.raises(DataError, match="spearman reads predicted, true of every item"):
        METRICS["spearman"].of(values)
