"""Semantic segmentation: a class for every pixel of an image. Class 0 is the background, what is of no interest, unless it
has a name of another kind ("road")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.media import images
from fmopt.core.media.images import UNKNOWN
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.parts import begins_with_background
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled

SHOWN_SHARE = 0.005  # of the pixels: a smaller change is not worth a line


class ImageSegmentation(Task):
    """A map of class numbers per image, judged pixel by pixel."""

    name = "image-segmentation"
    modality = "image"
    auto_class = "AutoModelForSemanticSegmentation AutoModelForUniversalSegmentation"
    architectures = ("ForSemanticSegmentation", "MaskFormerForInstanceSegmentation")
    columns: Mapping[str, tuple[str, ...]] = {
        "image": ("image", "images", "img", "picture", "file", "file_name", "path"),
        "mask": ("mask", "masks", "segmentation", "annotation", "segmentation_mask", "label", "labels"),
    }
    needed = (("image",),)
    output = Output.MAP
    shown_by = ("mask",)
    usage = Usage("picture.png", "the class of every pixel")
    has_classes = True

    def label_names(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Numbers of the classes up to the highest one in a mask."""
        maps = (images.class_map(row["mask"]) for row in rows if row.get("mask") is not None)
        highest = max(int(each[each != UNKNOWN].max(initial=1)) for each in maps)
        return [f"LABEL_{number}" for number in range(1 + highest)]

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row, its label uint8 (H, W); DataError on a mask with a class that the model does not have."""
        labels = len(metadata.pipeline.get("labels") or ())
        return [Item(number, row["image"], _mask(row.get("mask"), labels, number)) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Dice and IoU of all pixels that are not background, and the share of right pixels; likeness to the baseline."""
        found = []
        if labelled(items):
            pairs = [(np.asarray(got), item.label) for got, item in zip(predictions, items, strict=True)]
            first = _first(metadata)
            counts = [_counts(got, wanted, first) for got, wanted in pairs]
            right = [float((got == wanted)[wanted != UNKNOWN].mean()) for got, wanted in pairs]
            found = [
                Scores(name="Dice", metric="micro_f1", values=counts, primary=True),
                Scores(name="IoU", metric="jaccard", values=counts),
                Scores(name="pixel accuracy", metric="mean", values=column(right)),
            ]
        if baseline is not None:
            same = [float((np.asarray(a) == np.asarray(b)).mean()) for a, b in zip(predictions, baseline, strict=True)]
            found.append(
                Scores(
                    name="pixels as the baseline's", metric="mean", values=column(same),
                    against_baseline=True, primary=not found,
                )
            )  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Images of which more than a few pixels have another class; those that lost most of their Dice first."""
        found = []
        for index, (item, new, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            new, old = np.asarray(new), np.asarray(old)
            if (new != old).mean() <= SHOWN_SHARE:
                continue
            first = _first(metadata)
            harm = 0.0 if item.label is None else _dice(old, item.label, first) - _dice(new, item.label, first)
            reference = None if item.label is None else _shares(item.label, metadata)
            found.append(Change(index, _shares(old, metadata), _shares(new, metadata), harm, reference))
        return found


def _mask(value: Any, labels: int, row: int) -> np.ndarray | None:
    if value is None:
        return None
    try:
        mask = images.class_map(value)
    except ValueError as error:
        raise DataError(f"row {row + 1}: mask {error}") from error
    highest = int(mask[mask != UNKNOWN].max(initial=0))
    if labels and highest >= labels:
        raise DataError(f"row {row + 1}: mask has the class {highest}, which the model does not know; it has {labels}")
    return mask


def _first(metadata: CheckpointMetadata) -> int:
    """The first class that is of interest."""
    labels = list(metadata.pipeline.get("labels") or ())
    unnamed = not labels or labels[0].lower() == "label_0"
    return int(unnamed or begins_with_background(labels))


def _counts(got: np.ndarray, wanted: np.ndarray, first: int) -> list[float]:
    """Pixels that were found, that are none, and that were missed, of the classes from `first` on."""
    known = wanted != UNKNOWN
    hits = (got == wanted) & (wanted >= first) & known
    false = (got != wanted) & (got >= first) & known
    missed = (got != wanted) & (wanted >= first) & known
    return [float(part.sum()) for part in (hits, false, missed)]


def _dice(got: np.ndarray, wanted: np.ndarray, first: int) -> float:
    hits, false, missed = _counts(got, wanted, first)
    return 2 * hits / max(2 * hits + false + missed, 1.0)


def _shares(found: np.ndarray, metadata: CheckpointMetadata) -> str:
    """Each class that is of interest and there, with its share of the image."""
    numbers, counts = np.unique(found[(found >= _first(metadata)) & (found != UNKNOWN)], return_counts=True)
    names = metadata.pipeline["labels"]
    reference = [f"{names[int(n)]} {count / found.size:.1%}" for n, count in zip(numbers, counts, strict=True)]
    return ", ".join(reference) or "nothing"


TASK = ImageSegmentation()
