"""Short kernels that show how fast this machine's memory and arithmetic are at best. Loads torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from fmopt.target import Precision

SIDE = 768  # matrices of SIDE × SIDE: large enough to be bound by arithmetic, small enough for the caches
TRIAD_NUMBERS = 16_000_000  # three float32 arrays of 64 MB each: beyond any last-level cache we know of


def measure_bandwidth(seconds: float, threads: int) -> float:
    """GB/s of memory by the STREAM triad a = b + s·c (McCalpin, 1995), which reads two arrays and writes one."""
    with _threads(threads):
        b, c, a = (torch.rand(TRIAD_NUMBERS) for _ in range(3))
        best = _best_seconds(lambda: torch.add(b, c, alpha=3.0, out=a), seconds)
    return round(3 * 4 * TRIAD_NUMBERS / best / 1e9, 1)


def measure_gops(precisions: Sequence[Precision], seconds: float, threads: int) -> dict[Precision, float]:
    """10⁹ operations/s of a matrix product in fp32, bf16 and int8, as far as this machine computes them.

    int8 is unsigned × signed as ONNX Runtime multiplies it (MatMulInteger), since that is what quantized graphs run.
    """
    kernels: dict[Precision, Callable[[], object]] = {"fp32": _product(torch.float32)}
    if "bf16" in precisions:
        kernels["bf16"] = _product(torch.bfloat16)
    operations = 2 * SIDE**3
    with _threads(threads):
        found = {name: operations / _best_seconds(kernel, seconds) / 1e9 for name, kernel in kernels.items()}
    found["int8"] = operations / _best_seconds(_int8_product(threads), seconds) / 1e9
    return {name: round(gops, 1) for name, gops in found.items()}


def _product(dtype: torch.dtype) -> Callable[[], object]:
    a, b = torch.rand(SIDE, SIDE).to(dtype), torch.rand(SIDE, SIDE).to(dtype)
    return lambda: a @ b


def _int8_product(threads: int) -> Callable[[], object]:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.integers(-64, 64, (SIDE, SIDE), dtype=np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weights"], ["y"])],
        "int8",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [SIDE, SIDE])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    return lambda: session.run(None, {"x": x})


def _best_seconds(kernel: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls made in `seconds`: a ceiling is what is possible, not what is usual."""
    kernel()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        begun = time.perf_counter()
        kernel()
        best = min(best, time.perf_counter() - begun)
    return best


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
