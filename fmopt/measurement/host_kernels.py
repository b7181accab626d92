"""Short kernels that show how fast this machine's memory and arithmetic are at best. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fmopt.core.target import Precision
from fmopt.edge.board.interleaved import best_seconds

SIDE = 768  # matrices of SIDE × SIDE: large enough to be bound by arithmetic, small enough for the caches
TRIAD_NUMBERS = 16_000_000  # three float32 arrays of 64 MB each: beyond any last-level cache we know of


def measure_bandwidth(seconds: float, threads: int) -> float:
    """GB/s of memory by the STREAM triad a = b + s·c (McCalpin, 1995), which reads two arrays and writes one.

    The better of one thread and `threads`: one core alone may not fill the memory, several wait for a busy neighbour.
    """
    b, c, a = (torch.rand(TRIAD_NUMBERS) for _ in range(3))
    best = float("inf")
    for count in sorted({1, threads}):
        with _threads(count):
            best = min(best, best_seconds(lambda: torch.add(b, c, alpha=3.0, out=a), seconds))
    return round(3 * 4 * TRIAD_NUMBERS / best / 1e9, 1)


def measure_gops(precisions: Sequence[Precision], seconds: float) -> dict[Precision, float]:
    """10⁹ operations/s of one core in a matrix product, in fp32, bf16 and int8 as far as this machine computes them.

    One core, because threads of one product wait for each other: a single busy neighbour would halve the ceiling of
    all. fp32 and int8 (unsigned × signed, MatMulInteger) as ONNX Runtime multiplies them, bf16 as PyTorch does.
    """
    kernels: dict[Precision, Callable[[], object]] = {"fp32": _onnx_product("MatMul")}
    if "bf16" in precisions:
        kernels["bf16"] = _bf16_product()
    kernels["int8"] = _onnx_product("MatMulInteger")
    with _threads(1):
        return {name: round(2 * SIDE**3 / best_seconds(kernel, seconds) / 1e9, 1) for name, kernel in kernels.items()}


def _bf16_product() -> Callable[[], object]:
    a, b = torch.rand(SIDE, SIDE).bfloat16(), torch.rand(SIDE, SIDE).bfloat16()
    return lambda: a @ b


def product_model(operator: str) -> bytes:
    """An ONNX graph x · weights: "MatMul" of floats, or "MatMulInteger" of uint8 × int8; SIDE × SIDE both."""
    from onnx import TensorProto, helper, numpy_helper

    integer = operator == "MatMulInteger"
    weights = np.random.default_rng(0).integers(-64, 64, (SIDE, SIDE)).astype(np.int8 if integer else np.float32)
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "weights"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [SIDE, SIDE])],
        [helper.make_tensor_value_info("y", kinds[1], [SIDE, SIDE])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _onnx_product(operator: str) -> Callable[[], object]:
    """x · weights by one thread of ONNX Runtime."""
    import onnxruntime as ort

    kind = np.uint8 if operator == "MatMulInteger" else np.float32
    x = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE)).astype(kind)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(product_model(operator), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
