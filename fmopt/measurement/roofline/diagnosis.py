"""Why a model is not faster here: run it, read its runtime's profile, set it against this machine's ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import BundleError, ConfigError
from fmopt.core.model import Artifact, Runner
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import Circumstances, Finding, Frozen, Latency, OpTime
from fmopt.core.target import Target
from fmopt.edge import parts
from fmopt.edge.board import interleaved
from fmopt.evaluation.bootstrap import speedup
from fmopt.measurement import host_probe
from fmopt.measurement import latency as measurement_latency
from fmopt.measurement.roofline.findings import ThreadTime, group_of, thread_findings, why_not_faster
from fmopt.measurement.roofline.layers import LayerPoint, Roof, layer_points, roof, roof_findings

SAMPLES = 40  # of each number of threads, in turn
MAX_SECONDS = 30.0  # for timing, whatever the model


class KindTime(Frozen):
    """All operators of one kind, and how they are computed."""

    kind: str  # "MatMul", "FullyConnected/brgemm_avx2"
    group: str  # "matrix products"
    precision: str
    operators: int
    ms: float
    share: float


class Diagnosis(Frozen):
    """What `explain` found, findings first; everything it prints and nothing else."""

    model: str
    runtime: str
    p50_ms: float
    findings: list[Finding]
    kinds: list[KindTime]
    layers: list[LayerPoint]  # empty where ceilings or shapes are not known
    roof: Roof | None
    threads: list[ThreadTime]  # empty when one thread was asked for
    latency: Latency
    circumstances: Circumstances


def diagnose(
    artifact: Artifact,
    inputs_of: Callable[[Runner], Mapping[str, np.ndarray]],
    target: Target,
    *,
    model: str,
    batch: int,
    length: int | None,
    threads: int,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    beside: Callable[..., list[Finding]] | None = None,
) -> Diagnosis:
    """Run `artifact` with `threads` on what `inputs_of` makes for an opened runner (of texts [batch, length] each), and say
    what takes the time.

    More threads than one are timed in turn against fewer, `samples` times each, so that what they gain is measured. `beside`
    (see `short_findings`) is asked with the opened `runner` and its `profile` what is spent around the model.
    """
    warnings = measurement_latency.quiet_machine()
    latency = {
        count: Latency(samples_ms=ms, batch=batch, length=length, threads=count)
        for count, ms in _time(artifact, inputs_of, threads, samples, seed, progress or Silent()).items()
    }
    times = _thread_times(latency, threads, seed) if len(latency) > 1 else []
    runtime = plugins.find("runtimes", artifact.runtime)
    runner = runtime.open(artifact, threads)
    try:
        profile = runtime.profile(artifact, inputs_of(runner), threads)
        around = [] if beside is None else beside(runner=runner, profile=profile)
    finally:
        runner.close()
    points, ceilings = layer_points(profile, target, threads), roof(target, threads)
    shape = (batch, length or 1)  # without tokens no axis is free but the batch
    # threads=1: whether they are too many has been measured, and is not judged from the number of cores
    found = why_not_faster(profile, [], graph_path=artifact.path, target=target, threads=1, shape=shape)
    found += [*roof_findings(points, ceilings, threads), *around]
    return Diagnosis(
        model=model,
        runtime=artifact.runtime,
        p50_ms=float(np.median(latency[threads].samples_ms)),
        findings=[*thread_findings(times, threads), *sorted(found, key=lambda finding: -(finding.share or 0))],
        kinds=kind_times(profile),
        layers=points,
        roof=ceilings if points else None,
        threads=times,
        latency=latency[threads],
        circumstances=Circumstances(
            host=host_probe.host_fingerprint(), versions=host_probe.versions(), threads=threads, batch=batch, length=length,
            seed=seed, date=datetime.now(UTC).isoformat(timespec="seconds"), warnings=warnings,
        ),
    )  # fmt: skip


def kind_times(profile: Sequence[OpTime]) -> list[KindTime]:
    """Time by kind of operator and precision, the longest first."""
    total = math.fsum(op.ms for op in profile)
    together: dict[tuple[str, str], list[float]] = {}
    for op in profile:
        together.setdefault((op.kind, op.precision), []).append(op.ms)
    kinds = [
        KindTime(
            kind=kind, group=group_of(kind), precision=precision, operators=len(ms), ms=math.fsum(ms),
            share=math.fsum(ms) / total if total else 0.0,
        )
        for (kind, precision), ms in together.items()
    ]  # fmt: skip
    return sorted(kinds, key=lambda kind: -kind.ms)


def example_inputs(path: Path, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for an ONNX file by itself: random rows of the table that an input looks up in, ones for the others.

    ConfigError when the file is not an ONNX graph of whole numbers [batch, tokens].
    """
    import onnx

    from fmopt.measurement.roofline.model import bind_dimensions

    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError is not a public class of onnx
        raise ConfigError(f"{path} is not an ONNX file: {error}") from error
    bind_dimensions(graph, batch, length)
    tables = {tensor.name: tensor.dims[0] for tensor in graph.graph.initializer if tensor.dims}
    rows = {node.input[1]: tables[node.input[0]] for node in graph.graph.node
            if node.op_type == "Gather" and node.input[0] in tables}  # fmt: skip
    random, made = np.random.default_rng(seed), {}
    for value in graph.graph.input:
        kind, shape = value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.name in tables:
            continue
        if kind not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or shape != [batch, length]:
            name = onnx.TensorProto.DataType.Name(kind).lower()
            raise ConfigError(
                f"input {value.name!r} of {path} is {name}{shape}; explain fills whole numbers of the shape "
                f"[batch, tokens] here [{batch}, {length}]: choose --batch and --length, or explain a bundle"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        made[value.name] = random.integers(0, rows.get(value.name, 2), shape).astype(dtype)
        if value.name not in rows:
            made[value.name][:] = 1
    return made


def _time(
    artifact: Artifact,
    inputs_of: Callable[[Runner], Mapping[str, np.ndarray]],
    threads: int,
    samples: int,
    seed: int,
    progress: Progress,
) -> dict[int, list[float]]:
    """Samples in milliseconds of the number of threads asked for and of fewer: one, and as many as there are cores."""
    runtime = plugins.find("runtimes", artifact.runtime)
    counts = sorted({1, min(threads, host_probe.cores()), threads})
    try:
        runners = {count: runtime.open(artifact, count) for count in counts}
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error
    progress.start("timing", samples)
    try:
        turns = {str(count): partial(runner.run, inputs_of(runner)) for count, runner in runners.items()}
        times = interleaved.time_in_turn(
            turns, min_samples=samples, max_seconds=MAX_SECONDS, seed=seed, progress=progress.step
        )
    finally:
        for runner in runners.values():
            runner.close()
    return {int(count): ms for count, ms in times.items()}


def _thread_times(latency: Mapping[int, Latency], threads: int, seed: int) -> list[ThreadTime]:
    return [
        ThreadTime(
            threads=count,
            p50_ms=float(np.median(timed.samples_ms)),
            speedup=speedup(latency[threads], timed, seed=seed),
        )
        for count, timed in latency.items()
    ]
