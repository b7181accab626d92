"""Measure a matrix of models, scenarios, shapes and threads, cell by cell; a finished cell is not measured twice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fmopt.core import formatting
from fmopt.core.model import Runner
from fmopt.core.progress import Progress
from fmopt.core.stages.store import Store
from fmopt.edge.board import interleaved
from fmopt.edge.loading import timed_call
from fmopt.measurement import host_probe, latency
from fmopt.workflow.benchmark.record import Cell, Measured, Offline, Place, Server, SingleStream, Variant
from fmopt.workflow.benchmark.scenarios import (
    SCENARIOS,
    Bracket,
    Load,
    Scenario,
    WallClock,
    batch_sizes,
    most_throughput,
    poisson_arrivals,
    predicted_rate,
    serve,
)
from fmopt.workflow.deployed import Contestant
from fmopt.workflow.search.builder import tool_versions

BURST_MS, BURSTS = 50.0, 40  # offline: batches without a pause for so long, so often


SERVICE_SAMPLES, SERVICE_SECONDS = 40, 2.0  # server: timings of each batch size before the search


SHAPE_SECONDS = 0.5  # server: further sizes warm up for no longer than this


LIMIT_FACTOR = 10  # server: the default limit, in medians of one item on the reference


LOAD_SECONDS = 4.0  # server: length of one load, as far as the number of queries allows


FEWEST_QUERIES, MOST_QUERIES = 400, 2000


MOST_LOADS, SEARCH_SECONDS = 10, 60.0  # server: a search ends here when its two ends are not close by then


EDITION = 2  # raised when a cell means something else, so that older ones are not taken for it


Calls = Mapping[str, Mapping[int, interleaved.Replay]]  # by variant and how many items are answered at once


@dataclass(frozen=True)
class Matrix:
    """What is measured, and how."""

    contestants: Sequence[Contestant]
    store: Store
    seed: int
    limit_ms: float | None  # of the server; None: LIMIT_FACTOR medians
    progress: Progress

    def finished(self, place: Place) -> bool:
        """Whether this cell needs no more work."""
        return self.store.has("cell", self._key(place))

    def cell(self, place: Place) -> Cell:
        """The cell at `place`, measured now or found finished."""
        return Cell.model_validate(self.store.value("cell", self._key(place), lambda: self._measure(place)))

    def _key(self, place: Place) -> dict[str, Any]:
        return {
            "edition": EDITION,
            "place": place.model_dump(),
            "variants": [one.variant.model_dump() for one in self.contestants],
            "limit": self.limit_ms if place.scenario == "server" else None,
            "seed": self.seed,
            "host": host_probe.host_fingerprint(),
            **tool_versions(),
        }

    def _measure(self, place: Place) -> dict[str, Any]:
        begun = time.monotonic()
        measured: Measured
        with self._calls(place) as calls:
            warnings, spin = latency.quiet_machine(0.3), interleaved.spin_ms()
            if place.scenario == "single-stream":
                measured = single_stream(calls, place, self.seed, self.progress)
            elif place.scenario == "offline":
                measured = offline(calls, place, self.seed, self.progress)
            else:
                variants = [one.variant for one in self.contestants]
                measured = server(calls, variants, place, self.limit_ms, self.seed, self.progress)
            warnings = [line for line in (*warnings, interleaved.drift_warning(spin, interleaved.spin_ms())) if line]
        seconds = round(time.monotonic() - begun, 1)
        return Cell(place=place, measured=measured, warnings=warnings, seconds=seconds).model_dump(mode="json")

    @contextmanager
    def _calls(self, place: Place) -> Iterator[Calls]:
        """Every variant opened, with inputs for every batch size that the scenario asks for."""
        sizes = batch_sizes(place.batch) if place.scenario == "server" else (place.batch,)
        runners = {one.name: one.opened_for(place) for one in self.contestants}
        try:
            yield {one.name: self._call(one, runners[one.name], sizes, place.length) for one in self.contestants}
        finally:
            for runner in runners.values():
                runner.close()

    def _call(
        self, one: Contestant, runner: Runner, sizes: Sequence[int], length: int | None
    ) -> dict[int, interleaved.Replay]:
        pipeline = one.preprocessor.pipeline

        def replay(size: int) -> interleaved.Replay:
            rows = latency.latency_inputs(one.preprocessor, one.samples, batch=size, length=length, seed=self.seed)
            return interleaved.Replay([timed_call(pipeline, runner, row) for row in rows])

        return {size: replay(size) for size in sizes}


def places(
    scenarios: Sequence[Scenario], batch: Sequence[int], length: Sequence[int | None], threads: Sequence[int]
) -> list[Place]:
    """All cells, in the order of measuring: whatever is cut off by a time limit, what is there is whole matrices first."""
    return [
        Place(scenario=scenario, batch=size, length=tokens, threads=count)
        for count in sorted(set(threads))
        for scenario in SCENARIOS
        if scenario in scenarios
        for size in sorted(set(batch))
        for tokens in sorted(set(length), key=lambda tokens: tokens or 0)
    ]


def single_stream(calls: Calls, place: Place, seed: int, progress: Progress) -> SingleStream:
    """All variants in turn, one query after the other."""
    progress.start(words(place), interleaved.MIN_SAMPLES)
    samples = interleaved.time_in_turn(
        {name: call[place.batch] for name, call in calls.items()},
        min_samples=interleaved.MIN_SAMPLES,
        seed=seed,
        clock=interleaved.settled_ms,
        progress=progress.step,
    )
    return SingleStream(samples_ms=_rounded(samples))


def offline(calls: Calls, place: Place, seed: int, progress: Progress) -> Offline:
    """Bursts of batches in turn, each as long as BURST_MS, so that a variant runs on caches and clocks of its own."""
    once = interleaved.time_in_turn({name: call[place.batch] for name, call in calls.items()}, min_samples=5, seed=seed)
    many = {name: max(1, round(BURST_MS / float(np.median(ms)))) for name, ms in once.items()}

    def burst(name: str) -> None:
        for _ in range(many[name]):
            calls[name][place.batch]()

    progress.start(words(place), BURSTS)
    bursts = interleaved.time_in_turn(
        {name: partial(burst, name) for name in calls},
        min_samples=BURSTS,
        warm_seconds=0,
        seed=seed,
        progress=progress.step,
    )
    return Offline(calls=many, bursts_ms=_rounded(bursts))


def server(
    calls: Calls, variants: Sequence[Variant], place: Place, limit_ms: float | None, seed: int, progress: Progress
) -> Server:
    """The highest rate of every variant: searches side by side, one load of each in turn, all with the same arrivals."""
    service = service_times(calls, place.batch, seed)
    reference = fastest_item(service, variants)
    limit, limit_words = limit_ms, "what was asked for"
    if limit is None:
        limit = LIMIT_FACTOR * float(np.median(service[reference][1]))
        limit_words = f"{LIMIT_FACTOR} × the median of {reference} with one item"
    queries = int(np.clip(LOAD_SECONDS * most_throughput(service[reference]), FEWEST_QUERIES, MOST_QUERIES))
    loads: dict[str, list[Load]] = {name: [] for name in calls}
    brackets = {
        name: Bracket(predicted_rate(service[name], queries, limit, seed))
        for name in calls
        if float(np.median(service[name][1])) <= limit
    }
    spent, order = dict.fromkeys(calls, 0.0), random.Random(seed)
    progress.start(words(place), MOST_LOADS)
    while searching := [
        name
        for name, bracket in brackets.items()
        if not bracket.closed and len(loads[name]) < MOST_LOADS and spent[name] < SEARCH_SECONDS
    ]:
        for name in order.sample(searching, len(searching)):
            begun = time.monotonic()
            load = real_load(calls[name], brackets[name].next_rate, queries, place.batch, limit, seed)
            loads[name].append(load)
            brackets[name] = brackets[name].after(load)
            spent[name] += time.monotonic() - begun
        progress.step()
    return Server(limit_ms=limit, limit_words=limit_words, service_ms=service, loads=loads)


def service_times(calls: Calls, batch: int, seed: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of every batch size that a server makes, by variant; they warm up every shape too."""
    service: dict[str, dict[int, list[float]]] = {name: {} for name in calls}
    for number, size in enumerate(batch_sizes(batch)):
        timed = interleaved.time_in_turn(
            {name: call[size] for name, call in calls.items()},
            min_samples=SERVICE_SAMPLES,
            min_seconds=SERVICE_SECONDS,
            warm_seconds=SHAPE_SECONDS if number else None,  # the first size warms up the rest
            seed=seed,
        )
        for name, ms in _rounded(timed).items():
            service[name][size] = ms
    return service


