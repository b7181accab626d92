"""ONNX Runtime on a CPU."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fmopt.core.errors import PassError
from fmopt.core.model import Artifact, CheckpointMetadata, Graph, Runner
from fmopt.core.results import OpTime
from fmopt.core.target import Target
from fmopt.edge import runners
from fmopt.runtimes.base import copy_model, opening_options, unfit

PROFILED_RUNS, WARM_UP_RUNS = 12, 3
OPTIONS = ("providers",)


class OnnxRuntime:
    """Runs ONNX graphs; option `providers` is a list of execution providers, default the CPU's."""

    name = "onnxruntime"
    format = "onnx"
    opening = ("providers",)
    calls_at_once = True  # a session computes calls of several threads side by side

    def missing(self) -> str | None:
        """None when the package is installed."""
        return None if find_spec("onnxruntime") else "onnxruntime is not installed: pip install onnxruntime"

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime or option the target does not have."""
        if reason := unfit(self.name, OPTIONS, target, options):
            return reason
        lacking = set(options.get("providers", ())) - set(_providers())
        return f"the ONNX Runtime installed here was built without {', '.join(sorted(lacking))}" if lacking else None

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """The graph's files in `out`; ONNX Runtime compiles when it opens them."""
        if not isinstance(source, Graph) or source.format != "onnx":
            raise PassError(f"{self.name} builds from an ONNX graph, not from {_named(source)}")
        return Artifact(self.name, copy_model(source.path, out), {**options, **opening_options(source)})

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The runner that bundles use."""
        runner: Runner = runners.open_runner(self.name, artifact.path, dict(artifact.options), threads)
        return runner

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Median milliseconds per node of the optimized graph, slowest first."""
        with tempfile.TemporaryDirectory() as folder:
            events = _profile_events(artifact, inputs, threads, Path(folder))
        return _op_times(events)


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _profile_events(
    artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int, folder: Path
) -> list[dict[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    providers = list(artifact.options.get("providers", ("CPUExecutionProvider",)))
    half = runners.part_for(inputs) if artifact.options.get(runners.ENCODER_DECODER) else None
    session = ort.InferenceSession(runners.onnx_model(artifact.path, options, half), options, providers=providers)
    feed = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    for _ in range(WARM_UP_RUNS + PROFILED_RUNS):
        session.run(None, feed)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def _op_times(events: Sequence[Mapping[str, Any]]) -> list[OpTime]:
    from fmopt.exporters.onnx_graph import layer_of_name, precision_of
    from fmopt.measurement.roofline.executed_work import onnxruntime_work

    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    types: dict[str, list[str]] = {}
    work: dict[str, tuple[float, float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name, arguments = event["name"].removesuffix("_kernel_time"), event["args"]
            samples[name, arguments["op_name"]].append(event["dur"] / 1000)
            types[name] = [kind for shape in arguments.get("input_type_shape", ()) for kind in shape]
            work[name] = onnxruntime_work(arguments)
    times = [
        OpTime(
            name=name,
            kind=kind,
            ms=median(taken[WARM_UP_RUNS:]),
            precision=precision_of(types[name]),
            layer=layer_of_name(name),
            operations=work[name][0],
            bytes=work[name][1],
        )
        for (name, kind), taken in samples.items()
        if len(taken) > WARM_UP_RUNS
    ]
    return sorted(times, key=lambda op: -op.ms)


def _named(source: Graph | CheckpointMetadata) -> str:
    return f"{source.format} graph {source.path.name}" if isinstance(source, Graph) else "a checkpoint"


RUNTIME = OnnxRuntime()
