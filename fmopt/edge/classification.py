"""Texts to labels: logits of an item, and their shares for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parts import Pipeline, Sample, present_scores
from .text import Batch, named_outputs, softmax


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """Logits float32 (classes,) per sample."""
    return list(named_outputs(pipeline, outputs)[0])


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Sample, preprocessor: Any = None) -> dict[str, Any]:
    """{"label", "score", "scores"}, with "labels" above one half when several may hold."""
    several = bool(pipeline.get("multi_label"))
    shares = 1 / (1 + np.exp(-prediction.astype(np.float64))) if several else softmax(prediction)
    labels = list(pipeline.get("labels") or [f"LABEL_{index}" for index in range(len(prediction))])
    shown = present_scores(labels, shares.tolist())
    if several:
        shown["labels"] = [label for label, share in zip(labels, shares, strict=True) if share >= 0.5]
    return shown