def fastest_item(service: Mapping[str, Mapping[int, Sequence[float]]], variants: Sequence[Variant]) -> str:
    """The full-precision variant that answers one item fastest; the first of all when there is none."""
    full = [one.name for one in variants if one.full_precision] or [variants[0].name]
    return min(full, key=lambda name: float(np.median(service[name][1])))


def real_load(
    calls: Mapping[int, interleaved.Replay], rate: float, queries: int, batch: int, limit_ms: float, seed: int
) -> Load:
    """Queries at `rate` in real time."""
    arrivals = poisson_arrivals(rate, queries, seed)
    with interleaved.without_collector():
        latencies, busy = serve(
            lambda count: calls[count](), arrivals, sizes=batch_sizes(batch), limit_ms=limit_ms, clock=WallClock()
        )
    return Load(
        rate=rate, queries=queries, limit_ms=limit_ms, samples_ms=[round(ms, 4) for ms in latencies], busy_s=busy
    )


def words(place: Place) -> str:
    """`server · batch 8, 128 tokens, 1 thread`."""
    return f"{place.scenario} · {formatting.shape(place.batch, place.length, place.threads)}"


def _rounded(samples: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """To a tenth of a microsecond: more is noise, and a large matrix keeps millions of them."""
    return {name: [round(ms, 4) for ms in taken] for name, taken in samples.items()}
