"""How wide every sublayer stays, for the least predicted loss within a time: dynamic programming over discretised time,
and a search for the weights of the sublayers' losses (SPDY, Frantar and Alistarh, 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BUCKETS = 10_000  # steps that the time is cut into; rounding up costs at most sublayers / BUCKETS of it
SPREAD = 0.5  # of the logarithm of a weight in one step of the search


def least_loss(losses: Sequence[np.ndarray], times: Sequence[np.ndarray], budget: float) -> tuple[int, ...] | None:
    """For every sublayer the index of its level, such that the times add up to at most `budget` and the losses to the
    least possible; None when even the fastest levels take longer.

    `losses` and `times` hold one row of levels per sublayer; times in the unit of `budget`, none negative.
    """
    fastest = [float(row.min()) for row in times]
    if budget < sum(fastest):
        return None
    # Only what a level takes beyond the fastest is discretised, so that a budget at the floor is met exactly.
    step = max(budget - sum(fastest), 1e-9 * (budget or 1.0)) / BUCKETS
    best = np.zeros(BUCKETS + 1)  # [b]: least loss of the sublayers so far within b steps
    choices = []
    for row, taken, least in zip(losses, times, fastest, strict=True):
        steps = np.minimum(np.ceil((taken - least) / step), BUCKETS + 1).astype(int)
        table = np.full((len(row), BUCKETS + 1), np.inf)
        for level, (loss, need) in enumerate(zip(row, steps, strict=True)):
            if need <= BUCKETS:
                table[level, need:] = best[: BUCKETS + 1 - need] + loss
        choices.append((table.argmin(0), steps))
        best = table.min(0)
    left = BUCKETS
    chosen = []
    for level_at, steps in reversed(choices):
        level = int(level_at[left])
        chosen.append(level)
        left -= int(steps[level])
    return tuple(reversed(chosen))


def search(
    losses: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    budget: float,
    measure: Callable[[tuple[int, ...]], float],
    *,
    tries: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> tuple[tuple[int, ...], np.ndarray] | None:
    """`least_loss` with the weight of every sublayer's loss searched for by `tries` looks at the measured loss; and the weights.

    A random step in the logarithms of the best weights so far is kept when `measure` of what it leads to is smaller. It begins
    at `weights`, those of a search with a similar budget, or else with all alike.
    """
    weights = np.ones(len(losses)) if weights is None else weights
    best = least_loss([row * weight for row, weight in zip(losses, weights, strict=True)], times, budget)
    if best is None or tries == 0:
        return None if best is None else (best, weights)
    draw = np.random.default_rng(seed)
    known = {best: measure(best)}
    for _ in range(tries):
        tried = weights * np.exp(draw.normal(0, SPREAD, len(losses)))
        chosen = least_loss([row * weight for row, weight in zip(losses, tried, strict=True)], times, budget)
        assert chosen is not None
        if chosen not in known:
            known[chosen] = measure(chosen)
        if known[chosen] < known[best]:
            best, weights = chosen, tried
    return best, weights
