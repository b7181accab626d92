"""Object detection: boxes around the things in an image, each with a class and a score."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.detection import overlaps
from fmopt.tasks.base import Change, Item, Output, Task, Usage, class_names, label_index, labelled

SHOWN_SCORE = 0.5  # of a detected box, as transformers' pipeline has it
HIT = 0.5  # intersection over union from which a box counts as found, as in Pascal VOC


class ObjectDetection(Task):
    """Boxes (class, score, x1, y1, x2, y2) of an image, in its pixels; judged by how many true ones they find."""

    name = "object-detection"
    modality = "image"
    auto_class = "AutoModelForObjectDetection"
    architectures = ("ForObjectDetection",)
    columns: Mapping[str, tuple[str, ...]] = {
        "image": ("image", "images", "img", "picture", "file", "file_name", "path"),
        "boxes": ("boxes", "bboxes"),
        "classes": ("classes", "box_labels", "class_labels", "categories", "labels"),
    }
    needed = (("image",),)
    output = Output.BOXES
    outputs = ("logits", "pred_boxes")
    shown_by, shown_alone = ("boxes",), True
    usage = Usage("picture.png", "boxes around what is in it, in its pixels; --threshold 0.5 is the least score")
    class_role = "classes"
    has_classes = True

    def label_names(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Names of the classes of all boxes; one class is enough. DataError when there is no box at all."""
        if not any(row.get("classes") for row in rows):
            raise DataError("no train row has a box with its class, so there is nothing to learn")
        return class_names(rows, "classes", fewest=1)

    def pipeline_entries(self, folder: Path, config: Any) -> dict[str, Any]:
        """The least score of a box that people are shown."""
        return {"threshold": SHOWN_SCORE}

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row, its label float64 (boxes, 5): class, x1, y1, x2, y2 in pixels. DataError on a box that is none,
        or of a class that the model does not have."""
        labels = metadata.pipeline.get("labels") or []
        return [Item(number, row["image"], _boxes(row, labels, number)) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """mAP@0.5 over all boxes and F1 of those that people are shown; the same F1 with the baseline's for truth."""
        classes, least = len(metadata.pipeline["labels"]), float(metadata.pipeline["threshold"])
        found = []
        if labelled(items):
            pairs = list(zip(predictions, (item.label for item in items), strict=True))
            ranked = [_ranked(got, true, classes) for got, true in pairs]
            shown = [_counts(_shown(got, least), true) for got, true in pairs]
            found = [
                Scores(name="mAP@0.5", metric="mean_ap", values=ranked, primary=True),
                Scores(name=f"F1 of boxes above {least:g}", metric="micro_f1", values=shown),
            ]
        if baseline is not None:
            reference = [_as_truth(_shown(each, least)) for each in baseline]
            same = [_counts(_shown(got, least), true) for got, true in zip(predictions, reference, strict=True)]
            found.append(
                Scores(
                    name="boxes as the baseline's", metric="micro_f1", values=same, against_baseline=True,
                    primary=not found,
                )
            )  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Images where a box that is shown has come, gone or changed its class; those that lost most of their F1 first."""
        least = float(metadata.pipeline["threshold"])
        found = []
        for index, (item, got, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            new, before = _shown(got, least), _shown(old, least)
            _, false, missed = _counts(new, _as_truth(before))
            if not false and not missed:
                continue
            harm = 0.0 if item.label is None else _f1(before, item.label) - _f1(new, item.label)
            reference = None if item.label is None else _named(item.label, metadata)
            found.append(Change(index, _named(before, metadata), _named(new, metadata), harm, reference))
        return found


def _boxes(row: Mapping[str, Any], labels: Sequence[str], number: int) -> np.ndarray | None:
    """The true boxes of a row. They are written as x1, y1, x2, y2: shares of the image when none is above 1, else pixels."""
    if row.get("boxes") is None or row.get("classes") is None:
        return None
    try:
        boxes = np.asarray(row["boxes"], dtype=np.float64).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise DataError(f"row {number + 1}: boxes are {str(row['boxes'])[:60]}; give x1, y1, x2, y2 of each") from error
    classes = row["classes"]
    if len(classes) != len(boxes):
        raise DataError(f"row {number + 1} has {len(boxes)} boxes and {len(classes)} classes; give one class for each")
    wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes >= 0).all(axis=1))
    if wrong.any():
        shown = boxes[wrong.argmax()].tolist()
        raise DataError(
            f"row {number + 1}: {shown} is no box; x1, y1, x2, y2 are left, top, right, bottom, each side longer than 0"
        )
    width, height = _size(row["image"])
    if boxes.max(initial=0) > 1:
        beyond = (boxes[:, 2] > width + 1) | (boxes[:, 3] > height + 1)
        if beyond.any():
            raise DataError(
                f"row {number + 1}: the box {boxes[beyond.argmax()].tolist()} lies outside of its image of {width} × {height}"
            )
    else:
        boxes = boxes * [width, height, width, height]
    # A model yet to be trained knows no classes: they are numbered later.
    ids = [label_index(value, labels, number) if labels else 0 for value in classes]
    return np.column_stack([np.asarray(ids, dtype=np.float64), boxes])


def _size(file: bytes) -> tuple[int, int]:
    """(width, height) of an image file, upright, as models see it."""
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: from 5 on the sides are swapped
        return (image.height, image.width) if turned else (image.width, image.height)


def _ranked(got: np.ndarray, true: np.ndarray, classes: int) -> list[float]:
    """What `mean_ap` reads of an image: classes, true boxes of each, then (class, score, hit) of every box."""
    wanted = np.bincount(true[:, 0].astype(int), minlength=classes)
    rows = np.column_stack([got[:, :2], _hits(got, true)])
    return [float(classes), *wanted.astype(float).tolist(), *np.round(rows, 5).ravel().tolist()]


def _hits(got: np.ndarray, true: np.ndarray) -> np.ndarray:
    """1 for each box of `got` that finds a true one, which no box with a higher score has found; else 0."""
    hits = np.zeros(len(got))
    if not len(true):
        return hits
    shared = overlaps(got[:, 2:], true[:, 1:])
    shared[got[:, :1] != true[:, 0]] = 0
    for index in np.argsort(-got[:, 1], kind="stable"):
        best = int(shared[index].argmax())
        if shared[index, best] >= HIT:
            hits[index] = 1
            shared[:, best] = 0
    return hits


def _counts(got: np.ndarray, true: np.ndarray) -> list[float]:
    """True boxes that were found, boxes that are none, true ones that were missed."""
    hits = float(_hits(got, true).sum())
    return [hits, len(got) - hits, len(true) - hits]


def _f1(got: np.ndarray, true: np.ndarray) -> float:
    hits, false, missed = _counts(got, true)
    return 2 * hits / max(2 * hits + false + missed, 1.0)


def _shown(got: np.ndarray, least: float) -> np.ndarray:
    return got[got[:, 1] >= least]


def _as_truth(got: np.ndarray) -> np.ndarray:
    return np.delete(got, 1, axis=1)


def _named(boxes: np.ndarray, metadata: CheckpointMetadata) -> str:
    """How many boxes there are of each class."""
    counts = sorted(Counter(boxes[:, 0].astype(int).tolist()).items())
    return ", ".join(f"{count} {metadata.pipeline['labels'][number]}" for number, count in counts) or "nothing"


TASK = ObjectDetection()
