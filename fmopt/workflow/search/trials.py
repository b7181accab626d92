"""Building a variant and measuring it: one clock for all, footprints, profiles; each result kept in the store.

Knows how to measure, not in which order and not what follows from it: that is workflow/optimize.py.
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
from fmopt.core.workload import Workload
from fmopt.edge.board import interleaved
from fmopt.edge.parts import Sample
from fmopt.evaluation.record import Trial
from fmopt.measurement import latency as measurement_latency
from fmopt.measurement.backends import Work, measured
from fmopt.measurement.roofline import efficiency
from fmopt.models.structure import LayerMetadata
from fmopt.workflow.search.builder import plain_steps
from fmopt.workflow.search.executor import Build
from fmopt.workflow.search.run import SCORING, Run, by_speed, line

OPEN_BYTES = 1e9  # of the files of variants that are timed together: open, each takes up to twice as much memory


def build(run: Run, recipe: Recipe, network: Path | None = None, share: float = SCORING) -> bool:
    """Make a recipe's artifact; one that breaks is a failed trial with its reason, not the end of the run.

    Not after that `share` of the user's time limit, unless it is a baseline.

    With `network`, a checkpoint that the recipe's passes up to the last that prunes or trains have made already, only
    those that follow are done, to it.
    """
    run.recipes[recipe.name] = recipe
    if network is not None:
        run.of_networks.add(recipe.name)
    begun = time.monotonic()
    try:
        if run.out_of_time(share) and recipe not in run.job.plan.baselines:
            run.put(Trial(recipe=line(run, recipe), status="stopped early", reason="the time limit was reached"))
            return False
        builder = run.builder if network is None else run.builder.of_network(network)
        steps = recipe.steps if network is None else recipe.steps[plain_steps(recipe.steps) :]
        with explained(f"{recipe.name} cannot be built"):
            asked = recipe.model_copy(update={"steps": steps})
            if network is None:
                run.executor.finish(Build(recipe))
            artifact = builder.artifact(asked)
            parity = None if recipe.runtime == "torch" else builder.parity(steps, asked)
            layers = LayerMetadata() if recipe.runtime == "torch" else builder.layer_metadata(steps, asked)
    except StoreError:  # a disk that is full is no fault of the recipe
        raise
    except FmoptError as error:
        status: Literal["stopped early", "failed"] = "stopped early" if run.out_of_time(share) else "failed"
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
    offered = list(dict.fromkeys([first, recipe.name]))
    run.clock.offer(recipe.name, lambda: timed_work(run, offered, run.job.request.workload))
    return True


def time_all(run: Run) -> None:
    """Latency of all that was built, in turn: of large models in groups that fit into memory, each beside the fastest
    full-precision variant and the fastest of all so far."""
    full = {recipe.name for recipe in run.job.plan.baselines}
    left = list(run.artifacts)
    while left:
        timed = by_speed(run, [name for name in run.artifacts if run.trials[name].latency is not None])
        beside = list(dict.fromkeys([*timed[:1], *[name for name in timed if name in full][:1]]))
        group, least = list(beside), max(len(beside) + 1, 2)
        while left and (len(group) < least or _file_bytes(run, [*group, left[0]]) <= OPEN_BYTES):
            group.append(left.pop(0))
        time_in_turn(run, group)


def _file_bytes(run: Run, names: Sequence[str]) -> int:
    return sum(run.trials[name].size_bytes or 0 for name in names)


def time_in_turn(run: Run, names: Sequence[str], timing_runs: int = 1) -> None:
    """Latency of variants on the workload, in turn, on the run's clock.

    In several `timing runs`, of half as many rounds, each opens them anew, and all their rounds are judged together: what a
    call costs beside its arithmetic changes from one minute to the next, which narrow networks feel most. One that was
    stopped early is not in later ones. One that the clock could not run is a failed trial with its reason; where it ran
    before, it keeps the time that it took then.
    """
    workload = run.job.request.workload
    samples: dict[str, list[float]] = {name: [] for name in names}
    left = list(names)
    rounds = interleaved.MIN_SAMPLES if timing_runs == 1 else interleaved.MIN_SAMPLES // 2
    for number in range(timing_runs):
        timed = _timing_run(run, left, workload, number, rounds)
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
    run.timings.append({name: latency_on(workload, took) for name, took in samples.items() if took})
    for name, latency in run.timings[-1].items():
        run.update(name, latency=latency)


def time_beside(run: Run, names: Sequence[str], workload: Workload) -> dict[str, Latency]:
    """The same variants on something that is not judged: a stated shape beside the data's items, or the other way round. None,
    with a warning, where that fails."""
    try:
        timed = _timing_run(run, names, workload, 0, interleaved.MIN_SAMPLES)
    except (UnmeasuredError, BoardError) as error:
        run.warn(f"{' and '.join(names)} were not timed on {workload.sentence()}: {error}")
        return {}
    for name, reason in timed.get("failed", {}).items():
        run.warn(f"{name} was not timed on {workload.sentence()}: {reason}")
    return {name: latency_on(workload, took) for name, took in timed["samples"].items() if took}


def latency_on(workload: Workload, samples_ms: list[float]) -> Latency:
    """Samples with what they were taken on."""
    return Latency(
        samples_ms=samples_ms,
        batch=workload.items_per_call,
        length=workload.length,
        threads=workload.threads,
        end_to_end=workload.from_raw,
    )


def _timing_run(run: Run, names: Sequence[str], workload: Workload, number: int, rounds: int) -> dict[str, Any]:
    """What the clock said of variants that were opened once."""
    key = {
        "artifacts": {name: run.artifacts[name].digest for name in names},
        **_circumstances(run),
        "workload": workload.model_dump(),
        "timing run": number,
        "rounds": rounds,
    }

    def clock() -> dict[str, Any]:
        judged = workload == run.job.request.workload
        timed_before = [name for name in names if judged and (number or run.trials[name].latency is not None)]
        work = dataclasses.replace(timed_work(run, names, workload), samples=rounds, timed_before=timed_before)
        return dataclasses.asdict(run.clock.in_turn(work, run.progress))

    timed: dict[str, Any] = run.store.value("latency", key, clock)
    return timed


def _circumstances(run: Run) -> dict[str, Any]:
    """What every measurement depends on beside the artifact: how samples become inputs, which they are, and where it runs."""
    request, metadata = run.job.request, run.job.metadata
    return {
        "model": metadata.digest,  # with its tokenizer
        "pipeline": dict(metadata.pipeline),
        "data": run.job.data.digest,
        "workload": request.workload.model_dump(),
        "seed": request.seed,
        "host": run.clock.host,
        **run.clock_versions(),
    }


def timed_work(run: Run, names: Sequence[str], workload: Workload) -> Work:
    """What a clock is given to time."""
    preprocessor, seed = run.builder.preprocessor, run.job.request.seed
    work = Work(
        artifacts={name: run.artifacts[name] for name in names},
        pipeline=run.job.metadata.pipeline,
        threads=workload.threads,
        seed=seed,
        full_precision=[recipe.name for recipe in run.job.plan.baselines],
        preprocessor=preprocessor,
    )
    if not workload.from_raw:
        return dataclasses.replace(work, inputs=latency_inputs(run, workload))
    batches = measurement_latency.replayed(preprocessor, _samples(run), workload.items_per_call, seed)
    return dataclasses.replace(work, batches=batches, inputs=[dict(preprocessor.encode(batches[0]).inputs)])


def latency_inputs(run: Run, workload: Workload | None = None) -> list[dict[str, np.ndarray]]:
    """Encoded inputs of the workload: rows of exactly `length` tokens of real text, or items of the data at their own lengths."""
    asked = workload or run.job.request.workload
    return measurement_latency.latency_inputs(
        run.builder.preprocessor,
        _samples(run),
        batch=asked.items_per_call,
        length=asked.length,
        seed=run.job.request.seed,
    )


def _samples(run: Run) -> list[Sample]:
    return [item.sample for item in run.items("validation")]


def by_size(run: Run) -> list[dict[str, np.ndarray]]:
    """Encoded inputs of the workload, the smallest first: the middle one to look into a call, the last for its memory."""
    return sorted(latency_inputs(run), key=lambda inputs: sum(array.size for array in inputs.values()))


def usual_inputs(run: Run) -> dict[str, np.ndarray]:
    """The inputs of middle size among those that are timed."""
    found = by_size(run)
    return found[len(found) // 2]


def predict_latency(run: Run) -> None:
    """What the target's ceilings and the runtimes' fitted curves let expect: shown beside what is measured, and alone, as no
    claim, where the device is not here."""
    workload = run.job.request.workload
    # Of sounds, whose length is not one of tokens, and of items at their own lengths the middle one stands for all.
    first = next(iter(usual_inputs(run).values()))
    length = int(first.shape[1]) if first.ndim > 1 else 1
    for name, artifact in run.artifacts.items():
        if artifact.path.suffix not in (".onnx", ".xml"):
            continue
        precision = float_precision(run.recipes[name])
        key = {
            "artifact": artifact.digest,
            "target": run.job.target.model_dump(mode="json"),
            "shape": (workload.items_per_call, length, workload.threads),
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
                workload.items_per_call,
                length,
                precision,
                threads=workload.threads,
            ),
        )
        run.update(name, predicted_ms=ms)


def float_precision(recipe: Recipe) -> str:
    """What a recipe's float products are computed in: what it casts to, where its INT8 or FP8 leaves off. Weights that are
    only stored in 16 bits are widened before."""
    if recipe.options.get("precision") == "bf16":
        return "bf16"
    casts = [getattr(step.build(), "computes_in", None) for step in recipe.steps]
    stored = "fp32" if recipe.runtime == "onnxruntime" and recipe.precision == "fp16" else recipe.precision
    return next((str(to) for to in casts if to in ("fp16", "bf16")), stored)


def footprint(run: Run, name: str) -> None:
    """Peak memory and load time of a variant, in a fresh process that only serves it; where that fails (too slow, out of
    memory), a warning says why there are none."""
    artifact = run.artifacts[name]
    key = {"artifact": artifact.digest, **_circumstances(run)}
    inputs, threads = by_size(run)[-1], run.job.request.workload.threads

    def serve() -> dict[str, Any]:
        with explained("it broke", UnmeasuredError):
            return run.clock.footprint(artifact, inputs, threads).model_dump()

    try:
        run.update(name, footprint=Footprint(**run.store.value("footprint", key, serve)))
    except UnmeasuredError as error:
        run.warn(f"memory and load time of {name} were not measured: {error}")


def profile(run: Run, name: str) -> list[OpTime]:
    """Time per operator of a variant, from its runtime's own profile; empty, with a warning, where it gives none."""
    artifact = run.artifacts[name]
    threads = run.job.request.workload.threads
    key = {"artifact": artifact.digest, **_circumstances(run)}

    def make() -> list[dict[str, Any]]:
        runtime = plugins.find("runtimes", artifact.runtime)
        with explained("it broke", UnmeasuredError):
            with closing(run.open(name, threads)) as runner:
                inputs = measured(run.job.metadata.pipeline, runner, [usual_inputs(run)])[0]
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
