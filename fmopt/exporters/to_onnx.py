"""From a network in PyTorch to a graph on disk, and the proof that both compute the same."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.core.model import CheckpointMetadata, Graph, Inputs, axes_of, continues_texts, makes_answers
from fmopt.models.loading import TorchModel
from fmopt.models.wrappers import decoder, seq2seq

OPSET = 20  # the first with Gelu; ONNX Runtime and OpenVINO both know it


EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf ends at 2 GB


# Kinds of rotary positions whose angles depend on how long a text is, with the configuration's name of the length they change at
# and the way out.
SCALED_BY_LENGTH = {
    "dynamic": (
        "max_position_embeddings",
        "set rope_type to 'default' in config.json, which is the same for texts up to that",
    ),
    "longrope": (
        "original_max_position_embeddings",
        "use the checkpoint of the shorter context, which has no such positions",
    ),
}
SCALED_BY_LENGTH["su"] = SCALED_BY_LENGTH["longrope"]  # as it was called first


BLOCK_SPARSE = ("longformer", "big_bird", "bigbird_pegasus", "led", "reformer")


def check_positions(metadata: CheckpointMetadata) -> None:
    """CheckpointError for a network that no graph can hold: its position angles change with a text's length, where a graph keeps
    those it was traced with, or it cuts a text into blocks, whose number a graph keeps."""
    if metadata.model_type in BLOCK_SPARSE:
        raise CheckpointError(
            f"{metadata.source.title}: {metadata.model_type} attends by blocks that it cuts a text into, and an exported graph "
            "would keep their number; take a network with full attention"
        )
    for found in _rotary_settings(metadata.config):
        kind = str(found.get("rope_type") or found.get("type"))
        if kind in SCALED_BY_LENGTH:
            name, way_out = SCALED_BY_LENGTH[kind]
            most = found.get(name) or metadata.config.get(name) or metadata.config.get("max_position_embeddings")
            raise CheckpointError(
                f"{metadata.source.title}: its rotary positions are of the kind {kind!r}, whose angles change when a text is "
                f"longer than {most} tokens, and an exported graph would keep one set of them; {way_out}"
            )


def _rotary_settings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every block of a configuration that says how positions turn, those of its parts too."""
    for name, value in config.items():
        if not isinstance(value, Mapping):
            continue
        if "rope_type" in value or (name == "rope_scaling" and "type" in value):
            yield value
        yield from _rotary_settings(value)


def export_onnx(model: TorchModel, example: Inputs, out: Path, *, file_name: str = "model.onnx") -> Graph:
    """Write `model` as ONNX into the folder `out`, its named axes dynamic; the same model gives the same bytes.

    `example`: arrays of real items, for text int64 [batch, tokens], padded. Only the pipeline's outputs are kept. Nodes are named
    `<torch module>/<operator>` (see `layer_of`). ParityError when the network lacks an output the pipeline names.
    """
    import onnx_ir

    from fmopt.exporters.cleanup import tidy

    outputs = tuple(model.metadata.pipeline["outputs"])
    axes = axes_of(model.metadata.pipeline)
    with heap_at_rest(), linear_rewriting():
        if continues_texts(model.metadata.pipeline):
            program, outputs = _trace_with_cache(model)
            axes = decoder.port_axes(program.graph)
        elif makes_answers(model.metadata.pipeline):
            program, outputs = _trace_parts(model)
            axes = seq2seq.port_axes(program.graph)
        elif "speech" in model.metadata.pipeline:
            program = _trace_speech(model, example)
        else:
            program = _trace(model, example)
        tidy(program, outputs, axes)
    out.mkdir(parents=True, exist_ok=True)
    path = out / file_name
    weights = [value.const_value for value in program.graph.initializers.values()]
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    external = f"{file_name}.data" if size > EXTERNAL_DATA_BYTES else None
    onnx_ir.save(program, path, external_data=external)
    return Graph("onnx", path, tuple(str(value.name) for value in program.graph.inputs), outputs, model.history)


def convert_openvino(graph: Graph, out: Path, *, fp16_weights: bool = False) -> Graph:
    """The same graph as OpenVINO IR: model.xml and model.bin in the folder `out`."""
    from fmopt.exporters.openvino_graph import read_ir, save_ir

    path = save_ir(read_ir(graph.path), out / "model.xml", fp16_weights=fp16_weights)
    return Graph("openvino", path, graph.inputs, graph.outputs, graph.history)


def _trace(model: TorchModel, example: Inputs) -> Any:
    """The exporter's graph as an onnx_ir.Model, unchanged."""
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    axes, inputs = axes_of(model.metadata.pipeline), traceable_inputs(model, example)
    # Named Dims would need the family's largest length spelled out; inferred ones are named afterwards, in tidy.
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {
        name: {place: dynamic for place, size in enumerate(axes[name]) if isinstance(size, str)} for name in inputs
    }
    with quiet(), plain_attention(model.net), _lengths_traced(model.net):
        config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=OPSET)
        net: Any = model.net
        return OnnxExporter().export(net, inputs, config=config).program


