"""Text regression: one number for a text or a pair of texts (similarity, relatedness, rating)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.model import CheckpointFacts
from fmopt.results import Scores
from fmopt.tasks.base import Item, number_label, text_or_pair


class TextRegression:
    """A number per item, judged by the order it puts items in."""

    name = "text-regression"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("text", "sentence1", "sentence", "premise"),
        "text_pair": ("text_pair", "sentence2", "hypothesis"),
        "label": ("score", "label", "similarity", "target", "rating"),
    }
    needed = (("text",),)

    def items(self, rows: Sequence[Mapping[str, Any]], facts: CheckpointFacts) -> list[Item]:
        """One item a row; DataError on a score that is no number."""
        return [
            Item(number, text_or_pair(row), number_label(row.get("label"), number)) for number, row in enumerate(rows)
        ]

    def scores(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any] | None, facts: CheckpointFacts
    ) -> list[Scores]:
        """Spearman's rank correlation with the labels, and with the baseline's numbers."""
        numbers = np.array([float(np.ravel(p)[0]) for p in predictions])
        found = []
        if all(item.label is not None for item in items):
            true = np.array([float(item.label) for item in items])
            found.append(
                Scores(
                    name="Spearman", metric="spearman", values=np.column_stack([numbers, true]).tolist(), primary=True
                )
            )
        if baseline is not None:
            before = np.array([float(np.ravel(p)[0]) for p in baseline])
            found.append(
                Scores(
                    name="Spearman to baseline",
                    metric="spearman",
                    values=np.column_stack([numbers, before]).tolist(),
                    against_baseline=True,
                    primary=not found,
                )
            )
        return found


TASK = TextRegression()
