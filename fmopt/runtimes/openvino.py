"""OpenVINO on a CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fmopt.core.errors import PassError
from fmopt.core.model import Artifact, CheckpointMetadata, Graph, Runner
from fmopt.core.plugins import did_you_mean
from fmopt.core.results import OpTime
from fmopt.core.target import Target
from fmopt.edge import runners
from fmopt.edge.kv_cache import shorten
from fmopt.runtimes.base import opening_options, unfit

PROFILED_RUNS, WARM_UP_RUNS = 12, 3
PRECISIONS = {"f32": "fp32", "bf16": "bf16"}  # OpenVINO's word -> the target's
SHAPES = ("shape", "buckets", "rows", "pad")  # options of what it is compiled for
CACHES = ("f32", "u8")  # how keys and values are kept between calls
OPTIONS = ("precision", "fp16_weights", "shape", "buckets", "rows", "pad", "stateful", "kv_cache")


class OpenVino:
    """Runs IR made from ONNX graphs.

    Options: `precision` "f32" (default) or "bf16", what float operators compute in; `fp16_weights` stores them in half;
    `shape`, of its inputs ([batch, tokens] for texts), is compiled for on its own, where element-wise chains fuse (MiniLM
    at 1 × 128: 6 % faster); `buckets` are lengths that texts of `rows` (1) at once are padded to, with `pad` values by input,
    and that it is compiled for one by one (see `length_buckets`). `stateful` lets a network that generates keep its keys and
    values itself, in `kv_cache` "f32" (default) or "u8".
    """

    name = "openvino"
    format = "onnx"
    opening = ("precision", "shape", "buckets", "rows", "pad", "kv_cache")
    lossy = ("precision", "fp16_weights", "kv_cache")  # options by which full precision is less

    def missing(self) -> str | None:
        """None when the package is installed."""
        return None if find_spec("openvino") else "openvino is not installed: pip install openvino"

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime, option or precision the target does not have."""
        if reason := unfit(self.name, OPTIONS, target, options):
            return reason
        precision = options.get("precision", "f32")
        if precision not in PRECISIONS:
            return f"{self.name} has no precision {precision!r}{did_you_mean(str(precision), PRECISIONS)}"
        if PRECISIONS[precision] not in target.precisions:
            return f"{target.name} does not compute in {PRECISIONS[precision]}"
        if options.get("kv_cache", "f32") not in CACHES:
            return f"{self.name} has no kv_cache {options['kv_cache']!r}; it has {', '.join(CACHES)}"
        if not isinstance(options.get("stateful", False), bool):
            return f"{self.name} option 'stateful' is {options['stateful']!r}; it is true or false"
        if "kv_cache" in options and not options.get("stateful"):
            return (
                f"{self.name} option 'kv_cache' says how a graph keeps keys and values itself; give stateful = true too"
            )
        if reason := _unfit_buckets(options):
            return reason
        shape = options.get("shape", [1, 1])
        if not (
            isinstance(shape, list | tuple) and len(shape) >= 2 and all(isinstance(n, int) and n > 0 for n in shape)
        ):
            return f"{self.name} option 'shape' is {shape!r}; it is [batch, tokens], for example [1, 128]"
        return None

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """IR in `out`, the same bytes for the same graph."""
        from fmopt.exporters.openvino_graph import read_ir, save_ir
        from fmopt.exporters.openvino_stateful import make_stateful

        if not isinstance(source, Graph) or source.format == "torch":
            raise PassError(f"{self.name} builds from an ONNX or OpenVINO graph, not from a checkpoint")
        fp16 = bool(options.get("fp16_weights", False))
        model = read_ir(source.path)
        kept = {"precision": options.get("precision", "f32"), **opening_options(source)}
        if options.get("stateful"):
            make_stateful(model)
            kept["stateful"] = True
        path = save_ir(model, out / "model.xml", fp16_weights=fp16)
        return Artifact(self.name, path, kept | {name: options[name] for name in SHAPES if name in options})

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The runner that bundles use."""
        runner: Runner = runners.open_runner(self.name, artifact.path, dict(artifact.options), threads)
        return runner

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Median milliseconds per executed node, slowest first; `kind` is operator/kernel."""
        import openvino

        from fmopt.exporters.openvino_stateful import read_stateless
        from fmopt.measurement.roofline.executed_work import openvino_work

        properties = {
            "PERF_COUNT": True,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": str(artifact.options.get("precision", "f32")),
        }
        half = runners.part_for(inputs) if artifact.options.get(runners.ENCODER_DECODER) else None
        shape = artifact.options.get("shape")
        if bucket := runners.bucket_for(artifact.options, next(iter(inputs.values())).shape):
            inputs, shape = runners.padded(inputs, bucket[1], artifact.options.get("pad", {})), bucket
        model = runners.read_openvino(artifact.path, shape, half)
        if stateful := bool(artifact.options.get("stateful")):
            properties["KV_CACHE_PRECISION"] = str(artifact.options.get("kv_cache", "f32"))
            inputs = {**inputs, "beam_idx": np.arange(len(inputs["input_ids"]))}
        compiled = openvino.Core().compile_model(model, "CPU", properties)
        request = compiled.create_infer_request()
        feed = {port.any_name: inputs[port.any_name] for port in compiled.inputs}
        kv_cache = feed["attention_mask"].shape[1] - feed["input_ids"].shape[1] if stateful else 0
        if kv_cache:
            request.infer(_tokens(feed, kv_cache))
        samples: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for turn in range(WARM_UP_RUNS + PROFILED_RUNS):
            if stateful and turn:
                shorten(request, kv_cache)
            request.infer(feed, share_inputs=True)
            for op in request.profiling_info if turn >= WARM_UP_RUNS else ():
                samples[op.node_name, op.node_type, op.exec_type].append(op.real_time.total_seconds() * 1000)
        # Only after a run does the compiled graph tell shapes in numbers.
        model = read_stateless(artifact.path) if stateful else model
        model.reshape({port.any_name: _sizes(port, feed, kv_cache) for port in model.inputs})
        work = openvino_work(compiled.get_runtime_model(), model)
        times = [_op_time(*key, median(taken), work.get(key[0])) for key, taken in samples.items()]
        return sorted((op for op in times if op.ms > 0), key=lambda op: -op.ms)


