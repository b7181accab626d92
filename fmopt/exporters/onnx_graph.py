"""Read, edit and write ONNX graphs: the few verbs that passes on graphs share.

Bytes written depend on the graph alone, so that a resumed run ends with the same files as an undisturbed one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

# A protobuf message ends at 2 GiB; weights move to a file beside it well before.
EXTERNAL_FROM_BYTES = 1_500_000_000
_RENAMED = re.compile(r"^(SkipLayerNorm_AddBiasFusion_|SkipLayerNorm_|GemmFusion_|BiasGelu_)+")
_FUSED = re.compile(r"(/+MatMul\w*Fusion)+/?$", re.IGNORECASE)


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model with all weights in memory, external ones included."""
    return onnx.load(str(path))


def write_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Write in canonical bytes; weights go to `<name>.data` beside it when the model is over 1.5 GB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if weight_bytes(model) > EXTERNAL_FROM_BYTES:
        onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data", size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor name → nodes of the main graph that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name → the node of the main graph that makes it."""
    return {name: node for node in graph.node for name in node.output}


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Value name → element type (TensorProto.DataType) of everything in the main graph that inference knows.

    Weights are not copied: they become inputs of the graph that is inferred.
    """
    bare = onnx.GraphProto()
    bare.node.extend(model.graph.node)
    bare.input.extend(model.graph.input)
    bare.output.extend(model.graph.output)
    bare.name = "types"
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in given:
            bare.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=bare)
    for domain in {node.domain for node in bare.node} - {"", "ai.onnx"}:
        add_opset(copy, domain, 1)  # left out by some writers; without it inference refuses the whole graph
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=False, data_prop=False).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: kind for value in values if (kind := value.type.tensor_type.elem_type)}


def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.ascontiguousarray(value), name)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put `nodes`, already in execution order, in place of the graph's own."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def drop_dead(model: onnx.ModelProto) -> None:
    """Remove nodes whose results nobody reads, then initializers nobody reads."""
    needed = {output.name for output in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
            needed.update(captured(node))
    replace_nodes(model.graph, reversed(kept))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def read_bare(path: Path) -> onnx.ModelProto:
    """The model without the weights that lie beside it: read those one at a time with `array_of`."""
    return onnx.load(str(path), load_external_data=False)


def array_of(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """A weight's values, mapped from the file in `folder` where they lie outside the graph."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    given = {entry.key: entry.value for entry in tensor.external_data}
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    place, shape = int(given.get("offset", 0)), tuple(tensor.dims)
    return (
        np.memmap(folder / given["location"], kind, "r", place, shape)
        if shape
        else numpy_helper.to_array(tensor, str(folder))
    )


def take_weights_in(model: onnx.ModelProto, folder: Path) -> None:
    """Read what still lies outside the graph, in place."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(constant(tensor.name, array_of(tensor, folder)))


def constant_products(
    model: onnx.ModelProto, transpose: Callable[[onnx.TensorProto, str], onnx.TensorProto] | None = None
) -> None:
    """Write every product with constant weights as MatMul (and Add) with the weights as they are multiplied, in place.

    GPT-2 has Gemm, and a head that shares the transposed table of embeddings has Transpose: quantizers see neither.
    `transpose` makes the named transposed copy of a weight.
    """
    known, makers = weights(model), producers(model.graph)
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}  # weights → their transposed copy
    copy = transpose or (lambda tensor, name: constant(name, numpy_helper.to_array(tensor).T))

    def transposed(name: str) -> str:
        if name not in made:
            made[name] = f"{name}.transposed"
            model.graph.initializer.append(copy(known[name], made[name]))
        return made[name]

    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in known and _is_plain_gemm(node):
            across = any(one.name == "transB" and one.i for one in node.attribute)
            weight = transposed(node.input[1]) if across else node.input[1]
            added = len(node.input) > 2 and node.input[2]
            product = f"{node.output[0]}.product" if added else node.output[0]
            name = node.name.replace("/Gemm", "/MatMul")
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name))
            if added:
                nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{name}_bias"))
            continue
        maker = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        if maker is not None and maker.op_type == "Transpose" and _swaps_two(maker) and maker.input[0] in known:
            node.input[1] = transposed(maker.input[0])
        nodes.append(node)
    replace_nodes(model.graph, nodes)
    drop_dead(model)


def _is_plain_gemm(node: onnx.NodeProto) -> bool:
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)


def _swaps_two(node: onnx.NodeProto) -> bool:
    return next((list(one.ints) for one in node.attribute if one.name == "perm"), [1, 0]) == [1, 0]


def add_opset(model: onnx.ModelProto, domain: str, version: int) -> None:
    """Declare an operator set, once."""
    if all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, version))


def io_names(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and outputs."""
    return tuple(i.name for i in model.graph.input), tuple(o.name for o in model.graph.output)


def layer_of_name(name: str) -> str:
    """The torch module of a node named `<torch module>/<operator>`, also after a quantizer or fusion has renamed it."""
    plain = _FUSED.sub("", _RENAMED.sub("", name))
    return plain.rsplit("/", 1)[0].strip("/") if "/" in plain else ""


def layer_bytes(path: Path) -> dict[str, int]:
    """Torch module → bytes of its weights as stored in the graph at `path`; "" for those that no module names."""
    model = read_onnx(path)
    readers = consumers(model.graph)
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        home = next((layer for node in readers.get(tensor.name, ()) if (layer := layer_of_name(node.name))), "")
        sizes[home] = sizes.get(home, 0) + numpy_helper.to_array(tensor).nbytes
    return sizes


def precision_of(element_types: Sequence[str]) -> str:
    """The narrowest precision among ONNX element type names that computes: "int8" when any is 8 bit."""
    kinds = set(element_types)
    if kinds & {"int8", "uint8"}:
        return "int8"
    for kind, precision in (("float16", "fp16"), ("bfloat16", "bf16"), ("float", "fp32")):
        if kind in kinds:
            return precision
    return ""


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Silence the advice that ONNX Runtime's quantizers give through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of If and Loop read from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                names.update(inner.input)
                names.update(captured(inner))
            names.update(output.name for output in body.output)
    return names
