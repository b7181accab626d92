"""Builds and runs TensorRT engines from a bundle's ONNX graph, on the device, with numpy, tensorrt and cuda-python alone.

Bundles for TensorRT carry this module; their run.py has one verb more:

    python run.py build            python run.py predict "a text"    (bench and verify as everywhere)

An engine fits one GPU, driver and TensorRT. It is kept in the user's cache folder with a stamp that says which, and built
again from the graph, with a line that says what differed, where the stamp does not fit. Options:
    batch [least, usual, most], lengths [tokens, …] (a profile up to each), workspace_mb, level (0 to 5), tf32,
    hardware "none" | "ampere_plus" | "same_compute_capability", version_compatible, strip_weights, sparse, cuda_graphs
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, need
from .host import ForkSafeLock, cache_folder, writable_by_others
from .manifest import read_manifest, sha256_file

NAME = "tensorrt"
PACKAGES = "tensorrt cuda-python"
README = """

No engine was built where this bundle was made, and its speed was not measured. On the device, `python run.py build`
builds one from model.onnx (the first call of any other verb does so too), `verify` compares its predictions with those that
were judged, and `bench` measures. The precision of every operator stands in the graph; why a node stays fp32 is in its
metadata, under `fmopt.kept`."""
DEFAULTS: dict[str, Any] = {
    "batch": [1, 1, 1], "lengths": [128, 512], "workspace_mb": 1024, "level": 3, "tf32": False, "hardware": "none",
    "version_compatible": False, "strip_weights": False, "sparse": False, "cuda_graphs": True,
}  # fmt: skip
LEVELS = {"none": "NONE", "ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}
SLOTS = 16  # shapes that are kept ready; each holds a context and a captured graph
Say = Callable[[str], object]


def absent() -> str | None:
    """Why no engine can be built or run here, with the way out; None when it can."""
    for module, package in (("tensorrt", "tensorrt"), ("cuda.bindings.runtime", "cuda-python")):
        try:
            found = find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            return f"{package} is not installed: pip install {package}, on a machine with an NVIDIA GPU"
    try:
        return None if cuda("cudaGetDeviceCount") else "this machine has no NVIDIA GPU"
    except (EdgeError, RuntimeError) as error:
        return f"this machine has no usable NVIDIA GPU: {error}"


def cuda(name: str, *arguments: Any) -> Any:
    """Call the CUDA runtime; its result, or EdgeError with the runtime's own words."""
    runtime = need("cuda.bindings.runtime", "cuda-python")
    status, *result = getattr(runtime, name)(*arguments)
    if int(status) != 0:
        raise EdgeError(f"{name} failed: {getattr(status, 'name', status)}")
    return result[0] if result else None


# -------------------------------------------------------------------------------- which engine fits


@dataclass(frozen=True)
class Profile:
    """Shapes [batch, tokens] that one part of an engine is for."""

    least: tuple[int, int]
    usual: tuple[int, int]
    most: tuple[int, int]

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether inputs of this shape may run in it."""
        return all(low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True))


def profiles(options: Mapping[str, Any]) -> tuple[Profile, ...]:
    """One profile for every length bucket, each tuned for its longest texts."""
    least, usual, most = options["batch"]
    found, low = [], 1
    for length in sorted(options["lengths"]):
        found.append(Profile((least, low), (usual, length), (most, length)))
        low = length + 1
    return tuple(found)


def stamp(graph: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine built here and now would be for."""
    trt = need("tensorrt", "tensorrt")
    metadata = cuda("cudaGetDeviceProperties", 0)
    name = metadata.name.decode() if isinstance(metadata.name, bytes) else str(metadata.name)
    return {
        "gpu": name.strip("\0"),
        "sm": f"{metadata.major}.{metadata.minor}",
        "driver": str(cuda("cudaDriverGetVersion")),
        "tensorrt": trt.__version__,
        "graph": _digest(graph),
        "options": dict(options),
    }


