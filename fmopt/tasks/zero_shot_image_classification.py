"""Zero-shot image classification: which of several labels, given in words, fits an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Item, Usage, column, labelled
from fmopt.tasks.image_classification import ImageClassification


class ZeroShotImageClassification(ImageClassification):
    """Logits over labels, judged as those of a classifier are, and by the place of the right label."""

    name = "zero-shot-image-classification"
    auto_class = "AutoModelForZeroShotImageClassification"
    architectures = ("CLIPModel", "SiglipModel")
    shown_by = ()  # what is trained is a classifier
    usage = Usage("picture.png", "which of its labels fits, with scores")
    classes_from_data = True

    def pipeline_entries(self, folder: Path, config: Any) -> dict[str, Any]:
        """SigLIP's labels do not exclude one another."""
        return {"independent": True} if "siglip" in config.model_type else {}

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Those of a classifier; of images with labels also the reciprocal rank of the right text among all (retrieval)."""
        found = super().scores(predictions, items, baseline, metadata)
        if labelled(items):
            logits = np.stack(predictions)
            own = logits[np.arange(len(items)), [item.label for item in items]]
            places = (logits >= own[:, None]).sum(axis=1)
            found.insert(1, Scores(name="MRR of the label", metric="mean", values=column(1 / places)))
        return found


TASK = ZeroShotImageClassification()
