"""Texts to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parts import Pipeline, Sample
from .text import Batch, named_outputs


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """One number float32 (1,) per sample."""
    return list(named_outputs(pipeline, outputs)[0].reshape(len(batch.owner), -1)[:, :1])


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Sample, preprocessor: Any = None) -> float:
    """The number, or the share that a sigmoid makes of it."""
    number = float(prediction[0])
    return 1 / (1 + math.exp(-number)) if pipeline.get("activation") == "sigmoid" else number
