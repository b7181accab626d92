"""Image classification: one label of several for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.model import CheckpointMetadata
from fmopt.tasks.base import Item, Usage, label_index
from fmopt.tasks.text_classification import TextClassification


class ImageClassification(TextClassification):
    """Logits over labels, judged as those of a text are."""

    name = "image-classification"
    modality = "image"
    auto_class = "AutoModelForImageClassification"
    architectures: tuple[str, ...] = ("ForImageClassification", "ForImageClassificationWithTeacher")
    columns: Mapping[str, tuple[str, ...]] = {
        "image": ("image", "images", "img", "picture", "image_jpeg", "image_png", "file", "file_name", "path"),
        "label": ("label", "labels", "target", "class", "category", "fine_label"),
    }
    needed = (("image",),)
    usage = Usage("picture.png", "its label with scores")
    regression = None
    head_tensors = ()

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a label that the model does not have."""
        labels = metadata.pipeline.get("labels") or []
        return [
            Item(number, row["image"], label_index(row.get("label"), labels, number)) for number, row in enumerate(rows)
        ]


TASK = ImageClassification()
