"""Boxes around what an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .image import Batch, Pipeline, Preprocessor, read_sample

__all__ = [
    "Preprocessor",
    "add_arguments",
    "answer",
    "difference",
    "options_of",
    "postprocess",
    "present",
    "read_sample",
]

MOST_BOXES, LEAST_SCORE = 100, 0.01  # of an image, as COCO judges; scores below it are of no use to anyone


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[bytes]
) -> list[np.ndarray]:
    """One prediction per sample: boxes float32 (n, 6), the best first: class, score, x1, y1, x2, y2 in pixels of the image."""
    logits = np.asarray(outputs["logits"], dtype=np.float32)
    boxes = np.asarray(outputs["pred_boxes"], dtype=np.float32)
    several = logits.shape[-1] == len(pipeline["labels"])
    return [detections(*each, several) for each in zip(logits, boxes, batch.sizes, strict=True)]


def detections(logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], several: bool) -> np.ndarray:
    """float32 (n, 6) of logits [queries, classes] and boxes [queries, 4] (middle, width and height as shares of the image).

    DETR and YOLOS give each query one class, the last of which is "nothing"; with `several`, each class of each query is a
    detection of its own, as in RT-DETR.
    """
    if several:
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        query, number = (part.ravel() for part in np.indices(scores.shape))
        score = scores.ravel()
    else:
        shares = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        shares = (shares / shares.sum(axis=-1, keepdims=True))[:, :-1]
        query, number, score = np.arange(len(shares)), shares.argmax(axis=-1), shares.max(axis=-1)
    best = np.argsort(-score, kind="stable")[:MOST_BOXES]
    best = best[score[best] >= LEAST_SCORE]
    middle, half = boxes[query[best], :2], boxes[query[best], 2:] / 2
    height, width = size
    corners = np.concatenate([middle - half, middle + half], axis=1) * np.array([width, height] * 2, dtype=np.float32)
    return np.column_stack([number[best], score[best], corners]).astype(np.float32)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), as x1, y1, x2, y2."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(part[:, 2:] - part[:, :2], 0, None).prod(axis=-1) for part in (first, second)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))


def difference(written: Any, got: np.ndarray) -> float:
    """The largest change of a score, a box that moved counting as its score times the part that is not shared."""
    sides = np.asarray(written, dtype=np.float64).reshape(-1, 6), got.astype(np.float64).reshape(-1, 6)
    return max(_moved(*sides), _moved(*sides[::-1]))


def _moved(boxes: np.ndarray, others: np.ndarray) -> float:
    """The largest gap of a box to the other that is most like it; one alone counts as much as its score."""
    gaps = boxes[:, 1].copy()
    if len(boxes) and len(others):
        scores = np.abs(boxes[:, None, 1] - others[None, :, 1])
        away = boxes[:, None, 1] * (1 - overlaps(boxes[:, 2:], others[:, 2:]))
        alike = boxes[:, None, 0] == others[None, :, 0]
        gaps = np.minimum(gaps, np.where(alike, np.maximum(scores, away), np.inf).min(axis=1))
    return float("inf") if np.isnan(gaps).any() else float(gaps.max(initial=0.0))


def answer(model: Any, samples: Sequence[bytes], threshold: float | None = None) -> list[Any]:
    """What people read for each image. `threshold` is the least score of a box that is given, by default the pipeline's.
    ValueError when it is no share."""
    pipeline = model.pipeline
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold of {threshold:g} is no share; give one from 0 to 1")
        pipeline = {**pipeline, "threshold": threshold}
    return [present(pipeline, got, sample) for got, sample in zip(model.predict(samples), samples, strict=True)]


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside images."""
    parser.add_argument("--threshold", type=float, help="the least score of a box to tell (0.5)")


def options_of(asked: Any) -> dict[str, Any]:
    """The settings in parsed arguments."""
    return {} if asked.threshold is None else {"threshold": asked.threshold}


def present(
    pipeline: Pipeline, prediction: np.ndarray, sample: bytes, preprocessor: Any = None
) -> list[dict[str, Any]]:
    """A prediction as JSON for people: a list of {"label", "score", "box"}, the box as {"xmin", "ymin", "xmax", "ymax"} in
    pixels, as transformers' pipeline gives them."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"label": pipeline["labels"][int(row[0])], "score": row[1], "box": dict(zip(corners, row[2:], strict=True))}
        for row in prediction.tolist()
        if row[1] >= pipeline["threshold"]
    ]
