"""Token classification: a tag for every word, judged by whole entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.errors import DataError
from fmopt.model import CheckpointFacts
from fmopt.results import Scores
from fmopt.tasks.base import Item, label_index

Span = tuple[str, int, int]


class TokenClassification:
    """Logits per word; an entity counts when its type and both its ends are right."""

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "tokens": ("tokens", "words"),
        "tags": ("tags", "ner_tags", "labels", "pos_tags"),
    }
    needed = (("tokens",),)

    def items(self, rows: Sequence[Mapping[str, Any]], facts: CheckpointFacts) -> list[Item]:
        """One item a row: its words, and for every word the number of its tag."""
        labels = facts.pipeline.get("labels") or []
        items = []
        for number, row in enumerate(rows):
            words, tags = [str(word) for word in row["tokens"]], row.get("tags")
            if tags is not None and len(tags) != len(words):
                raise DataError(f"row {number + 1} has {len(words)} words and {len(tags)} tags; every word needs one")
            known = None if tags is None else [label_index(tag, labels, number) for tag in tags]
            items.append(Item(number, words, known))
        return items

    def scores(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any] | None, facts: CheckpointFacts
    ) -> list[Scores]:
        """Span F1 as in CoNLL-2003 (seqeval's default), against the labels and against the baseline's own tags."""
        names = list(facts.pipeline["labels"])
        ours = [spans(_tags(logits), names) for logits in predictions]
        found = []
        if all(item.label is not None for item in items):
            true = [spans(item.label, names) for item in items]
            found.append(Scores(name="span F1", metric="micro_f1", values=_counts(ours, true), primary=True))
        if baseline is not None:
            before = [spans(_tags(logits), names) for logits in baseline]
            found.append(Scores(name="span F1 against baseline", metric="micro_f1", values=_counts(ours, before),
                                against_baseline=True, primary=not found))  # fmt: skip
        return found


def spans(tags: Sequence[int], names: Sequence[str]) -> set[Span]:
    """Entities (type, first word, last word) of a sequence of BIO tags; an I- without its B- begins one, as in conlleval."""
    found: set[Span] = set()
    kind, start = "", 0
    for position, tag in enumerate([*tags, None]):
        name = "O" if tag is None else names[tag]
        prefix, _, entity = name.partition("-") if name[:2] in ("B-", "I-") else ("", "", "" if name == "O" else name)
        if kind and (prefix == "B" or entity != kind):
            found.add((kind, start, position - 1))
            kind = ""
        if entity and not kind:
            kind, start = entity, position
    return found


def _tags(logits: np.ndarray) -> list[int]:
    return [int(tag) for tag in np.asarray(logits).argmax(axis=-1)] if len(logits) else []


def _counts(got: Sequence[set[Span]], wanted: Sequence[set[Span]]) -> list[list[float]]:
    """True positives, false positives and false negatives of every item."""
    return [[float(len(g & w)), float(len(g - w)), float(len(w - g))] for g, w in zip(got, wanted, strict=True)]


TASK = TokenClassification()