def differences(built: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Why an engine does not fit here, in words; empty when it does. Compatible engines fit where they were made to."""
    hardware = here["options"]["hardware"]
    same = {"gpu", "sm", "driver", "tensorrt", "graph", "options"}
    if hardware == "ampere_plus" and min(_number(built["sm"]), _number(here["sm"])) >= (8, 0):
        same -= {"gpu", "sm"}
    if hardware == "same_compute_capability":
        same -= {"gpu"}
    if here["options"]["version_compatible"] and _number(built["tensorrt"])[:1] == _number(here["tensorrt"])[:1]:
        same -= {"tensorrt"} if _number(built["tensorrt"]) <= _number(here["tensorrt"]) else set()
    words = {"gpu": "GPU", "sm": "compute capability", "driver": "driver", "tensorrt": "TensorRT"}
    found = [
        f"{words[key]} {built.get(key)} there, {here[key]} here"
        for key in words
        if key in same and built.get(key) != here[key]
    ]
    return found + [f"another {key}" for key in ("graph", "options") if built.get(key) != here[key]]


def _number(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in str(version).split(".") if part.isdigit())


def _digest(path: Path) -> str:
    total = hashlib.sha256(sha256_file(path).encode())
    beside = path.with_name(path.name + ".data")
    if beside.is_file():
        total.update(sha256_file(beside).encode())
    return total.hexdigest()


def ready_engine(
    graph: Path, options: Mapping[str, Any], say: Say, progress: Any = None
) -> tuple[Path, dict[str, Any]]:
    """(engine, its stamp) for this graph and device: the kept one where it fits, else built now."""
    options = {**DEFAULTS, **options}
    here = stamp(graph, options)
    key = hashlib.sha256(f"{here['graph']}{json.dumps(options, sort_keys=True)}".encode()).hexdigest()[:16]
    engine = cache_folder() / "tensorrt" / f"{key}.plan"
    written = engine.with_suffix(".json")
    if engine.is_file() and written.is_file() and not writable_by_others(engine.parent):
        built = json.loads(written.read_text())
        why = differences(built, here)
        if not why:
            return engine, built
        say(f"the engine does not fit this device ({'; '.join(why)}); building it again")
    else:
        say(f"building an engine for {here['gpu']} with TensorRT {here['tensorrt']}")
    engine.parent.mkdir(parents=True, exist_ok=True)
    cache = engine.with_name(f"timing-{here['sm']}-{here['tensorrt']}-{_safe(here['gpu'])}.cache")
    _write(engine, build(graph, options, cache, progress))
    _write(written, json.dumps(here).encode())
    return engine, here


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _write(path: Path, data: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


# -------------------------------------------------------------------------------- building


def build(graph: Path, options: Mapping[str, Any], timing_cache: Path, progress: Any = None) -> bytes:
    """A serialized engine of the ONNX graph, strongly typed. `progress` has start(text, total), step(done) and stop().

    EdgeError with the nodes that the parser does not take, or when no engine could be built.
    """
    trt = need("tensorrt", "tensorrt")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)
        raise EdgeError(f"TensorRT {trt.__version__} does not take {graph.name}: {reasons or 'it does not say why'}")
    config = configured(trt, builder, options)
    for profile in profiles(options):
        shapes = builder.create_optimization_profile()
        for number in range(network.num_inputs):
            shapes.set_shape(network.get_input(number).name, profile.least, profile.usual, profile.most)
        config.add_optimization_profile(shapes)
    known = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    config.set_timing_cache(known, ignore_mismatch=False)
    if progress is not None:
        config.progress_monitor = monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EdgeError(f"TensorRT {trt.__version__} could not build an engine of {graph.name}; its log says why")
    _write(timing_cache, config.get_timing_cache().serialize())
    return bytes(plan)


def configured(trt: Any, builder: Any, options: Mapping[str, Any]) -> Any:
    """The builder's configuration for these options. Precision is none of them: it stands in the graph."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_mb"]) << 20)
    config.builder_optimization_level = int(options["level"])
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, LEVELS[options["hardware"]])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = {
        trt.BuilderFlag.TF32: options["tf32"],
        trt.BuilderFlag.VERSION_COMPATIBLE: options["version_compatible"],
        trt.BuilderFlag.STRIP_PLAN: options["strip_weights"],
        trt.BuilderFlag.REFIT_IDENTICAL: options["strip_weights"],
        trt.BuilderFlag.SPARSE_WEIGHTS: options["sparse"],
    }
    for flag, wanted in flags.items():
        (config.set_flag if wanted else config.clear_flag)(flag)
    return config