def _trace_with_cache(model: TorchModel) -> tuple[Any, tuple[str, ...]]:
    """The graph of a network that generates, its ports named, and the names of its outputs."""
    from onnxscript.optimizer import optimize_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    inputs = decoder.tracing_inputs(model.net, list(model.metadata.pipeline["inputs"]))
    large = sum(parameter.nbytes for parameter in model.net.parameters()) > EXTERNAL_DATA_BYTES
    config = OnnxConfig(dynamic=True, opset_version=OPSET, optimize=not large)
    with plain_attention(model.net), quiet():
        net: Any = model.net
        program = OnnxExporter().export(net, inputs, config=config).program
        if (
            large
        ):  # as else, but no weight is turned: that copies it, and a network of 1.1B parameters twice is too much
            optimize_ir(program, should_fold=lambda node: False if node.op_type == "Transpose" else None)
    decoder.name_ports(program.graph)
    return program, tuple(str(value.name) for value in program.graph.outputs)


def _trace_parts(model: TorchModel) -> tuple[Any, tuple[str, ...]]:
    """The graph of a network's two parts, its ports named, and the names of its outputs."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    net: Any = model.net
    with (
        plain_attention(net),
        quiet(),
        seq2seq.both_halves(net, list(model.metadata.pipeline["inputs"])) as (inputs, shapes),
    ):
        config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=OPSET)
        program = OnnxExporter().export(net, inputs, config=config).program
    seq2seq.name_ports(program.graph)
    return program, tuple(str(value.name) for value in program.graph.outputs)


def _trace_speech(model: TorchModel, example: Inputs) -> Any:
    """The graph of a network for speech synthesis, joined of the two parts that can be traced."""
    from fmopt.models.wrappers import speech_synthesis

    inputs = traceable_inputs(model, example)
    with quiet():
        return speech_synthesis.trace(model.net, inputs, OPSET)


def traceable_inputs(model: TorchModel, example: Inputs) -> dict[str, Any]:
    """The pipeline's inputs as tensors that show which of their axes vary."""
    import torch

    axes = axes_of(model.metadata.pipeline)
    return {name: torch.from_numpy(_traceable(example[name], axes[name])) for name in axes}


def _traceable(array: np.ndarray, axes: Sequence[str | int]) -> np.ndarray:
    """At least 2 rows, and 8 along other named axes: one of length 1 would be taken for a constant. Values repeat."""
    least = {place: 2 if axis == "batch" else 8 for place, axis in enumerate(axes) if isinstance(axis, str)}
    sizes = [max(size, least.get(place, 1)) for place, size in enumerate(array.shape)]
    tiled = np.tile(array, [-(-wanted // size) for wanted, size in zip(sizes, array.shape, strict=True)])
    return np.ascontiguousarray(tiled[tuple(map(slice, sizes))])


@contextlib.contextmanager
def plain_attention(net: Any) -> Iterator[None]:
    """Trace attention as MatMul, Softmax, MatMul. The other form adds a check for rows without any attended key, at
    every layer, which no item has and no runtime fuses."""
    # Each part of a network has a configuration of its own, and a backbone may know no other form than this.
    configs = {id(module.config): module.config for module in net.modules() if hasattr(module, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    net.set_attn_implementation("eager")
    try:
        yield
    finally:
        for config, attention in before:
            if attention:
                config._attn_implementation = attention


@contextlib.contextmanager
def _lengths_traced(net: Any) -> Iterator[None]:
    """Let `len(tensor)` in the network's own file (RT-DETR counts its batch so) be a length that varies: the builtin must
    give a plain int, which would fix it to the example's."""
    import torch

    file = sys.modules[type(net).__module__]
    vars(file)["len"] = lambda value: value.shape[0] if isinstance(value, torch.Tensor) else len(value)
    try:
        yield
    finally:
        del vars(file)["len"]


@contextlib.contextmanager
def heap_at_rest() -> Iterator[None]:
    """The garbage collector looks at new objects only. Tracing makes millions of them, and to look through all that the libraries
    hold beside them again and again takes a tenth of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def linear_rewriting() -> Iterator[None]:
    """Try the rewriting rules of several outputs only at nodes like their first: onnxscript lists all nodes of the graph before
    it looks at that one, which takes minutes of a network of 30 layers, and finds the same."""
    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES

    changed: list[Any] = []
    for rule in _DEFAULT_REWRITE_RULES:
        matcher: Any = getattr(rule, "_matcher", None)
        pattern = getattr(matcher, "pattern", None)
        if pattern is None or pattern.has_single_output_node:
            continue
        matcher.match = _beginning_with(pattern.output_nodes[0].op_identifier(), matcher.match)
        changed.append(matcher)
    try:
        yield
    finally:
        for matcher in changed:
            del matcher.match


def _beginning_with(first: tuple[str, ...] | None, match: Callable[..., Any]) -> Callable[..., Any]:
    """A matcher's method that matches nothing at other nodes."""

    def matched(model: Any, graph: Any, node: Any, **options: Any) -> Any:
        return None if first is not None and node.op_identifier() != first else match(model, graph, node, **options)

    return matched


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines of exporters off the terminal; exceptions pass."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
