"""PyTorch: eager on a CPU, what a user has before anything is done; on an NVIDIA GPU also compiled or as CUDA graphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt.core.errors import PassError, UnmeasuredError
from fmopt.core.model import Artifact, CheckpointMetadata, Graph, Runner
from fmopt.core.plugins import did_you_mean
from fmopt.core.results import OpTime
from fmopt.core.target import Target
from fmopt.edge.host import ForkSafeLock
from fmopt.edge.runners import CACHE_PREFIX
from fmopt.edge.seq2seq import SOURCE_MASK
from fmopt.models.structure import load_network
from fmopt.models.wrappers import decoder, seq2seq
from fmopt.runtimes.base import unfit
from fmopt.tasks.base import find_task

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILED_RUNS, WARM_UP_RUNS = 12, 3
CHOICES = {
    "dtype": ("fp32", "fp16", "bf16"),
    "device": ("cpu", "cuda"),
    "mode": ("eager", "compile", "cuda_graph"),
    "quantize": ("int8", "fp8"),  # by torchao: weights per channel, activations per token when they are seen
}
OPTIONS = ("auto_class", *CHOICES)


class Torch:
    """Runs the checkpoint as it is. Options: `dtype`, "fp32" (default) or "bf16"; `auto_class`, found from the task.

    On GPUs `device` is "cuda", `dtype` may be "fp16", `mode` "eager" (default), "compile" or "cuda_graph" (kernels
    recorded once for each shape), and `quantize` "int8" or "fp8".
    """

    name = "torch"
    format = "torch"
    opening: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """None when the package is installed."""
        return None if find_spec("torch") else "torch is not installed: pip install torch"

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime, option or precision the target does not have."""
        if reason := unfit(self.name, OPTIONS, target, options):
            return reason
        for name, known in CHOICES.items():
            if name in options and options[name] not in known:
                return f"{self.name} has no {name} {options[name]!r}{did_you_mean(str(options[name]), known)}"
        dtype, on_gpu = options.get("dtype", "fp32"), options.get("device") == "cuda"
        if on_gpu and target.kind != "gpu":
            return f"{target.name} has no CUDA device"
        for name, value in (("dtype", "fp16"), ("mode", "compile"), ("mode", "cuda_graph"), ("quantize", None)):
            if not on_gpu and (options.get(name) == value if value else name in options):
                return f"{self.name} option {name} = {options[name]!r} is for GPUs; give device = 'cuda' too"
        if "quantize" in options and not find_spec("torchao"):
            return "quantize needs torchao: pip install torchao"
        return None if dtype in target.precisions else f"{target.name} does not compute in {dtype}"

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """The checkpoint's own folder; nothing is written."""
        if isinstance(source, Graph):
            raise PassError(f"{self.name} runs a checkpoint, not a graph; choose onnxruntime or openvino for passes")
        metadata = {"auto_class": find_task(source.task).auto_class, "dtype": "fp32", **options}
        return Artifact(self.name, source.folder, metadata)

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The network on its device, in its mode; UnmeasuredError when that device is not here."""
        return TorchRunner(artifact, threads)

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Milliseconds per kind of operator and run (mean; the profiler of torch keeps no more), slowest first."""
        import torch

        runner = TorchRunner(artifact, threads)
        for _ in range(WARM_UP_RUNS):
            runner.run(inputs)
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # its library reports every start and stop on stderr
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(PROFILED_RUNS):
                runner.run(inputs)
        precision = str(artifact.options.get("dtype", "fp32"))
        times = [
            OpTime(
                name=entry.key,
                kind=entry.key.removeprefix("aten::"),
                ms=entry.self_cpu_time_total / 1000 / PROFILED_RUNS,
                precision=precision,
            )
            for entry in profiler.key_averages()
        ]
        return sorted((op for op in times if op.ms > 0), key=lambda op: -op.ms)


