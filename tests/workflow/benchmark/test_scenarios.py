"""Arrivals, queue and search, on a simulated clock against what queueing theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fmopt.workflow.benchmark.scenarios import (
    Bracket,
    Load,
    SimulatedClock,
    WallClock,
    batch_sizes,
    poisson_arrivals,
    predicted_rate,
    quantile,
    search,
    serve,
    simulated,
)


def waits_longer(rho: float, services: float) -> float:
    """P(a query waits longer than so many services) before one server of constant service time and load rho.

    Crommelin, Delay probability formulae when the holding times are constant, 1932.
    """
    total = 0.0
    for k in range(math.floor(services) + 1):
        x = rho * (services - k)
        total += (-x) ** k / math.factorial(k) * math.exp(x)
    return 1 - (1 - rho) * total


def capacity(limit_ms: float) -> float:
    """The rate at which 1 % of queries of 1 ms take longer than the limit, in queries/s."""
    low, high = 1e-6, 1 - 1e-6
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if waits_longer(middle, limit_ms - 1) < 0.01 else (low, middle)
    return low * 1000


@pytest.mark.parametrize("limit_ms", [3.0, 6.0])
def test_the_search_finds_the_capacity_of_a_constant_service_time(limit_ms: float) -> None:
    found = search(lambda rate: simulated(rate, 20_000, {1: [1.0]}, limit_ms, seed=3), guess=150.0)
    assert found.missed <= found.met * 1.03
    assert found.met == pytest.approx(capacity(limit_ms), rel=0.05)


def test_a_generous_limit_does_not_hide_a_queue_that_only_grows() -> None:
    found = search(lambda rate: simulated(rate, 500, {1: [1.0]}, 60_000, seed=0), guess=600.0)
    assert 950 <= found.met <= 1000


def test_batches_serve_more() -> None:
    constant = {size: [1.0] for size in batch_sizes(8)}
    found = search(lambda rate: simulated(rate, 4000, constant, 10.0, seed=0), guess=500.0)
    assert 3000 < found.met <= 8000
    assert predicted_rate(constant, 4000, 10.0, seed=0) == pytest.approx(found.met, rel=0.04)


def test_nothing_is_found_below_a_limit_that_the_service_itself_misses() -> None:
    found = search(lambda rate: simulated(rate, 200, {1: [2.0]}, 1.5, seed=0), guess=400.0)
    assert found.met == 0
    assert found.missed <= 400 / 64


def test_arrivals_are_poisson_of_the_asked_rate() -> None:
    arrivals = poisson_arrivals(250.0, 20_000, seed=1)
    gaps = np.diff(arrivals)
    assert len(arrivals) == 20_000
    assert arrivals[-1] == pytest.approx(80.0, rel=0.01)
    assert 1 / gaps.mean() == pytest.approx(250, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.03)  # as of an exponential
    counts = np.histogram(arrivals, bins=800, range=(0, 80))[0]  # in windows of 0.1 s
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)


def test_the_same_seed_is_the_same_pattern_only_denser() -> None:
    slow, fast = poisson_arrivals(10, 100, seed=5), poisson_arrivals(40, 100, seed=5)
    assert slow == pytest.approx(4 * fast)
    assert not np.allclose(slow, poisson_arrivals(10, 100, seed=6))


def test_latency_counts_from_when_a_query_was_due() -> None:
    clock = SimulatedClock(seconds=7.0)
    arrivals = np.array([0.0, 0.001, 0.002, 0.1])
    got, busy = serve(lambda count: clock.work(0.01), arrivals, sizes=(1,), limit_ms=1e9, clock=clock)
    assert got == pytest.approx([10, 19, 28, 10])
    assert busy == pytest.approx(0.04)


def test_waiting_queries_are_answered_together() -> None:
    clock, batches = SimulatedClock(), []

    def run(count: int) -> None:
        batches.append(count)
        clock.work(0.01)

    got, _ = serve(run, np.array([0, 1, 2, 3, 4, 5]) / 1e3, sizes=batch_sizes(4), limit_ms=1e9, clock=clock)
    assert batches == [1, 4, 1]
    assert got == pytest.approx([10, 19, 18, 17, 16, 25])


def test_an_overload_ends_as_soon_as_it_is_certain() -> None:
    clock = SimulatedClock()
    got, _ = serve(lambda count: clock.work(1.0), np.zeros(1000), sizes=(1,), limit_ms=5000, clock=clock)
    assert len(got) == 5 + 11  # five in time, and eleven of a thousand are more than one percent
    assert not Load(rate=1, queries=1000, limit_ms=5000, samples_ms=got, busy_s=16).met


def test_a_real_clock_waits_until_the_moment() -> None:
    clock = WallClock()
    moment = clock.now() + 0.02
    clock.wait_until(moment)
    assert clock.now() >= moment
    clock.wait_until(moment - 1)  # over already


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentiles_are_samples_that_were_seen(share: float, expected: float) -> None:
    assert quantile(np.random.default_rng(0).permutation(np.arange(1, 101)), share) == expected


def test_one_late_query_in_a_hundred_keeps_the_limit_and_two_do_not() -> None:
    def load(late: int) -> Load:
        samples = [1.0] * (100 - late) + [9.0] * late
        return Load(rate=10, queries=100, limit_ms=5, samples_ms=samples, busy_s=0.2)

    assert load(1).met
    assert not load(2).met


def test_steps_grow_until_the_rate_lies_between_two() -> None:
    bracket, tried = Bracket(100.0), []
    while not bracket.closed:
        tried.append(bracket.next_rate)
        met = bracket.next_rate <= 1234
        samples = [1.0 if met else 9.0] * 10
        bracket = bracket.after(Load(rate=bracket.next_rate, queries=10, limit_ms=5, samples_ms=samples, busy_s=0))
    assert bracket.met <= 1234 <= bracket.missed <= bracket.met * 1.03
    assert len(tried) < 15


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(8) == (1, 2, 4, 8)
    assert batch_sizes(12) == (1, 2, 4, 8, 12)
