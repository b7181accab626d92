"""The choice is the best there is within the time, and the search follows what is measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fmopt.passes.pruning.width_search import least_loss, search


def problem(seed, sublayers=4, levels=5):
    """Losses that fall and times that rise with width."""
    draw = np.random.default_rng(seed)
    losses = [np.sort(draw.exponential(1, levels))[::-1] for _ in range(sublayers)]
    times = [np.sort(draw.integers(0, 40, levels)).astype(float) for _ in range(sublayers)]
    return losses, times


def total(rows, chosen):
    return sum(float(row[level]) for row, level in zip(rows, chosen, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_optimal_on_what_can_be_tried_out(seed):
    losses, times = problem(seed)
    every = list(itertools.product(range(5), repeat=4))
    floor = min(total(times, levels) for levels in every)
    for budget in (floor, floor + 11.5, floor + 40.5, 200.5):  # times are whole, and discretised upwards
        wanted = min(total(losses, levels) for levels in every if total(times, levels) <= budget)
        chosen = least_loss(losses, times, budget)
        assert total(times, chosen) <= budget + 1e-6
        assert total(losses, chosen) == pytest.approx(wanted)


def test_below_the_floor_there_is_nothing():
    losses, times = problem(0)
    floor = sum(row.min() for row in times)
    assert least_loss(losses, times, floor - 0.01) is None
    assert search(losses, times, floor - 0.01, lambda levels: 0.0, tries=3, seed=0) is None
    assert least_loss(losses, times, floor) is not None


def test_the_search_finds_which_sublayer_matters():
    """Predicted losses are the same for all; measured, the first sublayer counts a hundred times."""
    losses = [np.array([1.0, 0.3, 0.1, 0.0])] * 4
    times = [np.array([0.0, 1.0, 2.0, 3.0])] * 4
    measured = lambda levels: sum((100 if i == 0 else 1) * losses[i][level] for i, level in enumerate(levels))  # noqa: E731
    plain = least_loss(losses, times, 6.01)
    found, weights = search(losses, times, 6.01, measured, tries=200, seed=0)
    every = [levels for levels in itertools.product(range(4), repeat=4) if total(times, levels) <= 6]
    assert measured(found) == min(measured(levels) for levels in every)
    assert measured(found) < measured(plain) / 5
    assert found == search(losses, times, 6.01, measured, tries=200, seed=0)[0]
    # A search with those weights knows it from the start.
    assert found == search(losses, times, 6.01, measured, tries=0, seed=0, weights=weights)[0]
    assert weights.argmax() == 0
