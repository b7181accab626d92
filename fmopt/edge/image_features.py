"""Vectors of images: what a network pools, of length one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .image import Batch, Pipeline, Preprocessor, read_sample
from .parts import cosine_distance

__all__ = ["Preprocessor", "distance", "postprocess", "present", "read_sample"]


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[bytes]
) -> list[np.ndarray]:
    """One prediction per sample: a vector float32 (dim,) of length one."""
    vectors = np.asarray(outputs["pooler_output"], dtype=np.float32)
    return list(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden predictions are compared by."""
    return "cosine distance", cosine_distance


def present(pipeline: Pipeline, prediction: np.ndarray, sample: bytes, preprocessor: Any = None) -> list[float]:
    """A prediction as JSON: the vector's numbers."""
    return [float(value) for value in prediction]
