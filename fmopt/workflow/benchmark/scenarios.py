"""What a model does under load: queries one after the other, all at once, or when they happen to come.

The three scenarios are those of MLPerf Inference (Reddi et al., MLPerf Inference Benchmark, ISCA 2020). Here is what of
them is arithmetic: when queries arrive, a queue before one runner, the search for the highest rate that keeps a limit.
The queue runs on a clock: on a real one the model really runs, on a simulated one the same queue takes no time.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fmopt.core.results import Frozen

Scenario = Literal["single-stream", "offline", "server"]
SCENARIOS: tuple[Scenario, ...] = ("single-stream", "offline", "server")
SINGLE_STREAM_QUANTILE, SERVER_QUANTILE = 0.90, 0.99

TOLERANCE = 0.03  # the search ends when the rates that kept and missed the limit are this close
STRIDE = 1.15  # the first step away from a guess; steps grow from there
LOWEST_RATE = 1 / 64  # of the guess: below this rate nothing more is tried
SPIN_SECONDS = 0.001  # sleeping ends late by a part of this; the rest is waited for awake


class Clock(Protocol):
    """Seconds, and waiting for them."""

    def now(self) -> float:
        """Seconds since some moment."""

    def wait_until(self, moment: float) -> None:
        """Come back at `moment`, or at once when it is over."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """Seconds of the machine's steady clock."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Sleep, then spin through the last millisecond."""
        left = moment - time.perf_counter()
        if left > SPIN_SECONDS:
            time.sleep(left - SPIN_SECONDS)
        while time.perf_counter() < moment:
            pass


@dataclass
class SimulatedClock:
    """Time that passes only when someone waits or works."""

    seconds: float = 0.0

    def now(self) -> float:
        """The seconds so far."""
        return self.seconds

    def wait_until(self, moment: float) -> None:
        """Jump there."""
        self.seconds = max(self.seconds, moment)

    def work(self, seconds: float) -> None:
        """Let so much time pass."""
        self.seconds += seconds


class Load(Frozen):
    """Queries at one rate and how long each took from its arrival to its answer."""

    rate: float  # queries/s
    queries: int
    limit_ms: float
    samples_ms: list[
        float
    ]  # in order of arrival; fewer than `queries` when it was certain early that the limit is missed
    busy_s: float  # how long the runner ran

    @property
    def met(self) -> bool:
        """The 99th percentile is within the limit, and the runner keeps up: it works no longer than queries arrive.

        The second is what makes a rate one that can go on: with a generous limit a short run would hide that the queue
        only grows.
        """
        if len(self.samples_ms) < self.queries:
            return False
        return self.p99_ms <= self.limit_ms and self.busy_s <= self.queries / self.rate

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies seen."""
        return quantile(self.samples_ms, SERVER_QUANTILE)


def quantile(samples: Sequence[float] | np.ndarray, share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed (nearest rank)."""
    return float(np.quantile(samples, share, method="inverted_cdf"))


