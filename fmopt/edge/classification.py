"""Texts to labels: logits of an item, and their shares for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parts import Pipeline, Sample, present_classes
from .text import Batch, named_outputs


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """Logits float32 (classes,) per sample."""
    return list(named_outputs(pipeline, outputs)[0])


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Sample, preprocessor: Any = None) -> dict[str, Any]:
    """{"label", "score", "scores"}, with "labels" above one half when several may hold."""
    return present_classes(pipeline, prediction)
