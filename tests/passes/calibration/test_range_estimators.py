"""What each calibrator clips."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmopt.passes.calibration.range_estimators import Calibrator, Histogram, Spread, find_range

NAMES = get_args(Calibrator)


def spread_of(values: np.ndarray, **means: float) -> Spread:
    low, high = float(values.min()), float(values.max())
    return Spread(low, high, means.get("mean_low", low), means.get("mean_high", high), lambda: Histogram.of(values))


def error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    return float(np.mean((values - (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step) ** 2))


def test_minmax_and_moving_average_give_what_was_seen():
    spread = spread_of(np.array([-1.0, 3.0]), mean_low=-0.5, mean_high=2.0)
    assert find_range(spread, "minmax", symmetric=False) == (-1.0, 3.0)
    assert find_range(spread, "minmax", symmetric=True) == (-3.0, 3.0)
    assert find_range(spread, "moving_average", symmetric=False) == (-0.5, 2.0)


def test_percentile_drops_one_value_in_a_million():
    values = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 1_000_000), [4.0]])
    low, high = find_range(spread_of(values), "percentile", symmetric=False)
    assert high < 1.01
    assert -1.01 < low < -0.99


def test_mse_clips_an_outlier_when_that_lowers_the_error():
    values = np.concatenate([np.random.default_rng(0).normal(size=200_000), [20.0]])
    low, high = find_range(spread_of(values), "mse", symmetric=False)
    assert high < 17
    assert error(values, low, high) < 0.9 * error(values, values.min(), values.max())


def test_entropy_keeps_the_bulk_and_cuts_the_tail():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=200_000), rng.uniform(-30, 30, 20)])
    low, high = find_range(spread_of(values), "entropy", symmetric=True)
    assert 3 < high < 15
    assert low == -high


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
    shift=st.floats(-5, 5),
    size=st.floats(1e-4, 1e3),
)
def test_a_range_holds_zero_and_never_exceeds_what_was_seen(
    name: Calibrator, symmetric: bool, seed: int, shift: float, size: float
):
    values = (np.random.default_rng(seed).normal(size=500) + shift) * size
    low, high = find_range(spread_of(values), name, symmetric=symmetric)
    assert low <= 0 <= high
    assert high > low
    reach = np.abs(values).max() * (1 + 1e-9)
    assert high <= reach
    assert low >= -reach


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tensor_of_zeros_has_a_usable_range(name: Calibrator, symmetric: bool):
    low, high = find_range(spread_of(np.zeros(10)), name, symmetric=symmetric)
    assert high > 0
    assert low <= 0
