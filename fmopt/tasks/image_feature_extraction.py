"""Image feature extraction: images → vectors, judged by whether neighbours are alike, or by closeness to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Item, Usage, column, labelled
from fmopt.tasks.image_classification import ImageClassification
from fmopt.tasks.sentence_embedding import NEAREST, QUERIES_AT_ONCE, SentenceEmbedding, unit


class ImageFeatureExtraction(SentenceEmbedding):
    """Vectors whose cosine says how near two images are."""

    name = "image-feature-extraction"
    modality = "image"
    auto_class = "AutoModel"
    architectures = ("CLIPModel", "SiglipModel", "ViTModel", "DeiTModel", "Dinov2Model", "SwinModel", "ConvNextModel")
    columns: Mapping[str, tuple[str, ...]] = ImageClassification.columns
    needed = ImageClassification.needed
    outputs = ("pooler_output",)
    usage = Usage("picture.png", "its vector, of length one")
    priority = -1  # what knows images and texts is asked for labels first
    takes_any_encoder = False
    takes_checkpoints_of = ("image-classification",)

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; a label may be any: it says which images are of a kind."""
        return [Item(number, row["image"], row.get("label")) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Of images with labels, how often the nearest other one, and each of the ten nearest, has the same; and always
        cosine to the baseline."""
        found = super().scores(predictions, items, baseline, metadata)
        if not labelled(items) or len(items) < 2:
            return found
        alike = _alike(unit(predictions), np.array([str(item.label) for item in items]))
        return [
            Scores(name="label of the nearest", metric="mean", values=column(alike[:, 0]), primary=True),
            Scores(name=f"precision@{alike.shape[1]}", metric="mean", values=column(alike.mean(axis=1))),
            *(one.model_copy(update={"primary": False}) for one in found),
        ]

    def allows_subsets(self, items: Sequence[Item]) -> bool:
        """Not images that are to be found among the others."""
        return not labelled(items)


def _alike(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [items, nearest]: whether each of an item's nearest others, the first being the nearest, has its label."""
    count = min(NEAREST, len(vectors) - 1)
    found = []
    for start in range(0, len(vectors), QUERIES_AT_ONCE):
        similar = vectors[start : start + QUERIES_AT_ONCE] @ vectors.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        nearest = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        found.append(labels[nearest] == labels[start + own, None])
    return np.concatenate(found)


TASK = ImageFeatureExtraction()
