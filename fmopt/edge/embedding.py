"""Texts to vectors: pooling as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import EdgeError
from .parts import Pipeline, Sample, cosine_distance
from .text import Batch, named_outputs

POOLING = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
POOLED = "none"  # of a graph that gives vectors of texts by itself


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """One vector float32 (dim,) per sample."""
    states = named_outputs(pipeline, outputs)[0]
    if pipeline.get("pooling") == POOLED:
        return list(states)
    how, normalize = pipeline.get("pooling", "mean"), bool(pipeline.get("normalize"))
    skipped, dimensions = int(pipeline.get("prompt_tokens", 0)), pipeline.get("dimensions")
    return list(pool(states, batch.mask, how, normalize, skipped=skipped, dimensions=dimensions))


def pool(
    hidden: np.ndarray,
    mask: np.ndarray,
    how: str | Sequence[str],
    normalize: bool,
    *,
    skipped: int = 0,
    dimensions: int | None = None,
) -> np.ndarray:
    """Text vectors float32 [rows, size] from token vectors [rows, tokens, width], by one of POOLING or several side by side.

    `skipped` tokens at the beginning of a text, those of a prompt, are read by the network and left out of the vector; of a
    normalized vector the first `dimensions` stay. EdgeError for a mode that is not known.
    """
    begin = mask.argmax(axis=1)  # the first token that is no padding
    places = np.arange(mask.shape[1])[None, :] - begin[:, None]  # of each token in its own text, from 0
    pooled_mask = mask * (places >= skipped) if skipped else mask
    modes = [how] if isinstance(how, str) else list(how)
    vectors = np.concatenate([_pooled(hidden, pooled_mask, places, mode) for mode in modes], axis=1)
    if normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors[:, :dimensions], dtype=np.float32)


def _pooled(hidden: np.ndarray, mask: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    weights = mask[:, :, None].astype(np.float32)
    if mode == "max":
        return np.asarray(np.where(weights > 0, hidden, np.float32(-np.inf)).max(axis=1))
    if mode == "cls":
        return np.asarray(hidden[np.arange(len(hidden)), mask.argmax(axis=1)])
    if mode == "lasttoken":
        return np.asarray(hidden[np.arange(len(hidden)), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)])
    if mode == "weightedmean":  # later tokens, which causal networks let see more, count more
        weights = weights * (places[:, :, None] + 1).astype(np.float32)
    elif mode not in ("mean", "mean_sqrt_len_tokens"):
        raise EdgeError(f"there is no pooling {mode!r}; there are {', '.join(POOLING)}")
    total = np.maximum(weights.sum(axis=1), 1e-9)
    return np.asarray((hidden * weights).sum(axis=1) / (np.sqrt(total) if mode == "mean_sqrt_len_tokens" else total))


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden vectors are compared by."""
    return "cosine distance", cosine_distance


def present(pipeline: Pipeline, prediction: Any, sample: Sample, preprocessor: Any = None) -> list[float]:
    """A vector as a list."""
    return [float(value) for value in prediction]
