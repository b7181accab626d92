"""Texts to vectors: pooling as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parts import EdgeError, Pipeline, Sample
from .text import Batch, named_outputs


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """One vector float32 (dim,) per sample."""
    states = named_outputs(pipeline, outputs)[0]
    return list(pool(states, batch.mask, pipeline.get("pooling", "mean"), bool(pipeline.get("normalize"))))


def pool(hidden: np.ndarray, mask: np.ndarray, how: str, normalize: bool) -> np.ndarray:
    """Sentence vectors float32 [rows, dim] from token vectors [rows, tokens, dim], as sentence-transformers pools."""
    weights = mask[:, :, None].astype(np.float32)
    if how == "mean":
        pooled = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    elif how == "max":
        pooled = np.where(weights > 0, hidden, np.float32(-np.inf)).max(axis=1)
    elif how == "cls":
        pooled = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]  # the first token that is no padding
    else:
        raise EdgeError(f"there is no pooling {how!r}; there are mean, cls, max")
    if normalize:
        pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(pooled, dtype=np.float32)


def present(pipeline: Pipeline, prediction: Any, sample: Sample, preprocessor: Any = None) -> list[float]:
    """A vector as a list."""
    return [float(value) for value in prediction]