class TorchRunner:
    """A network in inference mode, one call at a time: some networks keep what a call computes (frequencies of positions,
    buffers of CUDA graphs). The number of threads is a setting of the whole process: it is set for each run, and put back."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        options = artifact.options
        self.device = str(options.get("device", "cpu"))
        if self.device == "cuda":
            _need_gpu()
        net: Any = load_network(artifact.path, str(options["auto_class"]), str(options.get("dtype", "fp32")))
        self.net: Any = on_device(net, self.device, options.get("quantize"))
        self.call = MODES[str(options.get("mode", "eager"))](self.net)
        self.threads, self.process, self.lock = threads, os.getpid(), ForkSafeLock()
        self.parts = seq2seq.EncoderDecoder(self.net) if seq2seq.is_encoder_decoder(self.net) else None
        self.names = _input_names(self.net) | {SOURCE_MASK}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, as fp32; inputs the network does not take are ignored."""
        # OpenMP's workers are not in a forked child, and waiting for them would never end.
        threads = self.threads if os.getpid() == self.process else 1
        with self.lock, _threads(threads):
            return self._outputs(inputs)

    def _outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        if self.parts is not None:
            return self.parts.run({name: inputs[name] for name in inputs if name in self.names or "." in name})
        feed = {
            name: torch.from_numpy(np.asarray(inputs[name])).to(self.device)
            for name in inputs
            if name in self.names or name.startswith(CACHE_PREFIX)
        }
        feed = {name: given.to(self.net.dtype) if given.is_floating_point() else given for name, given in feed.items()}
        with torch.inference_mode():
            outputs = self.call(feed)
        found = {
            name: value.float().cpu().numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)
        }
        return found | decoder.cache_tensors(outputs.get("past_key_values"))

    def close(self) -> None:
        """Forget the network."""
        self.net = self.call = None  # type: ignore[assignment]


def on_device(net: Any, device: str, quantize: str | None = None) -> Any:
    """The network moved to a device, its Linears quantized there where `quantize` says "int8" or "fp8"."""
    net = net.to(device)
    if quantize is not None:
        from torchao import quantization

        kinds = {
            "int8": quantization.Int8DynamicActivationInt8WeightConfig,
            "fp8": quantization.Float8DynamicActivationFloat8WeightConfig,
        }
        quantization.quantize_(net, kinds[quantize]())
    return net


def eager(net: Any) -> Callable[[Mapping[str, Any]], Any]:
    """A call of the network on named tensors; those of a cache become its cache."""

    def call(tensors: Mapping[str, Any]) -> Any:
        feed = {name: tensor for name, tensor in tensors.items() if not name.startswith(CACHE_PREFIX)}
        if kv_cache := decoder.cache_of(tensors, net.dtype):
            feed["past_key_values"] = kv_cache
        return net(**feed, return_dict=True)

    return call


def compiled(net: Any, **options: Any) -> Callable[[Mapping[str, Any]], Any]:
    """`eager`, compiled for each shape when it comes; `options` as torch.compile takes them."""
    import torch

    return torch.compile(eager(net), dynamic=False, **options)


class CudaGraphs:
    """`eager` with the kernels of each shape recorded once and started together, so that no time goes to starting them.

    What a call returns is overwritten by the next one of that shape.
    """

    def __init__(self, net: Any) -> None:
        self.call = eager(net)
        self.recorded: dict[Any, tuple[Any, dict[str, Any], Any]] = {}

    def __call__(self, tensors: Mapping[str, Any]) -> Any:
        """The network's outputs for named tensors on the GPU."""
        key = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items()))
        if key not in self.recorded:
            self.recorded[key] = self._record(tensors)
        graph, held, outputs = self.recorded[key]
        for name, tensor in tensors.items():
            held[name].copy_(tensor)
        graph.replay()
        return outputs

    def _record(self, tensors: Mapping[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        import torch

        held = {name: tensor.clone() for name, tensor in tensors.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate in their first calls, which cannot be recorded
            for _ in range(WARM_UP_RUNS):
                self.call(held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.call(held)
        return graph, held, outputs


MODES: dict[str, Callable[[Any], Callable[[Mapping[str, Any]], Any]]] = {
    "eager": eager,
    "compile": compiled,
    "cuda_graph": CudaGraphs,
}


def _need_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UnmeasuredError(
            "PyTorch finds no NVIDIA GPU here; run this on the device, or take the option device away"
        )


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """So many threads of the process meanwhile: what trains or prunes in it afterwards has its own number again."""
    import torch

    before = torch.get_num_threads()
    if before != wanted:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if before != wanted:
            torch.set_num_threads(before)


def _input_names(net: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(net.forward).parameters)


RUNTIME = Torch()
