"""Text regression: one number for a text or a pair of texts (similarity, relatedness, rating)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, labelled, number_label, text_or_pair

SHOWN_SHARE = 0.05  # of the range of the baseline's numbers: a change below it is not worth a line


class TextRegression(Task):
    """A number per item, judged by the order it puts items in."""

    name = "text-regression"
    pipeline_tag = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("text", "sentence1", "premise", "query", "question", "sentence", "content", "review"),
        "text_pair": ("text_pair", "sentence2", "hypothesis", "passage", "document", "answer"),
        "label": (
            "score",
            "label",
            "relevance",
            "similarity",
            "similarity_score",
            "relatedness_score",
            "target",
            "rating",
            "stars",
        ),
    }
    needed = (("text",),)
    output = Output.NUMBER
    shown_by = ("label",)
    usage = Usage('"a text"', "its score")
    in_browser = True
    regression = True

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a score that is no number."""
        return [
            Item(number, text_or_pair(row), number_label(row.get("label"), number)) for number, row in enumerate(rows)
        ]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Spearman's rank correlation with the labels, and with the baseline's numbers."""
        ours = _numbers(predictions)
        found = []
        if labelled(items):
            pairs = np.column_stack([ours, [item.label for item in items]])
            found.append(Scores(name="Spearman", metric="spearman", values=pairs.tolist(), primary=True))
        if baseline is not None:
            pairs = np.column_stack([ours, _numbers(baseline)])
            found.append(
                Scores(
                    name="Spearman to baseline", metric="spearman", values=pairs.tolist(),
                    against_baseline=True, primary=not found,
                )
            )  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Items whose number moved by a twentieth of the baseline's range; those that moved most first."""
        after, before = _numbers(predictions), _numbers(baseline)
        moved = np.abs(after - before)
        # Without spread any move is one: 0 × SHOWN_SHARE would also list what did not move.
        least = max(SHOWN_SHARE * float(np.ptp(before)), np.finfo(np.float32).eps)
        return [
            Change(i, f"{before[i]:.3f}", f"{after[i]:.3f}", float(moved[i]), _label_text(items[i]))
            for i in np.flatnonzero(~(moved < least)).tolist()  # NaN is a change
        ]


def _numbers(predictions: Sequence[Any]) -> np.ndarray:
    return np.array([float(np.ravel(prediction)[0]) for prediction in predictions])


def _label_text(item: Item) -> str | None:
    return None if item.label is None else f"{item.label:g}"


TASK = TextRegression()
