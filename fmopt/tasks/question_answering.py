"""Extractive question answering: the span of a context that answers a question."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled

NOTHING = "(no answer)"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class QuestionAnswering(Task):
    """An answer per question, judged by its words as in SQuAD (Rajpurkar et al. 2016)."""

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    architectures = ("ForQuestionAnswering",)
    columns: Mapping[str, tuple[str, ...]] = {
        "question": ("question", "query"),
        "context": ("context", "passage", "paragraph"),
        "answers": ("answers", "answer"),
        "answer_starts": ("answer_starts", "answer_start"),
    }
    needed = (("question", "context"),)
    output = Output.SPAN
    outputs = ("start_logits", "end_logits")
    shown_by, shown_alone = ("answers",), True
    usage = Usage('"a question" "a context"', "the answer in the context", call='("a question", "a context")')
    reads_windows = True
    head_tensors = ("qa_outputs.",)
    label_is_optional = True  # no answer

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; no answer at all means that the question cannot be answered."""
        return [
            Item(number, (row["question"], row["context"]), answers(row.get("answers")))
            for number, row in enumerate(rows)
        ]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """F1 over words (primary) and exact match, the best over the accepted answers."""
        texts = [prediction["text"] for prediction in predictions]
        found = []
        if labelled(items):
            exact = [
                any(normalized(text) == normalized(answer) for answer in item.label or [""])
                for text, item in zip(texts, items, strict=True)
            ]
            found = [
                Scores(name="F1", metric="mean", values=column(map(_item_f1, texts, items)), primary=True),
                Scores(name="exact match", metric="mean", values=column(exact)),
            ]
        if baseline is not None:
            same = [word_f1(text, before["text"]) for text, before in zip(texts, baseline, strict=True)]
            found.append(
                Scores(
                    name="F1 against baseline", metric="mean", values=column(same),
                    against_baseline=True, primary=not found,
                )
            )  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Questions with another answer; those that lost most words of a right one first."""
        found = []
        for index, (item, new, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            before, after = old["text"], new["text"]
            if before == after:
                continue
            harm = 0.0 if item.label is None else _item_f1(before, item) - _item_f1(after, item)
            reference = None if item.label is None else " / ".join(dict.fromkeys(item.label)) or NOTHING
            found.append(Change(index, before or NOTHING, after or NOTHING, harm, reference))
        return found


def answers(reference: Any) -> list[str] | None:
    """The accepted answers of a row: a list, SQuAD's {"text": [...]}, one string, or None without labels."""
    if reference is None:
        return None
    if isinstance(reference, Mapping):
        reference = reference["text"]
    listed = [reference] if isinstance(reference, str) else [str(answer) for answer in reference]
    return [answer for answer in listed if normalized(answer)]  # SQuAD's script drops what normalizes to nothing


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks: the SQuAD evaluation script's form."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(got: str, wanted: str) -> float:
    """Harmonic mean of precision and recall over words; two empty answers agree."""
    ours, theirs = normalized(got).split(), normalized(wanted).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _item_f1(text: str, item: Item) -> float:
    """The best over the accepted answers; no answer is right where there is none."""
    return max(word_f1(text, answer) for answer in item.label or [""])


TASK = QuestionAnswering()
