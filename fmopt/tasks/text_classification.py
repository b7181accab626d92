"""Text classification: one label of several for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.edge import softmax
from fmopt.model import CheckpointFacts
from fmopt.results import Scores
from fmopt.tasks.base import Item, label_index, text_or_pair


class TextClassification:
    """Logits over labels; right or wrong per item."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("text", "sentence", "sentence1", "premise", "question", "content"),
        "text_pair": ("text_pair", "sentence2", "hypothesis"),
        "label": ("label", "labels", "target", "intent", "class"),
    }
    needed = (("text",),)

    def items(self, rows: Sequence[Mapping[str, Any]], facts: CheckpointFacts) -> list[Item]:
        """One item a row; DataError on a label that the model does not have."""
        labels = facts.pipeline.get("labels") or []
        return [
            Item(number, text_or_pair(row), label_index(row.get("label"), labels, number))
            for number, row in enumerate(rows)
        ]

    def scores(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any] | None, facts: CheckpointFacts
    ) -> list[Scores]:
        """Accuracy and macro F1 where there are labels; agreement with the baseline and KL divergence from it."""
        logits = np.stack(predictions).astype(np.float64)
        classes = logits.argmax(axis=1)
        found = []
        if all(item.label is not None for item in items):
            true = np.array([item.label for item in items])
            found = [
                Scores(
                    name="accuracy",
                    metric="mean",
                    values=(classes == true).astype(float)[:, None].tolist(),
                    primary=True,
                ),
                Scores(
                    name="macro F1", metric="macro_f1", values=np.column_stack([true, classes]).astype(float).tolist()
                ),
            ]
        if baseline is not None:
            before = np.stack(baseline).astype(np.float64)
            same = (classes == before.argmax(axis=1)).astype(float)
            p, q = softmax(before), softmax(logits)
            divergence = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(axis=1)
            found += [
                Scores(
                    name="agreement with baseline",
                    metric="mean",
                    values=same[:, None].tolist(),
                    against_baseline=True,
                    primary=not found,
                ),
                Scores(
                    name="KL to baseline",
                    metric="lower_mean",
                    values=divergence[:, None].tolist(),
                    against_baseline=True,
                ),
            ]
        return found


TASK = TextClassification()