def poisson_arrivals(rate: float, queries: int, seed: int) -> np.ndarray:
    """Moments in seconds, sorted, shape (queries,): a Poisson process of `rate` per second, given that it has `queries`
    arrivals in queries / rate seconds. Given their number, they are uniform (Ross, Stochastic Processes, 1996, 2.3).

    The same seed gives the same pattern at every rate, only denser, so that rates and models are compared in pairs.
    """
    return np.sort(np.random.default_rng(seed).random(queries)) * (queries / rate)


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4 … and `most`: what a server makes of waiting queries, so that it meets few different shapes."""
    return tuple(sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most}))


def serve(
    run: Callable[[int], object], arrivals: np.ndarray, *, sizes: Sequence[int], limit_ms: float, clock: Clock
) -> tuple[list[float], float]:
    """Milliseconds from arrival to answer, query by query, and the seconds that the one runner ran.

    Queries wait in order. Whenever the runner is free it takes the largest of `sizes` (1 among them) of which so many
    wait, and `run(count)` answers them together. Latency counts from when a query was due, not from when the runner was
    ready to see it. Ends early when so many are late that the 99th percentile is certain to miss the limit.
    """
    begun = clock.now()
    due = arrivals.tolist()
    total = len(due)
    may_be_late = total - math.ceil(SERVER_QUANTILE * total)
    latencies: list[float] = []
    busy = 0.0
    late = 0
    while len(latencies) < total and late <= may_be_late:
        first = len(latencies)
        clock.wait_until(begun + due[first])
        started = clock.now()
        waiting = bisect_right(due, started - begun, lo=first) - first
        count = max((size for size in sizes if size <= waiting), default=1)
        run(count)
        done = clock.now()
        busy += done - started
        taken = [(done - begun - moment) * 1e3 for moment in due[first : first + count]]
        late += sum(ms > limit_ms for ms in taken)
        latencies += taken
    return latencies, busy


@dataclass(frozen=True)
class Bracket:
    """Between the highest rate that kept the limit and the lowest that missed it."""

    guess: float
    met: float = 0.0
    missed: float = math.inf

    def after(self, load: Load) -> Bracket:
        """What is known once `load` was tried."""
        if load.met:
            return Bracket(self.guess, max(self.met, load.rate), self.missed)
        return Bracket(self.guess, self.met, min(self.missed, load.rate))

    @property
    def closed(self) -> bool:
        """Nothing more to learn: the two are close, or even a crawl misses the limit."""
        return self.missed <= self.met * (1 + TOLERANCE) or self.missed <= self.guess * LOWEST_RATE

    @property
    def next_rate(self) -> float:
        """The guess, then away from it in growing steps until it lies between two, then halves of the way (in logarithms)."""
        if self.met and math.isfinite(self.missed):
            return math.sqrt(self.met * self.missed)
        if self.met:
            return self.met * max(STRIDE, self.met / self.guess)
        if math.isfinite(self.missed):
            return self.missed / max(STRIDE, self.guess / self.missed)
        return self.guess


def search(try_rate: Callable[[float], Load], guess: float, most: int = 64) -> Bracket:
    """The highest rate that keeps the limit, by at most `most` tries of which each says how it went."""
    bracket = Bracket(guess)
    while not bracket.closed and most > 0:
        bracket = bracket.after(try_rate(bracket.next_rate))
        most -= 1
    return bracket


def simulated(rate: float, queries: int, service_ms: Mapping[int, Sequence[float]], limit_ms: float, seed: int) -> Load:
    """A load on a runner that takes times drawn from `service_ms` (by the size of its batch); takes no time itself."""
    clock, draw = SimulatedClock(), np.random.default_rng(seed)
    drawn = {size: draw.choice(np.asarray(ms), queries) / 1e3 for size, ms in service_ms.items()}
    turn = dict.fromkeys(service_ms, 0)

    def work(count: int) -> None:
        clock.work(float(drawn[count][turn[count]]))
        turn[count] += 1

    arrivals = poisson_arrivals(rate, queries, seed)
    latencies, busy = serve(work, arrivals, sizes=tuple(service_ms), limit_ms=limit_ms, clock=clock)
    return Load(rate=rate, queries=queries, limit_ms=limit_ms, samples_ms=latencies, busy_s=busy)


def most_throughput(service_ms: Mapping[int, Sequence[float]]) -> float:
    """Items/s of a runner that never waits, at its best batch size."""
    return max(size * 1e3 / float(np.median(ms)) for size, ms in service_ms.items())


def predicted_rate(service_ms: Mapping[int, Sequence[float]], queries: int, limit_ms: float, seed: int) -> float:
    """Where a search by real runs begins: what the simulated queue holds, or half of all when it holds nothing."""
    full = most_throughput(service_ms)
    found = search(lambda rate: simulated(rate, queries, service_ms, limit_ms, seed), 0.8 * full)
    return found.met or 0.5 * full
