"""Benchmarks of models and bundles: latency in turn, and MLPerf's scenarios over a matrix of shapes and threads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmopt import bundle as bundles
from fmopt import checkpoint, lookup, measure, pictures, probe, sounds, wording
from fmopt.bench_matrix import Contestant, Matrix, places
from fmopt.bench_record import Benchmark
from fmopt.bench_report import write_benchmark
from fmopt.build import Workshop
from fmopt.edge import Pipeline, open_preprocessor, timed_call
from fmopt.errors import ConfigError, UnmeasuredError
from fmopt.model import Artifact, CheckpointFacts, takes_length
from fmopt.plan import BASELINES, refusal
from fmopt.progress import Progress, Silent
from fmopt.results import Latency
from fmopt.runtimes.base import Runner
from fmopt.scenarios import SCENARIOS, Scenario
from fmopt.source import resolve
from fmopt.store import Store, disk_errors, own_folder

BENCH_TEXTS = (
    "The quick brown fox jumps over the lazy dog while the river keeps its course to the sea.",
    "A report is only as good as the measurements behind it, and a measurement only as good as its circumstances.",
)


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

    A bundle runs as deployed; a checkpoint runs on each full-precision runtime. Raw samples are in milliseconds.
    """
    results: list[tuple[str, Latency]] = []
    with tempfile.TemporaryDirectory(prefix="fmopt-bench-") as scratch:
        variants = [
            v
            for number, model in enumerate(models)
            for v in contestants(str(model), bench_facts(str(model)), Store(Path(scratch) / str(number)))
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
    progress.start(f"batch {batch} × {wording.tokens(length)}", measure.MIN_SAMPLES)
    turns = {}
    for one, runner in runners:
        inputs = measure.latency_inputs(one.preprocessor, one.raws, batch=batch, length=length, seed=seed)
        turns[one.name] = timed_call(one.preprocessor.pipeline, runner, inputs[0])
    return measure.time_in_turn(turns, seed=seed, progress=progress.step, clock=measure.settled_ms)


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

    The server's limit for p99 is `latency_limit_ms`, by default ten medians of one item on the reference. No cell is
    begun after `time_limit_s`. The same call again goes on: finished cells are kept in `out`, beside benchmark.json,
    benchmark.html and benchmark.md. ConfigError for a model named twice or a length that a model does not take.
    """
    begun, out, progress = time.monotonic(), Path(out), progress or Silent()
    names = [str(model) for model in models]
    facts = {name: bench_facts(name) for name in names}
    check_matrix(names, facts, length)
    asked = places(scenarios, batch, lengths([one.pipeline for one in facts.values()], length), threads)
    if any((out / name).exists() for name in ("record.json", "fmopt.json")):
        raise ConfigError(f"{out} holds what `fmopt optimize` or `export` made; choose another --output")
    with own_folder(out), disk_errors(out / "stages"):
        store = Store(out / "stages")
        variants = [one for name in names for one in contestants(name, facts[name], store)]
        matrix = Matrix(variants, store, seed, latency_limit_ms, progress)
        found = Benchmark(
            fmopt=probe.versions()["fmopt"],
            command=command,
            variants=[one.variant for one in variants],
            places=asked,
            cells=[],
            host=probe.host_fingerprint(),
            versions=probe.versions(),
            seed=seed,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            stopped="it was interrupted",
        )
        try:
            for place in asked:
                late = time_limit_s is not None and time.monotonic() - begun > time_limit_s
                if late and not matrix.finished(place):
                    found = found.model_copy(
                        update={"stopped": f"the time limit of {wording.seconds(time_limit_s)} was over"}
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


def check_matrix(names: Sequence[str], facts: Mapping[str, CheckpointFacts], length: Sequence[int]) -> None:
    """Refuse what cannot be a matrix, before any work."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{twice} is named twice; name every model once")
    for name in names:
        if not takes_length(facts[name].pipeline):
            continue
        most = int(facts[name].pipeline["max_length"])
        if max(length) > most:
            raise ConfigError(f"--length {max(length)} is more than the {most} tokens that {name} takes; leave it out")


def lengths(pipelines: Sequence[Pipeline], asked: Sequence[int]) -> Sequence[int | None]:
    """Numbers of tokens to bench at; only None where no model's items are made of tokens."""
    return asked if any(map(takes_length, pipelines)) else (None,)


def bench_facts(model: str) -> CheckpointFacts:
    """What a bundle was made from, or what a checkpoint is."""
    if bundles.is_bundle(Path(model)):
        return bundles.bundle_facts(Path(model))
    source = resolve(model)
    return checkpoint.inspect(source, source.task)


def deployed(bundle: Path) -> Contestant:
    """A bundle as it is. UnmeasuredError for one whose device is not here: what stands in for it has another speed."""
    runtime = lookup.find("runtimes", bundles.bundle_artifact(bundle).runtime)
    reason = runtime.not_timed_here() if hasattr(runtime, "not_timed_here") else None
    if reason is not None:
        raise UnmeasuredError(f"{bundle} is for {runtime.name} and cannot be timed here: {reason}")
    facts = bundles.bundle_facts(bundle)
    preprocessor = open_preprocessor(bundle, dict(facts.pipeline))
    artifact, precision = bundles.bundle_artifact(bundle), bundles.bundle_precision(bundle)
    return Contestant(str(bundle), preprocessor, artifact, bench_raws(facts), precision, deployed=True)


def bench_raws(facts: CheckpointFacts) -> list[Any]:
    """Texts in the shape of the task, where no data is at hand."""
    return [plain_example(facts.pipeline, text) for text in BENCH_TEXTS]


def contestants(model: str, facts: CheckpointFacts, store: Store) -> list[Contestant]:
    """A bundle as it is; a checkpoint on every full-precision runtime."""
    if bundles.is_bundle(Path(model)):
        return [deployed(Path(model))]
    raws = bench_raws(facts)
    preprocessor = open_preprocessor(facts.folder, dict(facts.pipeline))
    target = probe.load_target("host")
    shop = Workshop(facts, target, store, preprocessor, raws * 2, "bench", 0, 1 << 30, Silent())
    return [
        Contestant(
            f"{facts.source.title} {recipe.name}", preprocessor, shop.artifact(recipe), raws, "fp32", deployed=False
        )
        for recipe in BASELINES
        if refusal(recipe, facts, target) is None
    ]


def open_artifact(artifact: Artifact, threads: int) -> Runner:
    """An artifact opened as deployed."""
    return lookup.find("runtimes", artifact.runtime).open(artifact, threads)


def plain_example(pipeline: Pipeline, text: str = BENCH_TEXTS[0]) -> Any:
    """A raw that the pipeline's task takes, where no data is needed: export and bench without data. A text, or a picture,
    sound or history made of it."""
    if pipeline.get("modality") == "image":
        return pictures.plain_picture(text)
    if pipeline.get("modality") == "audio":
        return sounds.plain_sound(text)
    if pipeline.get("modality") == "item":
        some = pipeline["some_items"]
        return [some[ord(letter) % len(some)] for letter in text]
    task = pipeline["task"]
    if task == "fill-mask":
        first, _, rest = text.partition(" ")
        return f"{first} {pipeline['mask']['token']} {rest.partition(' ')[2]}"
    if task == "question-answering":
        return ("What does the fox jump over?", text)
    return text.split() if task == "token-classification" else text
