"""Graphs opened by ONNX Runtime or OpenVINO, by one interface: `run(inputs) -> outputs`, arrays by name.

Several threads may call `run` of one runner at once, and so may a forked child. A runner whose `mixes_rows` is true gives a
row other outputs beside other rows: its scales are taken from all of a batch.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, last_line, need
from .host import ForkSafeLock, PerProcess, some_home
from .parts import OWN_RUNTIMES, load_part

APPENDS = "fmopt.appends"  # metadata of a graph whose cache may lie in buffers with room for more


CACHE_PREFIX = "past_key_values."  # begins the names of inputs that hold what earlier tokens left (see generation.py)


ENCODER_DECODER = "halves"  # option of a graph of two parts, each opened by itself (see seq2seq.py), …


DECODER_INPUT = "decoder_input_ids"  # … and the input that the second takes


# Operators that take one scale from all values of an activation, those of other rows and of padding too.
TENSOR_SCALES = (b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"DynamicQuantizeLSTM")


# What rounds activations to 8 bits: the last bit of a sum then decides over a hundredth of a value (accuracy_level = 4, or Q/DQ).
ROUNDING = (b"accuracy_level\x18\x04", b"QuantizeLinear", b"MatMulInteger", *TENSOR_SCALES)
# In OpenVINO's IR: quantized activations, and narrow weights, whose products it rounds activations for by itself.
OPENVINO_ROUNDING = (b"FakeQuantize", *(f'element_type="{kind}"'.encode() for kind in ("u8", "i8", "u4", "i4", "nf4")))


# element types of graph inputs, by ONNX's names and by OpenVINO's
ONNX_KINDS = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16, "bool": np.bool_}


OPENVINO_KINDS = {"i64": np.int64, "i32": np.int32, "f32": np.float32, "f16": np.float16, "boolean": np.bool_}


class OnnxRuntimeRunner:
    """An ONNX graph opened by ONNX Runtime, or one `half` of it. Option: "providers", by default the CPU's."""

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int, half: int | None = None):
        self.ort = need("onnxruntime", "onnxruntime")
        self.path, self.options, self.threads, self.half = path, options, threads, half
        self._opened = PerProcess(self._open)
        kinds = {f"tensor({name})": kind for name, kind in ONNX_KINDS.items()}
        self.inputs = {port.name: kinds.get(port.type, np.int64) for port in self.session.get_inputs()}
        self.optional = {
            port.name: kinds.get(port.type, np.int64) for port in self.session.get_overridable_initializers()
        }
        self.kv_cache = {
            port.name: port.shape for port in self.session.get_inputs() if port.name.startswith(CACHE_PREFIX)
        }
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.appends = APPENDS in self.session.get_modelmeta().custom_metadata_map
        self.mixes_rows = has_operator(path, TENSOR_SCALES)
        self.rounds_activations = has_operator(path, ROUNDING)

    def _open(self) -> Any:
        """A session and, for each thread, the cache that it last appended to with its binding."""
        ort, session = self.ort, self.ort.SessionOptions()
        session.intra_op_num_threads = self.threads
        session.inter_op_num_threads = 1
        session.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        session.log_severity_level = 3
        if self.threads > 1:
            # Idle threads of one session must not spin beside another that is being timed.
            session.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            opened = ort.InferenceSession(
                onnx_model(self.path, session, self.half),
                session,
                providers=list(self.options.get("providers", ["CPUExecutionProvider"])),
            )
        except Exception as error:  # pybind classes derive from Exception only
            raise EdgeError(f"ONNX Runtime {ort.__version__} cannot open {self.path}: {last_line(error)}") from error
        return opened, threading.local()

    @property
    def session(self) -> Any:
        """The session of this process."""
        return self._opened.get()[0]

    def room(self, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """An empty cache with room for so many tokens, which `run` appends to in place; nothing where the graph cannot."""
        if not self.appends:
            return {}
        return {name: np.zeros((rows, shape[1], tokens, shape[3]), np.float32) for name, shape in self.kv_cache.items()}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the graph does not take are ignored, a cache that is not given is empty.

        A cache that has room for the new tokens too (see `room`) is appended to where it lies, and is the present.
        """
        asked = {**self.inputs, **{name: kind for name, kind in self.optional.items() if name in inputs}}
        total = inputs["attention_mask"].shape[1] if self.appends else 0
        if self.appends and all(name in inputs and inputs[name].shape[2] >= total for name in self.kv_cache):
            return self._append({name: kind for name, kind in asked.items() if name not in self.kv_cache}, inputs)
        feed = cast_inputs(asked, with_empty_cache(self.kv_cache, inputs))
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))

    def _append(self, asked: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        kv_cache = {name: inputs[name] for name in self.kv_cache}
        presents = {f"present.{name.removeprefix(CACHE_PREFIX)}": array for name, array in kv_cache.items()}
        session, last = self._opened.get()
        bound = getattr(last, "bound", None)
        if bound is None or any(bound[0][name] is not array for name, array in kv_cache.items()):
            binding = session.io_binding()
            for names in (kv_cache, presents):
                bind = binding.bind_input if names is kv_cache else binding.bind_output
                for name, array in names.items():
                    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            bound = last.bound = kv_cache, binding
        binding = bound[1]
        feed = cast_inputs(asked, inputs)  # lives until the run is over
        for name, array in feed.items():
            value = self.ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)  # not bind_cpu_input, which knows no optional inputs
        rest = [name for name in self.outputs if name not in presents]
        for name in rest:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        made = dict(zip([*presents, *rest], binding.get_outputs(), strict=True))
        return {**{name: made[name].numpy() for name in rest}, **presents}

    def close(self) -> None:
        """Give back memory and threads."""
        self._opened.clear()


def has_operator(path: Path, names: Sequence[bytes]) -> bool:
    """Whether an ONNX file names one of these operators anywhere."""
    if not Path(path).stat().st_size:
        return False
    with Path(path).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in names)


def onnx_model(path: Path, session: Any, half: int | None) -> str | bytes:
    """What a session opens: the file, or one half of it, in memory."""
    if half is None:
        return str(path)
    # Weights that lie beside a file are not found by what is in memory.
    session.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path(path).parent))
    model: bytes = load_part("seq2seq").split_onnx(path)[half]
    return model


class OpenVinoRunner:
    """An IR or ONNX graph opened by OpenVINO on the CPU.

    Options: "precision", "f32" (default) or "bf16"; "shape", [batch, tokens] that it is compiled for: other shapes run
    too, on a second compilation that is made when the first of them comes (a fraction of a second); "kv_cache", "f32"
    (default) or "u8", how a stateful graph keeps keys and values. "buckets", rising lengths: a batch of "rows" texts (1) is
    padded to the next one, by the values that "pad" has for each input, and runs on a compilation for it, made when the first
    such text comes; what is longer, or of other rows, runs on dynamic shapes. `half`: of two, the one that is opened.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int, half: int | None = None):
        with some_home():
            openvino = need("openvino", "openvino")
        self.path, self.half = path, half
        precise = str(options.get("precision", "f32")) == "f32"
        self.rounds_activations = not precise or has_operator(path, (*ROUNDING, *OPENVINO_ROUNDING))
        self.properties = {
            # Without the hint OpenVINO silently computes in bf16 where the CPU can.
            "INFERENCE_PRECISION_HINT": str(options.get("precision", "f32")),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            **({"KV_CACHE_PRECISION": str(options.get("kv_cache", "f32"))} if options.get("stateful") else {}),
        }
        self.shape = tuple(options.get("shape") or ()) or None
        self.options = options
        self.fixed_rows = bool(options.get("buckets") or options.get("shape"))
        self.token_axes: list[list[int]] = []  # of every output, found when the first text is padded
        self._compiled: PerProcess[dict[tuple[int, ...] | None, CompiledGraph]] = PerProcess(dict)
        self._lock = ForkSafeLock()
        try:
            compiled = self.compiled_for(self.shape).model
        except Exception as error:
            raise EdgeError(f"OpenVINO {openvino.__version__} cannot open {path}: {last_line(error)}") from error
        self.inputs = {
            port.any_name: OPENVINO_KINDS.get(port.element_type.get_type_name(), np.int64) for port in compiled.inputs
        }
        dims = {port.any_name: port.partial_shape for port in compiled.inputs if port.any_name.startswith(CACHE_PREFIX)}
        self.kv_cache = {
            name: [one.get_length() if one.is_static else None for one in dim] for name, dim in dims.items()
        }
        self.outputs = [_openvino_name(port, f"output_{i}") for i, port in enumerate(compiled.outputs)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the graph does not take are ignored, a cache that is not given is empty."""
        return self.infer(with_empty_cache(self.kv_cache, inputs))

    def infer(self, inputs: Mapping[str, np.ndarray], request: Any = None) -> dict[str, np.ndarray]:
        """Outputs by name, of a `new_request` where one is given."""
        feed = cast_inputs(self.inputs, inputs)
        shape = next(iter(feed.values())).shape
        bucket = None if request else bucket_for(self.options, shape)
        if bucket is not None:
            return self._padded(feed, shape[1], bucket)
        if request is not None:
            return self._outputs(request, feed)
        with self.compiled_for(shape if shape == self.shape else None).idle_request() as idle:
            return self._outputs(idle, feed)

    def _outputs(self, request: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Views of the request's own memory, which its next call writes to: copied here, for OpenVINO's way takes far longer.
        results = request.infer(feed, share_inputs=True, share_outputs=True)
        return {name: value.copy() for name, value in zip(self.outputs, results.values(), strict=True)}

    def _padded(self, feed: Mapping[str, np.ndarray], length: int, bucket: tuple[int, int]) -> dict[str, np.ndarray]:
        """Outputs for inputs of `length` tokens, by the compilation for a bucket; what stands for padding is cut off."""
        self.token_axes = self.token_axes or token_axes(self.path, self.half)
        with self.compiled_for(bucket).idle_request() as idle:
            results = self._outputs(idle, padded(feed, bucket[1], self.options.get("pad", {})))
        found = {}
        for name, value, axes in zip(self.outputs, results.values(), self.token_axes, strict=True):
            found[name] = value[tuple(slice(length if axis in axes else None) for axis in range(value.ndim))]
        return found

    def new_request(self) -> Any:
        """A further request, with a state of its own."""
        return self.compiled_for(self.shape).model.create_infer_request()

    @property
    def graphs(self) -> dict[tuple[int, ...] | None, CompiledGraph]:
        """What is compiled in this process, by the shape that it is for."""
        return self._compiled.get()

    def compiled_for(self, shape: tuple[int, ...] | None) -> CompiledGraph:
        """The graph compiled for a shape, or for any; compiled by the first that asks."""
        graphs = self.graphs
        if shape not in graphs:
            with self._lock:
                if shape not in graphs:
                    core = need("openvino", "openvino").Core()
                    model = read_openvino(self.path, shape, self.half)
                    graphs[shape] = CompiledGraph(core.compile_model(model, "CPU", self.properties))
        return graphs[shape]

    def close(self) -> None:
        """Give back memory and threads."""
        self._compiled.clear()


class CompiledGraph:
    """A compiled graph and its idle requests: calls at the same time have one each."""

    def __init__(self, model: Any):
        self.model = model
        self._idle: list[Any] = [model.create_infer_request()]

    @contextmanager
    def idle_request(self) -> Iterator[Any]:
        """A request that nobody else uses meanwhile."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        try:
            yield request
        finally:
            self._idle.append(request)


def bucket_for(options: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int] | None:
    """The shape that inputs of a `shape` are padded to by the option "buckets"; None where they run as they are."""
    buckets = options.get("buckets") or ()
    if len(shape) != 2 or shape[0] != options.get("rows", 1):
        return None
    length = next((bucket for bucket in buckets if bucket >= shape[1]), None)
    return None if length is None else (int(shape[0]), int(length))


def padded(feed: Mapping[str, np.ndarray], length: int, pad: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs [rows, tokens] filled up to `length` tokens at their end, with 0 where `pad` has no other value."""
    more = length - next(iter(feed.values())).shape[1]
    return {name: np.pad(array, ((0, 0), (0, more)), constant_values=pad.get(name, 0)) for name, array in feed.items()}


def token_axes(path: Path, half: int | None) -> list[list[int]]:
    """Of every output of an OpenVINO graph the axes that are as long as its texts: those that follow two lengths."""
    shapes = []
    for length in (3, 5):
        model = read_openvino(path, (1, length), half)
        shapes.append([[dim.get_max_length() for dim in port.partial_shape] for port in model.outputs])
    return [
        [axis for axis, sizes in enumerate(zip(*both, strict=True)) if sizes == (3, 5)]
        for both in zip(*shapes, strict=True)
    ]


def _openvino_name(port: Any, otherwise: str) -> str:
    """What an output was called in the graph that it was read from; one tensor may have the names of others too."""
    read = port.node.friendly_name.partition("/sink_port")[0]
    return read if read in port.names else min(port.names, default=otherwise)


def read_openvino(path: Path, shape: Sequence[int] | None = None, half: int | None = None) -> Any:
    """An openvino.Model of an IR or ONNX file or of one half of it, its inputs [batch, tokens] fixed to `shape` where one is
    given."""
    openvino = need("openvino", "openvino")
    model = openvino.Core().read_model(str(path))
    if half is not None:
        model = load_part("seq2seq").split_openvino(openvino, model)[half]
    if shape:
        model.reshape({port.any_name: list(shape) for port in model.inputs})
    return model


class EncoderDecoderRunner:
    """The two parts of a graph, each opened by itself."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts
        self.mixes_rows = any(mixes_rows(part) for part in parts)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of that part whose inputs these are."""
        return self.parts[part_for(inputs)].run(inputs)

    def close(self) -> None:
        """Give back memory and threads."""
        for part in self.parts:
            part.close()


def takes_batches(runner: Any) -> bool:
    """Whether rows may go together: none changes another, and what the graph was compiled for is not one row at a time."""
    return not mixes_rows(runner) and not getattr(runner, "fixed_rows", False)


def mixes_rows(runner: Any) -> bool:
    """Whether a row's outputs depend on the other rows of its batch."""
    return bool(getattr(runner, "mixes_rows", False))


def rounds_activations(runner: Any) -> bool:
    """Whether values inside a graph have so few bits that another order of sums changes answers, not only their last digits."""
    return bool(getattr(runner, "rounds_activations", True))


def part_for(inputs: Mapping[str, Any]) -> int:
    """Which of two parts takes these inputs."""
    return int(DECODER_INPUT in inputs)


RUNNERS: dict[str, type[OnnxRuntimeRunner] | type[OpenVinoRunner]] = {
    "onnxruntime": OnnxRuntimeRunner,
    "openvino": OpenVinoRunner,
}


def own_module(runtime: str) -> Any:
    """The module that opens a runtime which has one; None for others. EdgeError when the bundle lacks it."""
    if runtime not in OWN_RUNTIMES:
        return None
    try:
        return import_module(f"{__package__}.{runtime}")
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{runtime}":
            raise
        raise EdgeError(f"{runtime}.py is missing; copy the whole bundle") from error


def open_runner(runtime: str, path: Path, options: Mapping[str, Any], threads: int) -> Any:
    """Open a graph as production does. Options a runner does not know concern how the graph was built.

    EdgeError for a runtime that only fmopt itself can open.
    """
    if runtime in OWN_RUNTIMES:
        return own_module(runtime).open_runner(path, options, threads)
    if runtime not in RUNNERS:
        raise EdgeError(f"runtime {runtime!r} is opened by fmopt, which run.py does without; use fmopt.load instead")
    if not Path(path).is_file():
        raise EdgeError(f"{path} is missing")
    if options.get("stateful"):
        return load_part("generation").Stateful(OpenVinoRunner(path, options, threads))
    if options.get(ENCODER_DECODER):
        return EncoderDecoderRunner([RUNNERS[runtime](path, options, threads, half) for half in (0, 1)])
    return RUNNERS[runtime](path, options, threads)


def with_empty_cache(shapes: Mapping[str, Sequence[Any]], inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The inputs, with an empty one for each cache that the graph takes and they lack: [rows, heads, 0, size], or zeros of the
    graph's own size where it is a state that does not grow."""
    lacking = {name: shape for name, shape in shapes.items() if name not in inputs}
    if not lacking:
        return inputs
    rows = len(next(iter(inputs.values())))
    kept = {name: shape[2] if isinstance(shape[2], int) else 0 for name, shape in lacking.items()}
    empty = {name: np.zeros((rows, lacking[name][1], kept[name], lacking[name][3]), np.float32) for name in lacking}
    return {**inputs, **empty}


def cast_inputs(wanted: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs that a graph takes, in its element types; EdgeError for one that is missing."""
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise EdgeError(f"the graph wants input {missing[0]!r}; it was given {', '.join(sorted(inputs))}")
    return {name: np.ascontiguousarray(inputs[name], dtype=kind) for name, kind in wanted.items()}
