"""An OpenVINO graph that generates keeps its keys and values itself, between calls: none is copied in or out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops
from openvino._offline_transformations import (
    apply_make_stateful_transformation,
    stateful_to_stateless_transformation,
)

from fmopt.core.errors import PassError
from fmopt.edge.kv_cache import CACHE_PREFIX, PRESENT

LAST_TWO = [0, 1, 3, 2]  # a transposition of keys


def make_stateful(model: openvino.Model) -> None:
    """Turn ports of the cache into variables, in place, as optimum-intel and OpenVINO GenAI expect them: `beam_idx` int32
    [rows] says which row of the cache each row goes on from. PassError for a graph without a cache that grows."""
    ports = [port for port in model.inputs if port.any_name.startswith(CACHE_PREFIX)]
    if not ports or any(port.partial_shape[2].is_static for port in ports):
        raise PassError("stateful = true is for networks that generate by attention, which have a cache that grows")
    _fuse_attention(model)
    rows = ops.parameter([-1], np.int32, name="beam_idx")
    rows.output(0).set_names({"beam_idx"})
    for port in ports:
        kv_cache = port.get_node()
        readers = list(kv_cache.output(0).get_target_inputs())
        chosen = ops.gather(kv_cache, rows, ops.constant(0, dtype=np.int64))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    names = [port.any_name for port in ports]
    apply_make_stateful_transformation(model, {name: PRESENT + name.removeprefix(CACHE_PREFIX) for name in names})
    _begin_empty(model)
    model.validate_nodes_and_infer_types()


def read_stateless(path: Path) -> openvino.Model:
    """The graph of a file with its cache as ports again, where it keeps that itself: a variable does not state its size."""
    model = openvino.Core().read_model(str(path))
    if any(port.any_name == "beam_idx" for port in model.inputs):
        stateful_to_stateless_transformation(model)
    return model


def _begin_empty(model: openvino.Model) -> None:
    """Variables begin as [rows, heads, 0, size], with as many rows as the first call has."""
    ids = model.input("input_ids")
    count = ops.gather(
        ops.shape_of(ids, output_type="i64"), ops.constant([0], dtype=np.int64), ops.constant(0, dtype=np.int64)
    )
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            axes = op.get_output_partial_shape(0)
            rest = [axis.get_length() if axis.is_static else 0 for axis in list(axes)[1:]]
            shape = ops.concat([count, ops.constant(rest, dtype=np.int64)], axis=0)
            op.set_arguments([ops.broadcast(ops.constant(0.0, dtype=np.float32), shape)])


def _fuse_attention(model: openvino.Model) -> None:
    """MatMul, Multiply, Add, Softmax, MatMul become the one operator whose kernel reads the variables where they lie, in 8
    bits where asked. What looks otherwise stays as it is."""
    for softmax in [op for op in model.get_ordered_ops() if op.get_type_name() == "Softmax"]:
        readers = list(softmax.output(0).get_target_inputs())
        added = softmax.input_value(0).get_node()
        if len(readers) != 1 or readers[0].get_node().get_type_name() != "MatMul" or added.get_type_name() != "Add":
            continue
        scaled, mask = added.input_value(0).get_node(), added.input_value(1)
        if scaled.get_type_name() != "Multiply":
            continue
        product, scale = scaled.input_value(0).get_node(), scaled.input_value(1)
        if product.get_type_name() != "MatMul" or scale.get_node().get_type_name() != "Constant":
            continue
        keys = product.input_value(1).get_node()
        if keys.get_type_name() != "Transpose" or list(keys.input_value(1).get_node().get_vector()) != LAST_TWO:
            continue
        last = readers[0].get_node()
        fused = ops.scaled_dot_product_attention(
            product.input_value(0), keys.input_value(0), last.input_value(1), mask, scale
        )
        fused.set_friendly_name(last.get_friendly_name())
        for reader in list(last.output(0).get_target_inputs()):
            reader.replace_source_output(fused.output(0))