def monitor(trt: Any, progress: Any) -> Any:
    """TensorRT's progress as a bar: its outermost phase; what runs within is one step of it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: str | None = None
            self.done = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if self.outer is None:
                self.outer, self.done = phase_name, 0
                progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.outer:
                progress.step(step + 1 - self.done)
                self.done = step + 1
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self.outer:
                self.outer = None
                progress.stop()

    return Monitor()


def opened(engine: Path, graph: Path, options: Mapping[str, Any]) -> Any:
    """The engine in the device's memory; one without weights gets them from the graph."""
    trt = need("tensorrt", "tensorrt")
    logger = trt.Logger(trt.Logger.WARNING)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = bool(options["version_compatible"])  # it carries a runtime of its own
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise EdgeError(f"TensorRT {trt.__version__} does not open {engine}; remove it, and it is built again")
    if options["strip_weights"]:
        refitter = trt.Refitter(loaded, logger)
        parser = trt.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise EdgeError(f"the weights of {graph} do not fit {engine}; remove the engine, and it is built again")
    return loaded


# -------------------------------------------------------------------------------- running


class TensorRtRunner:
    """Runs a graph on the GPU: copies in, engine and copies out are one CUDA graph, captured once for every shape."""

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int, say: Say | None = None) -> None:
        del threads  # the GPU has its own
        self.options = {**DEFAULTS, **options}
        tell = say or (lambda text: print(text, file=sys.stderr))
        engine, self.stamp = ready_engine(Path(path), options, tell)
        self.engine = opened(engine, Path(path), self.options)
        self.stream = cuda("cudaStreamCreate")
        self.slots: OrderedDict[tuple[int, ...], Slot] = OrderedDict()
        self._lock = ForkSafeLock()  # a slot has one memory for all its calls

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the engine does not take are ignored. EdgeError for a shape that no profile is for."""
        shape = tuple(next(iter(inputs.values())).shape)
        with self._lock:
            slot = self.slots.pop(shape, None) or self._slot(shape)
            self.slots[shape] = slot  # the last used is the last to go
            return slot.run(inputs)

    def _slot(self, shape: tuple[int, ...]) -> Slot:
        fitting = next((n for n, one in enumerate(profiles(self.options)) if one.takes(shape)), None)
        if fitting is None:
            raise EdgeError(
                f"the engine was not built for {list(shape)}: batch {self.options['batch']}, lengths "
                f"{self.options['lengths']}; set them in the options of fmopt.json and build again"
            )
        if len(self.slots) >= SLOTS:
            self.slots.popitem(last=False)[1].close()
        return Slot(self.engine, self.stream, fitting, shape, cuda_graph=bool(self.options["cuda_graphs"]))

    def layer_times(self, inputs: Mapping[str, np.ndarray], runs: int) -> dict[str, list[float]]:
        """Milliseconds of every layer of the engine, `runs` times, by TensorRT's own profiler."""
        trt = need("tensorrt", "tensorrt")
        times: dict[str, list[float]] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        shape = tuple(next(iter(inputs.values())).shape)
        number = next(n for n, one in enumerate(profiles(self.options)) if one.takes(shape))
        slot = Slot(self.engine, self.stream, number, shape, cuda_graph=False)
        slot.context.profiler = Profiler()
        for _ in range(runs):
            slot.run(inputs)
        slot.close()
        return times

    def close(self) -> None:
        """Give back the device's memory."""
        for slot in self.slots.values():
            slot.close()
        self.slots.clear()
        cuda("cudaStreamDestroy", self.stream)