def _unfit_buckets(options: Mapping[str, Any]) -> str | None:
    """Why the option `buckets` cannot be used as it is; None when it can, or is not there."""
    buckets = options.get("buckets")
    if buckets is None:
        return None
    lengths = list(buckets) if isinstance(buckets, list | tuple) else []
    if not lengths or not all(isinstance(n, int) and n > 0 for n in lengths) or sorted(set(lengths)) != lengths:
        return f"openvino option 'buckets' is {buckets!r}; it is a list of rising lengths, for example [16, 32, 64]"
    if options.get("shape") or options.get("stateful"):
        return "openvino option 'buckets' is for graphs without 'shape' and 'stateful'; leave one of them out"
    return None


def _tokens(feed: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Inputs that are like `feed` for so many tokens without a cache; which tokens they are does not matter."""
    rows = len(feed["input_ids"])
    whole = {"input_ids": np.zeros((rows, count), np.int64), "attention_mask": np.ones((rows, count), np.int64),
             "position_ids": np.tile(np.arange(count), (rows, 1)), "beam_idx": np.arange(rows)}  # fmt: skip
    return {name: whole[name].astype(value.dtype) for name, value in feed.items()}


def _sizes(port: Any, feed: Mapping[str, np.ndarray], kv_cache: int) -> list[int]:
    """Of an input, as it was in a run; of a cache that the graph keeps itself, after so many tokens."""
    if port.any_name in feed:
        return list(feed[port.any_name].shape)
    free = (len(feed["input_ids"]), 0, kv_cache, 0)
    return [axis.get_length() if axis.is_static else size for axis, size in zip(port.partial_shape, free, strict=True)]


def _op_time(name: str, kind: str, kernel: str, ms: float, work: tuple[float, float] | None) -> OpTime:
    implementation, _, element = kernel.rpartition("_")
    precision = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}.get(element.lower(), "")
    layer = name.rsplit("/", 1)[0] if "/" in name else ""
    operations, moved = work or (None, None)
    return OpTime(
        name=name, kind=f"{kind}/{implementation or kernel}", ms=ms, precision=precision, layer=layer,
        operations=operations, bytes=moved,
    )  # fmt: skip


RUNTIME = OpenVino()
