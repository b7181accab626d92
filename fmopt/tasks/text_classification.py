"""Text classification: one label of several (or any number of them) for a text or a pair of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.text import softmax
from fmopt.tasks.base import Change, Item, Output, Task, Unseen, Usage, column, label_index, labelled, text_or_pair

SMALLEST_SHARE = 1e-12  # of a label, where its logarithm is taken


class TextClassification(Task):
    """Logits over labels; right or wrong per item. A multi-label model gives a yes or no for every label."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    architectures: tuple[str, ...] = ("ForSequenceClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "text": (
            "text",
            "sentence1",
            "premise",
            "question1",
            "question",
            "query",
            "sentence",
            "content",
            "utterance",
            "review",
        ),
        "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "passage", "document", "sentence"),
        "label": ("label", "labels", "target", "intent", "class", "category"),
    }
    needed = (("text",),)
    output = Output.CLASSES
    shown_by: tuple[str, ...] = ("label",)  # of images and audio too
    usage = Usage('"a text"', "its label with scores")
    in_browser = True
    regression: bool | None = False
    head_tensors: tuple[str, ...] = ("classifier.",)
    class_role = "label"
    has_classes = True

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a label that the model does not have."""
        labels = metadata.pipeline.get("labels") or []
        read = several_labels if metadata.pipeline.get("multi_label") else label_index
        return [
            Item(number, text_or_pair(row), read(row.get("label"), labels, number)) for number, row in enumerate(rows)
        ]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Accuracy and macro F1 where there are labels; agreement with the baseline and KL divergence from it.

        Of a multi-label model: micro F1 over its labels and the share of items with exactly the right ones.
        """
        several = bool(metadata.pipeline.get("multi_label"))
        logits = np.stack(predictions).astype(np.float64)
        chosen = _chosen(logits, several)
        found = []
        if labelled(items):
            found = _by_labels(chosen, items, several)
        if baseline is not None:
            before = np.stack(baseline).astype(np.float64)
            same = (chosen == _chosen(before, several)).reshape(len(items), -1).all(axis=1)
            found += [
                Scores(
                    name="agreement with baseline", metric="mean", values=column(same),
                    against_baseline=True, primary=not found,
                ),
                Scores(
                    name="KL to baseline", metric="lower_mean", values=column(_divergence(before, logits, several)),
                    against_baseline=True,
                ),
            ]  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Items with another label; those that were right first."""
        several = bool(metadata.pipeline.get("multi_label"))
        after, before = (_chosen(np.stack(part).astype(np.float64), several) for part in (predictions, baseline))
        found = []
        for index, (old, new, item) in enumerate(zip(before, after, items, strict=True)):
            if np.any(old != new):
                harm = 0.0 if item.label is None else float(_right(old, item)) - float(_right(new, item))
                reference = None if item.label is None else _named(item.label, metadata)
                found.append(
                    Change(index, _named(_numbers(old), metadata), _named(_numbers(new), metadata), harm, reference)
                )
        return found


def _chosen(logits: np.ndarray, several: bool) -> np.ndarray:
    """Class numbers (n,), or yes and no for every label (n, C)."""
    return logits > 0 if several else logits.argmax(axis=1)


def _by_labels(chosen: np.ndarray, items: Sequence[Item], several: bool) -> list[Scores]:
    if not several:
        true = _numbered(items, int(chosen.max(initial=0)) + 1)
        pairs = np.column_stack([true, chosen]).astype(float).tolist()
        return [
            Scores(name="accuracy", metric="mean", values=column(chosen == true), primary=True),
            Scores(name="macro F1", metric="macro_f1", values=pairs),
        ]
    wanted = np.zeros_like(chosen)
    unseen = np.array([sum(isinstance(label, Unseen) for label in item.label) for item in items])
    for row, item in zip(wanted, items, strict=True):
        row[[label for label in item.label if not isinstance(label, Unseen)]] = True
    counts = [(chosen & wanted).sum(axis=1), (chosen & ~wanted).sum(axis=1), (~chosen & wanted).sum(axis=1) + unseen]
    exact = (chosen == wanted).all(axis=1) & (unseen == 0)
    return [
        Scores(name="micro F1", metric="micro_f1", values=np.column_stack(counts).astype(float).tolist(), primary=True),
        Scores(name="all labels right", metric="mean", values=column(exact)),
    ]


def _numbered(items: Sequence[Item], classes: int) -> np.ndarray:
    """Class numbers (n,) of the items' labels; those that the model does not have come after all of its own."""
    known = [item.label for item in items if not isinstance(item.label, Unseen)]
    first = max([classes, *(number + 1 for number in known)])
    further: dict[str, int] = {}
    return np.array(
        [
            further.setdefault(item.label, first + len(further)) if isinstance(item.label, Unseen) else item.label
            for item in items
        ]
    )


def _divergence(before: np.ndarray, after: np.ndarray, several: bool) -> np.ndarray:
    """KL(baseline ‖ candidate) of every item in nats; summed over the labels where each is a yes or no (n,)."""
    shares = []
    for logits in (before, after):
        both = np.stack([np.zeros_like(logits), logits], axis=-1) if several else logits
        shares.append(np.maximum(softmax(both), SMALLEST_SHARE))
    old, new = shares
    return (old * (np.log(old) - np.log(new))).reshape(len(before), -1).sum(axis=1)


def several_labels(value: Any, labels: Sequence[str], row: int) -> list[int | Unseen] | None:
    """Class numbers of a list of labels, of a JSON list, or of names joined by commas."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else [n for n in value.split(",") if n.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"row {row + 1} has the labels {value[:40]!r}, which are no list") from error
    reference = value if isinstance(value, list | tuple) else [value]
    found = {number for label in reference if (number := label_index(label, labels, row)) is not None}
    return sorted(found, key=lambda label: (isinstance(label, str), label))


def _numbers(chosen: np.ndarray) -> int | list[int]:
    return int(chosen) if np.ndim(chosen) == 0 else [int(number) for number in np.flatnonzero(chosen)]


def _right(chosen: np.ndarray, item: Item) -> bool:
    return bool(_numbers(chosen) == item.label)


def _named(label: int | str | list[Any], metadata: CheckpointMetadata) -> str:
    if isinstance(label, list):
        return ", ".join(_named(one, metadata) for one in label) or "none"
    return label if isinstance(label, str) else str(metadata.pipeline["labels"][label])


TASK = TextClassification()
