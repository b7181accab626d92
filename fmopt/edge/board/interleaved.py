"""The clock: variants called in turn, on this machine or, copied to its folder there, on a board.

Knows calls and their milliseconds, and imports nothing but numpy, so that a board runs this very file.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

MIN_SAMPLES = 200
MIN_SECONDS = 10.0  # a variant so slow that it runs this long before MIN_SAMPLES has enough…
FEWEST = 20  # …from this many samples on
STOP_CHECK = (
    10  # rounds between two looks at which variants are dominated; order statistics of so many bound a median at 99 %
)
WARM_WINDOW = 5  # rounds whose medians are compared
WARM_AGREE = 0.03  # two windows agree within this share: warm
WARM_SECONDS = 5.0  # at most, for each variant
SETTLING_MS = 100.0  # what takes longer does not notice what ran before it


def time_in_turn(
    variants: Mapping[str, Callable[[], object]],
    *,
    min_samples: int = MIN_SAMPLES,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float | None = None,
    warm_seconds: float | None = None,
    dominated: Callable[[Mapping[str, list[float]]], set[str]] | None = None,
    on_drop: Callable[[str], object] = lambda name: None,
    progress: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[Callable[[], Any]], float] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every call, variant by variant; sample i of each was taken in round i, in randomised order.

    All variants warm up together, round by round, until the median of each is stable or each ran for `warm_seconds`
    (None: WARM_SECONDS; 0 for what was warmed up before). Then every round calls each
    once, until each has `min_samples`, or `min_seconds` of its own time when it is slow, or until `max_seconds` of all.
    `dominated` (see `certainly_slower`) is asked now and then which names need no further samples: those keep what they
    have and are passed to `on_drop`. The garbage collector is off meanwhile. `progress` is called once a round. `clock` calls
    a variant and says its milliseconds: `call_ms` by default, `settled_ms` for a model alone, or one of another process where
    this one's would see more than the call (a browser's).
    """
    clock = clock or call_ms
    order = random.Random(seed)  # its own, so that it does not depend on how long warming up took
    samples: dict[str, list[float]] = {name: [] for name in variants}
    active = list(variants)
    with without_collector():
        _warm_up(variants, random.Random(seed), WARM_SECONDS if warm_seconds is None else warm_seconds, clock)
        begun = time.monotonic()
        rounds = 0
        while not all(_enough(samples[name], min_samples, min_seconds) for name in active):
            if max_seconds is not None and rounds and time.monotonic() - begun > max_seconds:
                break
            for name in order.sample(active, len(active)):
                samples[name].append(clock(variants[name]))
            rounds += 1
            progress()
            if dominated is not None and rounds % STOP_CHECK == 0:
                for name in dominated({name: samples[name] for name in active}) & set(active):
                    active.remove(name)
                    on_drop(name)
    return samples


def certainly_slower(
    samples: Mapping[str, Sequence[float]], *, keep: Sequence[str] = (), margin: float = 1.1
) -> set[str]:
    """Names that cannot become the fastest any more: 99 % sure to take `margin` times as long as the best.

    Judged on the ratio to the best in the same round, for there both had the same input: items of many lengths spread the
    times themselves far more than variants differ. By the order statistics of the median, which assume nothing about the
    distribution (David and Nagaraja, Order Statistics, 2003, chapter 7). Names in `keep` (what a speedup is claimed against)
    are never among them.
    """
    sampled = {name: np.asarray(ms) for name, ms in samples.items() if len(ms) >= STOP_CHECK}
    if not sampled:
        return set()
    rounds = min(map(len, sampled.values()))
    best = min(sampled.values(), key=lambda ms: float(np.median(ms[:rounds])))[:rounds]
    return {name for name, ms in sampled.items() if name not in keep and _least_median(ms[:rounds] / best) > margin}


def best_seconds(kernel: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls made in `seconds`: a ceiling is what is possible, not what is usual."""
    kernel()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, call_ms(kernel) / 1e3)
    return best


def spin_ms() -> float:
    """Milliseconds of a fixed piece of pure arithmetic, about 2 ms: longer now than before means a slower clock."""
    begun = time.perf_counter_ns()
    total = 0
    for number in range(40_000):
        total += number * number
    return (time.perf_counter_ns() - begun) / 1e6


def drift_warning(before_ms: float, after_ms: float) -> str:
    """A line when the same arithmetic (`spin_ms`) takes over 5 % longer or shorter than before; empty otherwise."""
    change = after_ms / before_ms - 1
    if abs(change) <= 0.05:
        return ""
    changed = f"{abs(change):.0%} {'more' if change > 0 else 'less'}".replace("%", " %")
    return f"the clock drifts: the same arithmetic took {changed} time after a moment; let it settle (heat, boost)"


class Replay:
    """What a variant is timed by: calls on the next input each time, the same sequence for every variant."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._turn = itertools.cycle(calls)
        self._last = calls[0]

    def __call__(self) -> object:
        """Of the next input."""
        self._last = next(self._turn)
        return self._last()

    def again(self) -> object:
        """The last one once more."""
        return self._last()


def settled_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call that comes after the same one, as it does for a model that has the machine to itself: its code and
    weights are in the caches, and not those of what had its turn before (0.3 ms of a network of 1.2, after one of 30 ms)."""
    first = call_ms(call)
    return first if first > SETTLING_MS else call_ms(getattr(call, "again", call))


def call_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1e6


@contextmanager
def without_collector() -> Iterator[None]:
    """The garbage collector off, so that its pauses are not in a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _enough(ms: Sequence[float], min_samples: int, min_seconds: float) -> bool:
    return len(ms) >= min_samples or (len(ms) >= min(FEWEST, min_samples) and sum(ms) >= 1e3 * min_seconds)


def _warm_up(
    variants: Mapping[str, Callable[[], object]],
    order: random.Random,
    seconds: float,
    clock: Callable[[Callable[[], Any]], float],
) -> None:
    """Rounds of all variants until each has had two windows in a row that agree, or half of `seconds` a variant are over: where
    inputs differ in length windows need not ever agree. All get equally many calls, so that variants that replay a sequence of
    inputs stay in step."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    cold = set(variants)
    most = seconds * max(1.0, len(variants) / 2)
    begun = time.monotonic()
    while cold and not (min(map(len, times.values())) >= 2 and time.monotonic() - begun > most):
        for name in order.sample(list(variants), len(variants)):
            times[name].append(clock(variants[name]))
        cold = {name for name in cold if not _warm(times[name], seconds)}


def _warm(ms: Sequence[float], seconds: float) -> bool:
    if sum(ms) > 1e3 * seconds:
        return len(ms) >= 2
    if len(ms) < 2 * WARM_WINDOW:
        return False
    before = np.median(ms[-2 * WARM_WINDOW : -WARM_WINDOW])
    return bool(abs(np.median(ms[-WARM_WINDOW:]) - before) <= WARM_AGREE * before)


def _least_median(values: np.ndarray) -> float:
    """What the median of all that `values` are drawn from is above, with 99 % confidence: an order statistic (normal
    approximation to the binomial, with a correction for continuity)."""
    count = len(values)
    place = max(0, int(count / 2 - 2.33 * np.sqrt(count) / 2 - 0.5))
    return float(np.sort(values)[place])
