"""The numbers of a half-precision graph without half-precision kernels: computed in fp32, rounded after each operator.

ONNX Runtime's CPU has few fp16 kernels and hardly any bf16 ones: it would refuse the graph, or keep whole chains in fp32
and look better than the device. Here every value that the graph holds in half is rounded to half. Fused kernels round less
often than that, so a device loses no more than what is found here, up to the order of its sums.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.exporters.half_precision import MOVES
from fmopt.exporters.onnx_graph import constant, element_types, replace_nodes

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of fp32 kernels that computes what `model` does where it holds fp16 or bf16; its inputs and outputs stay."""
    rounded = {name: kind for name, kind in element_types(model).items() if kind in HALF_TYPES}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    for tensor in made.graph.initializer:
        if tensor.data_type in HALF_TYPES:
            tensor.CopyFrom(constant(tensor.name, numpy_helper.to_array(tensor).astype(np.float32)))
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        nodes.append(node)
        to = next((attribute for attribute in node.attribute if attribute.name == "to"), None)
        if node.op_type == "Cast" and to is not None and to.i in HALF_TYPES:
            to.i = TensorProto.FLOAT
        if node.op_type in MOVES:
            continue  # nothing new is to be rounded
        for place, name in enumerate(node.output):
            if name in rounded:
                node.output[place] = f"{name}.exact"
                nodes.append(
                    helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], f"{name}/round", to=rounded[name])
                )
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}/back", to=TensorProto.FLOAT))
    replace_nodes(made.graph, nodes)
    return made


def has_half(model: onnx.ModelProto) -> bool:
    """Whether a graph computes anything in fp16 or bf16."""
    return any(kind in HALF_TYPES for kind in element_types(model).values())
