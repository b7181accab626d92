"""Maps of classes, one for each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .image import Batch, Pipeline, Preprocessor, read_sample

__all__ = ["Preprocessor", "difference", "postprocess", "present", "read_sample"]


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[bytes]
) -> list[np.ndarray]:
    """One prediction per sample: class numbers uint8 (uint16 where there are more than 256) (height, width) in the size of the
    image."""
    logits = np.asarray(outputs["logits"], dtype=np.float32)
    kind = np.uint8 if logits.shape[1] <= 256 else np.uint16
    return [upsampled(each, *size).argmax(axis=0).astype(kind) for each, size in zip(logits, batch.sizes, strict=True)]


def upsampled(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [C, height, width] of maps [C, h, w] by linear interpolation between the middles of their pixels, as torch's
    interpolate does without align_corners."""
    return _stretched(_stretched(maps, 1, height), 2, width)


def _stretched(maps: np.ndarray, axis: int, size: int) -> np.ndarray:
    had = maps.shape[axis]
    at = np.maximum((np.arange(size, dtype=np.float32) + 0.5) * (had / size) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), had - 1)
    high = np.minimum(low + 1, had - 1)
    share = (at - low).astype(np.float32).reshape([-1 if place == axis else 1 for place in range(3)])
    return maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share


def difference(written: Any, got: np.ndarray) -> float:
    """The share of pixels that have another class; infinite for a map of another size."""
    before = np.asarray(written)
    return float((before != got).mean()) if before.shape == got.shape else float("inf")


def present(pipeline: Pipeline, prediction: np.ndarray, sample: bytes, preprocessor: Any = None) -> dict[str, Any]:
    """A prediction as JSON for people: {"size": [height, width], "segments"} with the "label", the "share" of the image and the
    "mask" of every class that is there. A mask is written as COCO does: how many pixels are out, in, out … going down its
    columns."""
    segments = [
        {"label": pipeline["labels"][number], "share": float((prediction == number).mean()),
         "mask": _run_lengths(prediction == number)}
        for number in np.unique(prediction).tolist()
    ]  # fmt: skip
    return {"size": list(prediction.shape), "segments": segments}


def _run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs
