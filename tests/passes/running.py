"""Run graphs in tests and compare what they compute."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from fmopt.core.model import Inputs


def run(path: Path, inputs: Inputs) -> np.ndarray:
    """The first output of an ONNX graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


def run_openvino(path: Path, inputs: Inputs) -> np.ndarray:
    """The first output of an IR or ONNX graph."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(dict(inputs))[0])


def kinds(path: Path) -> Counter[str]:
    """How often each operator occurs in the file."""
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine between rows of the last axis."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
