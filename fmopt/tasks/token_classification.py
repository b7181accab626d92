"""Token classification: a tag for every word, judged by whole entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.tagging import split_words
from fmopt.tasks.base import Change, Item, Output, Task, Unseen, Usage, class_names, label_index, labelled

Span = tuple[str, int, int]  # entity, first word, last word

_PREFIXED = re.compile(r"([BIES])(?:-(.*))?")
_UNNAMED = re.compile(r"label_\d+", re.IGNORECASE)


class TokenClassification(Task):
    """Logits per word; an entity counts when its type and both its ends are right.

    Tags without any entity scheme (parts of speech: no "O", no "B-") are judged word by word.
    """

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    architectures = ("ForTokenClassification",)
    columns: Mapping[str, tuple[str, ...]] = {
        "tokens": ("tokens", "words"),
        "text": ("text", "sentence"),
        "tags": ("tags", "ner_tags", "labels", "pos_tags", "upos"),
    }
    needed = (("tokens",), ("text",))
    output = Output.TAGS
    shown_by, shown_alone = ("tokens", "tags"), True
    usage = Usage('"a text"', "the entities in it")
    reads_windows = True
    head_tensors = ("classifier.",)
    class_role = "tags"
    has_classes = True

    def label_names(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Names of the tags, and I- of every B- and B- of every I- where there are both kinds: train rows may lack one that
        others have."""
        names = class_names(rows, "tags")
        kinds = {name[:2] for name in names} & {"B-", "I-"}
        if len(kinds) < 2:
            return names
        both = {f"{kind}{name[2:]}" for name in names if name[:2] in kinds for kind in kinds}
        return sorted({*names, *both}, key=lambda name: (name != "O", name))

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row: its words, and for every word the number of its tag."""
        labels = metadata.pipeline.get("labels") or []
        items = []
        for number, row in enumerate(rows):
            if "tokens" not in row:
                items.append(Item(number, row["text"]))
                continue
            words, tags = [str(word) for word in row["tokens"]], row.get("tags")
            if tags is not None and len(tags) != len(words):
                raise DataError(f"row {number + 1} has {len(words)} words and {len(tags)} tags; every word needs one")
            known = None if tags is None else [label_index(tag, labels, number) for tag in tags]
            items.append(Item(number, words, known))
        return items

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Span F1 as in CoNLL-2003 (seqeval's default), against the labels and against the baseline's own tags."""
        names = _names(metadata)
        ours = [_parts(_tags(logits), names) for logits in predictions]
        title = "span F1" if _has_scheme(names) else "word accuracy"
        found = []
        if labelled(items):
            true = [_parts(item.label, names) for item in items]
            found.append(Scores(name=title, metric="micro_f1", values=_counts(ours, true), primary=True))
        if baseline is not None:
            before = [_parts(_tags(logits), names) for logits in baseline]
            found.append(
                Scores(
                    name=f"{title} against baseline", metric="micro_f1", values=_counts(ours, before),
                    against_baseline=True, primary=not found,
                )
            )  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts with other entities; those that lost right ones or gained wrong ones first."""
        names, found = _names(metadata), []
        for index, (item, new, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            after, before = _parts(_tags(new), names), _parts(_tags(old), names)
            if after == before:
                continue
            reference, harm = None, 0.0
            if item.label is not None:
                true = _parts(item.label, names)
                reference, harm = _shown(true, item), float(len(after ^ true) - len(before ^ true))
            found.append(Change(index, _shown(before, item), _shown(after, item), harm, reference))
        return found


def spans(tags: Sequence[int | Unseen], names: Sequence[str]) -> set[Span]:
    """Entities of a sequence of BIO or BIOES tags, as conlleval and seqeval's default read them.

    An I- without its B- begins an entity; labels without such a prefix run on while they are the same.
    """
    found: set[Span] = set()
    kind, start, last = None, 0, "O"  # kind: the entity that is open
    for position, (prefix, entity) in enumerate([*(_parsed(_name(tag, names)) for tag in tags), ("O", "")]):
        if kind is not None and (last in "ES" or prefix in "BSO" or entity != kind):
            found.add((kind, start, position - 1))
            kind = None
        if kind is None and prefix != "O":
            kind, start = entity, position
        last = prefix
    return found


def _parsed(name: str) -> tuple[str, str]:
    if name == "O":
        return "O", ""
    match = _PREFIXED.fullmatch(name)
    return (match[1], match[2] or "") if match else ("I", name)


def _names(metadata: CheckpointMetadata) -> list[str]:
    """The model's labels; where they have no names at all, the first one stands for "no entity", as is usual."""
    names = [str(name) for name in metadata.pipeline["labels"]]
    return ["O", *names[1:]] if names and all(_UNNAMED.fullmatch(name) for name in names) else names


def _has_scheme(names: Sequence[str]) -> bool:
    return any(name == "O" or _PREFIXED.fullmatch(name) for name in names)


def _parts(tags: Sequence[int | Unseen], names: Sequence[str]) -> set[Span]:
    """What is judged in one text: its entities, or every word where the tags mark none."""
    if _has_scheme(names):
        return spans(tags, names)
    return {(_name(tag, names), position, position) for position, tag in enumerate(tags)}


def _name(tag: int | Unseen, names: Sequence[str]) -> str:
    """What a tag is called; one that the model does not have brings its own name."""
    return tag if isinstance(tag, Unseen) else names[tag]


def _tags(logits: np.ndarray) -> list[int]:
    return [int(tag) for tag in np.asarray(logits).argmax(axis=-1)] if len(logits) else []


def _counts(got: Sequence[set[Span]], wanted: Sequence[set[Span]]) -> list[list[float]]:
    """True positives, false positives and false negatives of every item."""
    return [[float(len(g & w)), float(len(g - w)), float(len(w - g))] for g, w in zip(got, wanted, strict=True)]


def _shown(parts: set[Span], item: Item) -> str:
    words = [word for word, _, _ in split_words(item.sample)]
    found = sorted(parts, key=lambda part: part[1])
    return "; ".join(f"{entity}: {' '.join(words[first : last + 1])}" for entity, first, last in found) or "none"


TASK = TokenClassification()
