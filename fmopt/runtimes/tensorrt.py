"""TensorRT on NVIDIA GPUs. Where there is none, the graph's numbers come from ONNX Runtime, and its speed stays unmeasured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fmopt.core.errors import PassError, UnmeasuredError
from fmopt.core.model import Artifact, CheckpointMetadata, Graph, Runner
from fmopt.core.plugins import did_you_mean
from fmopt.core.results import OpTime
from fmopt.core.target import Target
from fmopt.edge import runners, tensorrt
from fmopt.runtimes.base import Here, copy_model, unfit

PROFILED_RUNS, WARM_UP_RUNS = 12, 3
OPTIONS = tuple(tensorrt.DEFAULTS)
SWITCHES = tuple(name for name, value in tensorrt.DEFAULTS.items() if isinstance(value, bool))


class TensorRt:
    """Bundles carry the ONNX graph, in which precision stands; the engine is built from it on the device.

    Options are those of `fmopt.edge.tensorrt`: they say how an engine is built and opened and change nothing in the graph.
    """

    name = "tensorrt"
    format = "onnx"
    opening = OPTIONS

    def missing(self) -> str | None:
        """Never anything: what can be made here is the graph, and that needs no TensorRT."""
        return None

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime the target does not have, or an option that means nothing."""
        if reason := unfit(self.name, OPTIONS, target, options):
            return reason
        return wrong_option({**tensorrt.DEFAULTS, **options}, target)

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """The graph's files in `out`. PassError, with the nodes, for a graph that TensorRT would not take."""
        from fmopt.exporters.tensorrt_check import check_file

        if not isinstance(source, Graph) or source.format != "onnx":
            raise PassError(f"{self.name} builds from an ONNX graph")
        faults = check_file(source.path).faults
        if faults:
            given = "; ".join(f"{fault.node or fault.operator}: {fault.text}" for fault in faults[:3])
            raise PassError(f"TensorRT would not take this graph ({len(faults)} faults): {given}")
        return Artifact(self.name, copy_model(source.path, out), dict(options))

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The engine, built for this GPU if need be; where there is none, what it would compute, which nobody may time."""
        reason = tensorrt.absent()
        if reason is None:
            runner: Runner = tensorrt.TensorRtRunner(artifact.path, artifact.options, threads)
            return runner
        return emulation(artifact.path, threads)

    def not_timed_here(self) -> str | None:
        """Why nothing can be said about speed on this machine; None when it can."""
        return tensorrt.absent()

    def here(self) -> Here:
        """Without a GPU there is the graph, and what it computes; nothing of the engine."""
        reason = tensorrt.absent()
        if reason is None:
            return Here()
        return Here(
            built="the graph that engines are built from on the device",
            judged="by what ONNX Runtime computes of that graph, rounded as the engine would",
            timed=f"no: {reason}",
        )

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Median milliseconds per layer of the engine, slowest first."""
        reason = tensorrt.absent()
        if reason is not None:
            raise UnmeasuredError(f"layers of a TensorRT engine are timed on its device: {reason}")
        runner = tensorrt.TensorRtRunner(artifact.path, artifact.options, threads)
        times = runner.layer_times(inputs, WARM_UP_RUNS + PROFILED_RUNS)
        runner.close()
        layers = [
            OpTime(name=name, kind="layer", ms=median(taken[WARM_UP_RUNS:]), precision="", layer="")
            for name, taken in times.items()
        ]
        return sorted(layers, key=lambda op: -op.ms)


def wrong_option(options: Mapping[str, Any], target: Target) -> str | None:
    """What is wrong with the values of options; None when nothing is."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    batch, lengths = options["batch"], options["lengths"]
    if not (
        isinstance(batch, list | tuple) and len(batch) == 3 and all(map(whole, batch)) and list(batch) == sorted(batch)
    ):
        return f"tensorrt option 'batch' is {batch!r}; it is [least, usual, most], for example [1, 8, 32]"
    if not (isinstance(lengths, list | tuple) and lengths and all(map(whole, lengths))):
        return (
            f"tensorrt option 'lengths' is {lengths!r}; it is the longest texts of each bucket, for example [32, 128]"
        )
    if not whole(options["workspace_mb"]):
        return f"tensorrt option 'workspace_mb' is {options['workspace_mb']!r}; it is a whole number"
    if options["level"] not in range(6):
        return f"tensorrt option 'level' is {options['level']!r}; it is 0 to 5, higher builds longer"
    if options["hardware"] not in tensorrt.LEVELS:
        nearest = did_you_mean(str(options["hardware"]), tensorrt.LEVELS)
        return f"tensorrt option 'hardware' is {options['hardware']!r}{nearest}"
    if options["hardware"] == "ampere_plus" and _compute_capability(target) < 80:
        return f"{target.name} ({target.arch}) is older than Ampere; hardware 'ampere_plus' does not run there"
    switch = next((name for name in SWITCHES if not isinstance(options[name], bool)), None)
    return f"tensorrt option {switch!r} is {options[switch]!r}; it is true or false" if switch else None


def _compute_capability(target: Target) -> int:
    number = target.arch.removeprefix("sm_")
    return int(number) if number.isdecimal() else 0


def emulation(path: Path, threads: int) -> Runner:
    """A runner that computes what an engine of this graph would, up to the order of its sums."""
    import onnx

    from fmopt.exporters.half_emulation import emulated, has_half
    from fmopt.exporters.onnx_graph import read_onnx, write_onnx

    bare = onnx.load(str(path), load_external_data=False)
    if not has_half(bare):
        runner: Runner = runners.open_runner("onnxruntime", path, {}, threads)
        return runner
    with tempfile.TemporaryDirectory(prefix="fmopt-half-") as folder:
        rounded = write_onnx(emulated(read_onnx(path)), Path(folder) / "model.onnx")
        opened: Runner = runners.open_runner("onnxruntime", rounded, {}, threads)
        return opened


RUNTIME = TensorRt()
