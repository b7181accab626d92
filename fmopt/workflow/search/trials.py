"""Measuring what was built: one clock for all variants, scores per item, footprints; each result kept in the store.

Knows how to measure, not in which order and not what follows from it: that is story.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import BoardError, FmoptError, StoreError, UnmeasuredError, explained
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
        with explained(f"{recipe.name} cannot be built"):
            asked = recipe.model_copy(update={"steps": steps})
            artifact = builder.artifact(asked)
            parity = None if recipe.runtime == "torch" else builder.parity(steps, asked)
            layers = LayerMetadata() if recipe.runtime == "torch" else builder.layer_metadata(steps, asked)
    except StoreError:  # a disk that is full is no fault of the recipe
        raise
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
    stopped early is not in later ones. One that the clock could not run is a failed trial with its reason; where it ran
    before, it keeps the time that it took then.
    """
    samples: dict[str, list[float]] = {name: [] for name in names}
    left = list(names)
    rounds = interleaved.MIN_SAMPLES if timing_runs == 1 else interleaved.MIN_SAMPLES // 2
    for number in range(timing_runs):
        timed = _timing_run(run, left, number, rounds)
        for warning in timed["warnings"]:
            run.warn(warning)
        for name, reason in timed.get("failed", {}).items():
            if run.trials[name].latency is None and not samples[name]:
                run.failed(name, reason)
            else:
                run.warn(f"{name} could not be timed again: {reason}")
        for name, took in timed["samples"].items():
            samples[name] += took
        most = max(map(len, timed["samples"].values()), default=0)
        left = [name for name, took in timed["samples"].items() if len(took) == most]
        if not left:
            break
    request = run.job.request
    run.timings.append(
        {
            name: Latency(samples_ms=took, batch=request.batch, length=request.length, threads=request.threads)
            for name, took in samples.items()
            if took
        }
    )
    for name, latency in run.timings[-1].items():
        run.update(name, latency=latency)


def _timing_run(run: Run, names: Sequence[str], number: int, rounds: int) -> dict[str, Any]:
    """What the clock said of variants that were opened once."""
    key = {
        "artifacts": {name: run.artifacts[name].digest for name in names},
        **_workload(run),
        "sitting": number,
        "rounds": rounds,
    }

    def clock() -> dict[str, Any]:
        work = dataclasses.replace(timed_work(run, names), samples=rounds)
        return dataclasses.asdict(run.clock.in_turn(work, run.progress))

    timed: dict[str, Any] = run.store.value("latency", key, clock)
    return timed


def _workload(run: Run) -> dict[str, Any]:
    """What every measurement depends on beside the artifact: how samples become inputs, which they are, and where it runs."""
    request, metadata = run.job.request, run.job.metadata
    return {
        "model": metadata.digest,  # with its tokenizer
        "pipeline": dict(metadata.pipeline),
        "data": run.job.data.digest,
        "batch": request.batch,
        "length": request.length,
        "threads": request.threads,
        "seed": request.seed,
        "host": run.clock.host,
        **run.clock_versions(),
    }


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
    """Latency from text to answer, tokenizer and post-processing included, for a few variants in turn; where that fails, a
    warning says why there is none."""
    request = run.job.request
    key = {"artifacts": {name: run.artifacts[name].digest for name in names}, **_workload(run), "length": None}

    def clock() -> dict[str, list[float]]:
        texts = [item.sample for item in run.items("validation")[:REPLAYED_ITEMS]]
        batches = [texts[i : i + request.batch] for i in range(0, len(texts), request.batch)]
        work = dataclasses.replace(timed_work(run, names), batches=batches)
        with explained("it broke", UnmeasuredError):
            return run.clock.end_to_end(work, run.builder.preprocessor, run.progress)

    try:
        timed = run.store.value("end-to-end", key, clock)
    except (UnmeasuredError, BoardError) as error:
        run.warn(f"{' and '.join(names)} were not timed from sample to answer: {error}")
        return
    for name, samples in timed.items():
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
    """What a variant predicts for every item of a split, as deployed; threads do not change results, so all cores are used.

    PassError when it cannot be opened, or cannot compute an item.
    """
    items = run.items(split)
    key = {
        "artifact": run.artifacts[name].digest,
        "model": run.job.metadata.digest,  # with its tokenizer
        "data": run.job.data.digest,
        "split": split,
        "items": len(items),
        "pipeline": dict(run.job.metadata.pipeline),
        "batch": run.job.request.batch,
        **tool_versions(),
    }

    def make(folder: Path) -> None:
        run.progress.start(f"{split}: {name}", len(items))
        with explained(f"it cannot answer the items of {split}"), closing(run.open(name, host_probe.cores())) as runner:
            got = predict(
                runner,
                run.builder.preprocessor,
                dict(run.job.metadata.pipeline),
                items,
                batch=run.job.request.batch,
                progress=run.progress.step,
            )
        save_predictions(folder / "predictions", got)

    return load_predictions(run.store.folder("predictions", key, make) / "predictions")


def footprint(run: Run, name: str) -> None:
    """Peak memory and load time of a variant, in a fresh process that only serves it; where that fails (too slow, out of
    memory), a warning says why there are none."""
    artifact = run.artifacts[name]
    key = {"artifact": artifact.digest, **_workload(run)}
    inputs = latency_inputs(run)[0]

    def serve() -> dict[str, Any]:
        with explained("it broke", UnmeasuredError):
            return run.clock.footprint(artifact, inputs, run.job.request.threads).model_dump()

    try:
        run.update(name, footprint=Footprint(**run.store.value("footprint", key, serve)))
    except UnmeasuredError as error:
        run.warn(f"memory and load time of {name} were not measured: {error}")


def profile(run: Run, name: str) -> list[OpTime]:
    """Time per operator of a variant, from its runtime's own profile; empty, with a warning, where it gives none."""
    artifact = run.artifacts[name]
    threads = run.job.request.threads
    key = {"artifact": artifact.digest, **_workload(run)}

    def make() -> list[dict[str, Any]]:
        runtime = plugins.find("runtimes", artifact.runtime)
        with explained("it broke", UnmeasuredError):
            with closing(run.open(name, threads)) as runner:
                inputs = measured(run.job.metadata.pipeline, runner, latency_inputs(run)[:1])[0]
            return [op.model_dump() for op in runtime.profile(artifact, inputs, threads)]

    try:
        return [OpTime(**op) for op in run.store.value("profile", key, make)]
    except UnmeasuredError as error:
        run.warn(f"operators of {name} were not timed: {error}")
        return []


def layer_bytes(artifact: Artifact) -> dict[str, int]:
    """Torch module → bytes of its weights in the artifact's file; empty for a runtime that runs the checkpoint itself."""
    from fmopt.exporters import onnx_graph, openvino_graph

    readers = {".onnx": onnx_graph.layer_bytes, ".xml": openvino_graph.layer_bytes}
    read = readers.get(artifact.path.suffix)
    return read(artifact.path) if read else {}
