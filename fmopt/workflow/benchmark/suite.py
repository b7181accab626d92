"""Benchmarks of models and bundles: latency in turn, and MLPerf's scenarios over a matrix of shapes and threads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fmopt.core import formatting
from fmopt.core.errors import ConfigError
from fmopt.core.model import CheckpointMetadata, Runner, takes_length
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import Latency
from fmopt.core.stages.store import Store, disk_errors, own_folder
from fmopt.edge.board import interleaved
from fmopt.edge.loading import timed_call
from fmopt.edge.parts import Pipeline
from fmopt.measurement import host_probe, latency
from fmopt.workflow.benchmark.matrix import Matrix, places
from fmopt.workflow.benchmark.page import write_benchmark
from fmopt.workflow.benchmark.record import Benchmark
from fmopt.workflow.benchmark.scenarios import SCENARIOS, Scenario
from fmopt.workflow.deployed import Contestant, bench_metadata, contestants, open_artifact


def benchmark(
    models: Sequence[str | Path],
    *,
    batch: Sequence[int] = (1,),
    length: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[str, Latency]]:
    """Latency of models and bundles, in turn in one process, at every combination of shape and threads.

    A bundle runs as deployed; a checkpoint runs on each full-precision runtime.

    Arguments:
        models: folders of bundles or checkpoints, known names or hub names.
        batch: rows of a call, one measurement for each number.
        length: tokens of a row, for models that read texts.
        threads: of the runtime.
        seed: decides the inputs, which are made up.
        progress: gets a line for each step.

    Returns (name, `Latency`) for each variant and combination; samples are in milliseconds. Raises ConfigError or CheckpointError
    for a model that cannot be used, PassError for one that cannot be run.

    >>> [(name, latency)] = fmopt.benchmark([bundle], length=[16])
    >>> (latency.batch, latency.length)
    (1, 16)
    """
    results: list[tuple[str, Latency]] = []
    with tempfile.TemporaryDirectory(prefix="fmopt-bench-") as scratch:
        variants = [
            v
            for number, model in enumerate(models)
            for v in contestants(str(model), bench_metadata(str(model)), Store(Path(scratch) / str(number)))
        ]
        for count in threads:
            runners = [(one, open_artifact(one.artifact, count)) for one in variants]
            for size in batch:
                for tokens in lengths([one.preprocessor.pipeline for one in variants], length):
                    samples = bench_once(runners, size, tokens, seed, progress or Silent())
                    results += [
                        (name, Latency(samples_ms=ms, batch=size, length=tokens, threads=count))
                        for name, ms in samples.items()
                    ]
            for _, runner in runners:
                runner.close()
    return results


def bench_once(
    runners: Sequence[tuple[Contestant, Runner]], batch: int, length: int | None, seed: int, progress: Progress
) -> dict[str, list[float]]:
    """One shape, all runners in turn."""
    progress.start(f"batch {batch} × {formatting.tokens(length)}", interleaved.MIN_SAMPLES)
    turns = {}
    for one, runner in runners:
        inputs = latency.latency_inputs(one.preprocessor, one.samples, batch=batch, length=length, seed=seed)
        turns[one.name] = timed_call(one.preprocessor.pipeline, runner, inputs[0])
    return interleaved.time_in_turn(turns, seed=seed, progress=progress.step, clock=interleaved.settled_ms)


def benchmark_matrix(
    models: Sequence[str | Path],
    *,
    out: str | Path,
    scenarios: Sequence[Scenario] = SCENARIOS,
    batch: Sequence[int] = (1,),
    length: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    latency_limit_ms: float | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Benchmark:
    """Models and bundles in MLPerf's scenarios at every combination of shape and threads, with a page in `out`.

    The same call again goes on: finished cells are kept in `out`, beside benchmark.json, benchmark.html and benchmark.md.

    Arguments:
        models: folders of bundles or checkpoints, known names or hub names; the first is the reference.
        out: the folder of the results.
        scenarios: "single-stream" (one item after another), "offline" (all at once) and "server" (arrivals by chance).
        batch, length, threads: rows of a call, tokens of a row and threads of the runtime: a cell for each combination.
        latency_limit_ms: the server's limit for p99, in milliseconds; by default ten medians of one item on the reference.
        time_limit_s: seconds after which no cell is begun.
        seed: decides inputs and arrivals.
        command: how the results say that they were asked for.
        progress: gets a line for each step.

    Returns the `Benchmark` with the samples of every cell. Raises ConfigError for a model named twice, a length that a model does
    not take, or a folder of something else.

    >>> found = fmopt.benchmark_matrix([bundle], out=out / "bench", scenarios=["single-stream"], length=[16])
    >>> (out / "bench" / "benchmark.json").is_file()
    True
    """
    begun, out, progress = time.monotonic(), Path(out), progress or Silent()
    names = [str(model) for model in models]
    metadata = {name: bench_metadata(name) for name in names}
    check_matrix(names, metadata, length)
    asked = places(scenarios, batch, lengths([one.pipeline for one in metadata.values()], length), threads)
    if any((out / name).exists() for name in ("record.json", "fmopt.json")):
        raise ConfigError(f"{out} holds what `fmopt optimize` or `export` made; choose another --output")
    with own_folder(out), disk_errors(out / "stages"):
        store = Store(out / "stages")
        variants = [one for name in names for one in contestants(name, metadata[name], store)]
        matrix = Matrix(variants, store, seed, latency_limit_ms, progress)
        found = Benchmark(
            fmopt=host_probe.versions()["fmopt"],
            command=command,
            variants=[one.variant for one in variants],
            places=asked,
            cells=[],
            host=host_probe.host_fingerprint(),
            versions=host_probe.versions(),
            seed=seed,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            stopped="it was interrupted",
        )
        try:
            for place in asked:
                late = time_limit_s is not None and time.monotonic() - begun > time_limit_s
                if late and not matrix.finished(place):
                    found = found.model_copy(
                        update={"stopped": f"the time limit of {formatting.seconds(time_limit_s)} was over"}
                    )
                    continue
                found = found.model_copy(update={"cells": [*found.cells, matrix.cell(place)]})
                found.save(out)  # what is measured is there to read, whatever comes
            if len(found.cells) == len(asked):
                found = found.model_copy(update={"stopped": ""})
        finally:
            if found.cells:
                write_benchmark(found, out)
    return found


def check_matrix(names: Sequence[str], metadata: Mapping[str, CheckpointMetadata], length: Sequence[int]) -> None:
    """Refuse what cannot be a matrix, before any work."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{twice} is named twice; name every model once")
    for name in names:
        if not takes_length(metadata[name].pipeline):
            continue
        most = int(metadata[name].pipeline["max_length"])
        if max(length) > most:
            raise ConfigError(f"--length {max(length)} is more than the {most} tokens that {name} takes; leave it out")


def lengths(pipelines: Sequence[Pipeline], asked: Sequence[int]) -> Sequence[int | None]:
    """Numbers of tokens to bench at; only None where no model's items are made of tokens."""
    return asked if any(map(takes_length, pipelines)) else (None,)