class Slot:
    """One shape, ready to run: a context, buffers on both sides, and the captured graph of all that happens."""

    def __init__(self, engine: Any, stream: Any, profile: int, shape: tuple[int, ...], *, cuda_graph: bool) -> None:
        trt = need("tensorrt", "tensorrt")
        self.stream, self.context = stream, engine.create_execution_context()
        self.context.set_optimization_profile_async(profile, int(stream))
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        for name in self.inputs:
            self.context.set_input_shape(name, shape)
        self.host: dict[str, np.ndarray] = {}
        self.pinned: list[int] = []
        self.device: dict[str, int] = {}
        for name in names:
            kind = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            self._allocate(name, tuple(self.context.get_tensor_shape(name)), kind)
        self._enqueue()  # before a capture everything must have run once
        cuda("cudaStreamSynchronize", stream)
        self.graph = self._captured() if cuda_graph else None

    def _allocate(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        count = max(int(np.prod(shape)) * kind.itemsize, 1)
        pinned = int(cuda("cudaMallocHost", count))
        self.pinned.append(pinned)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(pinned))
        self.host[name] = memory[: int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
        self.device[name] = int(cuda("cudaMalloc", count))
        self.context.set_tensor_address(name, self.device[name])

    def _enqueue(self) -> None:
        kind = need("cuda.bindings.runtime", "cuda-python").cudaMemcpyKind
        for name in self.inputs:
            host = self.host[name]
            cuda(
                "cudaMemcpyAsync",
                self.device[name],
                host.ctypes.data,
                host.nbytes,
                kind.cudaMemcpyHostToDevice,
                self.stream,
            )
        if not self.context.execute_async_v3(int(self.stream)):
            raise EdgeError("TensorRT could not run the engine; its log says why")
        for name in self.outputs:
            host = self.host[name]
            cuda(
                "cudaMemcpyAsync",
                host.ctypes.data,
                self.device[name],
                host.nbytes,
                kind.cudaMemcpyDeviceToHost,
                self.stream,
            )

    def _captured(self) -> Any:
        modes = need("cuda.bindings.runtime", "cuda-python").cudaStreamCaptureMode
        cuda("cudaStreamBeginCapture", self.stream, modes.cudaStreamCaptureModeThreadLocal)
        self._enqueue()
        graph = cuda("cudaStreamEndCapture", self.stream)
        ready = cuda("cudaGraphInstantiate", graph, 0)
        cuda("cudaGraphDestroy", graph)
        return ready

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, copied out of the buffers."""
        missing = next((name for name in self.inputs if name not in inputs), None)
        if missing:
            raise EdgeError(f"the engine wants input {missing!r}; it was given {', '.join(sorted(inputs))}")
        for name in self.inputs:
            self.host[name][...] = inputs[name]
        if self.graph is not None:
            cuda("cudaGraphLaunch", self.graph, self.stream)
        else:
            self._enqueue()
        cuda("cudaStreamSynchronize", self.stream)
        return {name: self.host[name].copy() for name in self.outputs}

    def close(self) -> None:
        """Give back memory on both sides."""
        if self.graph is not None:
            cuda("cudaGraphExecDestroy", self.graph)
        self.context = None
        self.host.clear()
        for pointer in self.device.values():
            cuda("cudaFree", pointer)
        for pointer in self.pinned:
            cuda("cudaFreeHost", pointer)


def open_runner(path: Path, options: Mapping[str, Any], threads: int) -> TensorRtRunner:
    """An engine for this machine's GPU, built first where none is kept. EdgeError where none can be."""
    reason = absent()
    if reason:
        raise EdgeError(reason)
    return TensorRtRunner(path, options, threads)


def add_commands(commands: Any) -> None:
    """`run.py build`, beside the verbs of every bundle."""
    build = commands.add_parser("build", help="build the engine for this GPU, or say that it is there")
    build.set_defaults(command=_build)


def _build(folder: Path, asked: argparse.Namespace) -> int:
    reason = absent()
    if reason:
        raise EdgeError(reason)
    metadata = read_manifest(folder)
    engine, built = ready_engine(
        folder / metadata["model_file"], metadata["options"], lambda text: print(text, file=sys.stderr)
    )
    print(json.dumps({"engine": str(engine), "bytes": engine.stat().st_size, **built}))
    return 0
