"""A realistic benchmark of a matrix with seeded random samples: what the tests of its page read."""

from __future__ import annotations

from functools import cache

from fmopt.workflow.benchmark.matrix import places
from fmopt.workflow.benchmark.record import Benchmark, Cell, Measured, Offline, Place, Server, SingleStream, Variant
from fmopt.workflow.benchmark.scenarios import SCENARIOS, Load, batch_sizes, most_throughput, search, simulated
from tests.records import samples

# milliseconds of one item at 128 tokens on one thread
SPEEDS = {
    "all-MiniLM-L6-v2 torch-fp32": ("torch", "fp32", 44.9, 90.9),
    "all-MiniLM-L6-v2 onnxruntime-fp32": ("onnxruntime", "fp32", 31.4, 90.4),
    "all-MiniLM-L6-v2 openvino-fp32": ("openvino", "fp32", 30.9, 90.3),
    "out/minilm": ("openvino", "int8", 10.1, 23.4),
    "out/dynamic <b>int8</b>": ("onnxruntime", "int8", 31.2, 58.2),
    "out/slow": ("onnxruntime", "int8", 61.0, 23.9),
}


def variants() -> list[Variant]:
    return [
        Variant(name=name, runtime=runtime, precision=precision, size_bytes=int(mb * 1e6), digest=name)
        for name, (runtime, precision, _, mb) in SPEEDS.items()
    ]


def item_ms(name: str, place: Place, batch: int) -> float:
    return SPEEDS[name][2] * batch**0.9 * place.length / 128 / place.threads**0.8


def measured(place: Place) -> Measured:
    every = list(enumerate(SPEEDS))
    if place.scenario == "single-stream":
        return SingleStream(samples_ms={n: samples(item_ms(n, place, place.batch), 120, seed=i) for i, n in every})
    if place.scenario == "offline":
        calls = {name: max(1, round(50 / item_ms(name, place, place.batch))) for name in SPEEDS}
        bursts = {n: samples(item_ms(n, place, place.batch) * calls[n], 30, seed=i) for i, n in every}
        return Offline(calls=calls, bursts_ms=bursts)
    limit = 10 * item_ms("all-MiniLM-L6-v2 openvino-fp32", place, 1)
    loads: dict[str, list[Load]] = {}
    service = {
        name: {size: samples(item_ms(name, place, size), 20, seed=i) for size in batch_sizes(place.batch)}
        for i, name in every
    }
    for name in SPEEDS:
        tried: list[Load] = []

        def attempt(rate: float, name: str = name, tried: list[Load] = tried) -> Load:
            tried.append(simulated(rate, 150, service[name], limit, seed=0))
            return tried[-1]

        search(attempt, 0.8 * most_throughput(service[name]), most=10)
        loads[name] = tried
    return Server(
        limit_ms=limit,
        limit_words="10 × the median of all-MiniLM-L6-v2 openvino-fp32 with one item",
        service_ms=service,
        loads=loads,
    )


@cache
def realistic(cells: int | None = None) -> Benchmark:
    """Three scenarios, two batches, two lengths, two thread counts; only the first `cells` of them measured."""
    asked = places(SCENARIOS, (1, 8), (32, 128), (1, 2))
    found = [
        Cell(
            place=place,
            measured=measured(place),
            warnings=["other processes keep 1.2 of 2 cores busy"] if number == 1 else [],
            seconds=31.0,
        )
        for number, place in enumerate(asked[:cells])
    ]
    return Benchmark(
        fmopt="0.1.0",
        command="fmopt bench minilm out/minilm --matrix --batch 1,8 --length 32,128 --threads 1,2 -o out/bench",
        variants=variants(),
        places=asked,
        cells=found,
        host={"cpu": "AMD EPYC 7B13", "isa": ["avx2", "fma"], "cores": 2, "memory_gb": 15.6, "os": "Linux"},
        versions={"fmopt": "0.1.0", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
        seed=0,
        date="2026-11-23T12:00:00+00:00",
        stopped="" if cells is None else "the time limit of 10 min 00 s was over",
    )
