"""Measuring what was built: one clock for all variants, scores per item, footprints; each result kept in the store.

Knows how to measure, not in which order and not what follows from it: that is story.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import FmoptError
from fmopt.core.model import Artifact
from fmopt.core.recipe import Recipe
from fmopt.core.results import Footprint, Latency, OpTime
from fmopt.edge.board import interleaved
from fmopt.evaluation.predictions import load_predictions, predict, save_predictions
from fmopt.evaluation.record import Trial
from fmopt.measurement import host_probe
from fmopt.measurement import latency as measurement_latency
from fmopt.measurement.backends import Work, measured
from fmopt.measurement.roofline import efficiency
from fmopt.models.structure import LayerMetadata
from fmopt.workflow.search.builder import plain_steps, tool_versions
from fmopt.workflow.search.run import Run, line

REPLAYED_ITEMS = 64  # items replayed when lengths are the data's own


def build(run: Run, recipe: Recipe, network: Path | None = None) -> bool:
    """Make a recipe's artifact; one that breaks is a failed trial with its reason, not the end of the run.

    With `network`, a checkpoint that the recipe's passes up to the last that prunes or trains have made already, only
    those that follow are done, to it.
    """
    run.recipes[recipe.name] = recipe
    begun = time.monotonic()
    try:
        if run.out_of_time():
            run.put(Trial(recipe=line(run, recipe), status="stopped early", reason="the time limit was reached"))
            return False
        builder = run.builder if network is None else run.builder.of_network(network)
        steps = recipe.steps if network is None else recipe.steps[plain_steps(recipe.steps) :]
        artifact = builder.artifact(recipe.model_copy(update={"steps": steps}))
        parity = None if recipe.runtime == "torch" else builder.parity(steps)
        layers = LayerMetadata() if recipe.runtime == "torch" else builder.layer_metadata(steps)
    except FmoptError as error:
        status: Literal["stopped early", "failed"] = "stopped early" if run.out_of_time() else "failed"
        run.progress.say(f"{recipe.name} {status}: {error}")
        run.put(Trial(recipe=line(run, recipe), status=status, reason=str(error)))
        return False
    run.artifacts[recipe.name] = artifact
    run.put(
        Trial(
            recipe=line(run, recipe),
            status="measured",
            size_bytes=artifact.size_bytes,
            parity=parity,
            layers=layers,
            seconds={"build": round(time.monotonic() - begun, 3)},
        )
    )
    first = next(iter(run.artifacts))
    run.clock.offer(recipe.name, lambda: timed_work(run, list(dict.fromkeys([first, recipe.name]))))
    return True


def time_in_turn(run: Run, names: Sequence[str], timing_runs: int = 1) -> None:
    """Latency of variants, in turn, at the asked batch, length and threads, on the run's clock.

    In several `timing runs`, of half as many rounds, each opens them anew, and all their rounds are judged together: what a
    call costs beside its arithmetic changes from one minute to the next, which narrow networks feel most. One that was
    stopped early is not in later ones. One that the clock could not run is a failed trial with its reason.
    """
    samples: dict[str, list[float]] = {name: [] for name in names}
    left = list(names)
    rounds = interleaved.MIN_SAMPLES if timing_runs == 1 else interleaved.MIN_SAMPLES // 2
    for number in range(timing_runs):
        timed = _timing_run(run, left, number, rounds)
        run.warnings += [warning for warning in timed["warnings"] if warning not in run.warnings]
        for name, reason in timed.get("failed", {}).items():
            run.update(name, status="failed", reason=reason)
            run.artifacts.pop(name, None)
        for name, took in timed["samples"].items():
            samples[name] += took
        most = max(len(took) for took in timed["samples"].values())
        left = [name for name, took in timed["samples"].items() if len(took) == most]
    request = run.job.request
    for name, took in samples.items():
        if took:
            latency = Latency(samples_ms=took, batch=request.batch, length=request.length, threads=request.threads)
            run.update(name, latency=latency)


def _timing_run(run: Run, names: Sequence[str], number: int, rounds: int) -> dict[str, Any]:
    """What the clock said of variants that were opened once."""
    request = run.job.request
    key = {
        "artifacts": {name: run.artifacts[name].digest for name in names},
        "host": run.clock.host,
        "batch": request.batch,
        "length": request.length,
        "threads": request.threads,
        "seed": request.seed,
        "data": run.job.data.digest,
        **run.clock_versions(),
        "sitting": number,
        "rounds": rounds,
    }

    def clock() -> dict[str, Any]:
        work = dataclasses.replace(timed_work(run, names), samples=rounds)
        return dataclasses.asdict(run.clock.in_turn(work, run.progress))

    timed: dict[str, Any] = run.store.value("latency", key, clock)
    return timed


def timed_work(run: Run, names: Sequence[str]) -> Work:
    """What a clock is given to time."""
    request = run.job.request
    return Work(
        artifacts={name: run.artifacts[name] for name in names},
        pipeline=run.job.metadata.pipeline,
        threads=request.threads,
        seed=request.seed,
        inputs=latency_inputs(run),
        full_precision=[recipe.name for recipe in run.job.plan.baselines],
    )


def time_end_to_end(run: Run, names: Sequence[str]) -> None:
    """Latency from text to answer, tokenizer and post-processing included, for a few variants in turn."""
    request = run.job.request
    key = {
        "artifacts": {name: run.artifacts[name].digest for name in names},
        "host": run.clock.host,
        "batch": request.batch,
        "threads": request.threads,
        "seed": request.seed,
        "data": run.job.data.digest,
        **run.clock_versions(),
    }

    def clock() -> dict[str, list[float]]:
        texts = [item.sample for item in run.items("validation")[:REPLAYED_ITEMS]]
        batches = [texts[i : i + request.batch] for i in range(0, len(texts), request.batch)]
        work = dataclasses.replace(timed_work(run, names), batches=batches)
        return run.clock.end_to_end(work, run.builder.preprocessor, run.progress)

    for name, samples in run.store.value("end-to-end", key, clock).items():
        run.update(
            name,
            end_to_end=Latency(
                samples_ms=samples, batch=request.batch, length=None, threads=request.threads, end_to_end=True
            ),
        )


def latency_inputs(run: Run) -> list[dict[str, np.ndarray]]:
    """What is timed: real text filling exactly `length` tokens, or items of the data at their own lengths."""
    request = run.job.request
    samples = [item.sample for item in run.items("validation")]
    return measurement_latency.latency_inputs(
        run.builder.preprocessor, samples, batch=request.batch, length=request.length, seed=request.seed
    )


def predict_latency(run: Run) -> None:
    """What the target's ceilings and the runtimes' fitted curves let expect: shown beside what is measured, and alone, as no
    claim, where the device is not here."""
    request = run.job.request
    # Of sounds, whose length is not one of tokens, the first that would be timed stands for all.
    audio = run.job.metadata.modality == "audio"
    length = next(iter(latency_inputs(run)[0].values())).shape[1] if audio else request.length or 128
    for name, artifact in run.artifacts.items():
        if artifact.path.suffix not in (".onnx", ".xml"):
            continue
        precision = float_precision(run.recipes[name])
        key = {
            "artifact": artifact.digest,
            "target": run.job.target.model_dump(mode="json"),
            "shape": (request.batch, length, request.threads),
            "precision": precision,
            "curves": efficiency.fitted(),
        }
        ms = run.store.value(
            "prediction",
            key,
            partial(
                efficiency.predict_ms,
                artifact.path,
                artifact.runtime,
                run.job.target,
                request.batch,
                length,
                precision,
                threads=request.threads,
            ),
        )
        run.update(name, predicted_ms=ms)


def float_precision(recipe: Recipe) -> str:
    """What a recipe's float products are computed in: what it casts to, where its INT8 or FP8 leaves off. Weights that are
    only stored in 16 bits are widened before."""
    if recipe.options.get("precision") == "bf16":
        return "bf16"
    casts = [step.options.get("to") for step in recipe.steps if step.use == "cast"]
    stored = "fp32" if recipe.runtime == "onnxruntime" and recipe.precision == "fp16" else recipe.precision
    return next((str(to) for to in casts if to in ("fp16", "bf16")), stored)


def predictions(run: Run, name: str, split: str) -> list[Any]:
    """What a variant predicts for every item of a split, as deployed; threads do not change results, so all cores are used."""
    items = run.items(split)
    key = {
        "artifact": run.artifacts[name].digest,
        "data": run.job.data.digest,
        "split": split,
        "items": len(items),
        "pipeline": dict(run.job.metadata.pipeline),
        "batch": run.job.request.batch,
        **tool_versions(),
    }

    def make(folder: Path) -> None:
        runner = run.open(name, host_probe.cores())
        run.progress.start(f"{split}: {name}", len(items))
        try:
            got = predict(
                runner,
                run.builder.preprocessor,
                dict(run.job.metadata.pipeline),
                items,
                batch=run.job.request.batch,
                progress=run.progress.step,
            )
        finally:
            runner.close()
        save_predictions(folder / "predictions", got)

    return load_predictions(run.store.folder("predictions", key, make) / "predictions")


def footprint(run: Run, name: str) -> None:
    """Peak memory and load time of a variant, in a fresh process that only serves it."""
    artifact = run.artifacts[name]
    key = {
        "artifact": artifact.digest,
        "host": run.clock.host,
        "threads": run.job.request.threads,
        **run.clock_versions(),
    }
    inputs = latency_inputs(run)[0]
    got = run.store.value(
        "footprint", key, lambda: run.clock.footprint(artifact, inputs, run.job.request.threads).model_dump()
    )
    run.update(name, footprint=Footprint(**got))


def profile(run: Run, name: str) -> list[OpTime]:
    """Time per operator of a variant, from its runtime's own profile."""
    artifact = run.artifacts[name]
    request = run.job.request
    key = {
        "artifact": artifact.digest,
        "host": host_probe.host_fingerprint(),
        "batch": request.batch,
        "length": request.length,
        "threads": request.threads,
        **tool_versions(),
    }

    def make() -> list[dict[str, Any]]:
        runtime, runner = plugins.find("runtimes", artifact.runtime), run.open(name, request.threads)
        try:
            inputs = measured(run.job.metadata.pipeline, runner, latency_inputs(run)[:1])[0]
        finally:
            runner.close()
        return [op.model_dump() for op in runtime.profile(artifact, inputs, request.threads)]

    return [OpTime(**op) for op in run.store.value("profile", key, make)]


def layer_bytes(artifact: Artifact) -> dict[str, int]:
    """Torch module → bytes of its weights in the artifact's file; empty for a runtime that runs the checkpoint itself."""
    from fmopt.exporters import onnx_graph, openvino_graph

    readers = {".onnx": onnx_graph.layer_bytes, ".xml": openvino_graph.layer_bytes}
    read = readers.get(artifact.path.suffix)
    return read(artifact.path) if read else {}
