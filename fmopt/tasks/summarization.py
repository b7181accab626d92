"""Summarization: what a text says in fewer words, judged by ROUGE against one or several summaries by people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled
from fmopt.tasks.translation import changed_texts, texts_of

WORD = re.compile(r"[a-z0-9]+")  # as Google's rouge_score has it, without its stemmer


class Summarization(Task):
    """Short texts made of long ones, one token after the other."""

    name = "summarization"
    auto_class = "AutoModelForSeq2SeqLM"
    architectures = tuple(f"{name}ForConditionalGeneration" for name in ("T5", "Bart", "MBart", "Pegasus"))
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("document", "article", "text", "source", "dialogue", "abstract", "body"),
        "target": ("summary", "highlights", "target", "targets", "title", "tldr"),
    }
    needed = (("text",),)
    output = Output.ANSWER_WORDS
    usage = Usage('"a long text"', "what it says in short; --beams, --max-new-tokens, --stream and more: see --help")

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; its label is a summary, or a list of several. DataError on one that is no text."""
        for number, row in enumerate(rows, 1):
            reference = row.get("target")
            known = [reference] if isinstance(reference, str) or reference is None else reference
            if (
                not isinstance(known, list)
                or not all(one is None or isinstance(one, str) for one in known)
                or not known
            ):
                raise DataError(
                    f"row {number} has the summary {reference!r:.60}, which is no text and no list of texts; mend it"
                )
        return [Item(number, row["text"], row.get("target")) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """ROUGE-1, -2 and -L (F1) where there are summaries, of every text against the one that fits it best, as is usual for
        SciTLDR; the share of texts that are the baseline's, and ROUGE-L against those."""
        reference = texts_of(predictions, metadata)
        found: list[Scores] = []
        if labelled(items):
            wanted = [summaries(item.label) for item in items]
            for name, measure in (("ROUGE-L", rouge_l), ("ROUGE-1", rouge_1), ("ROUGE-2", rouge_2)):
                values = [
                    max(measure(text, one) for one in known) for text, known in zip(reference, wanted, strict=True)
                ]
                found.append(Scores(name=name, metric="mean", values=column(values), primary=not found))
        if baseline is not None:
            before = texts_of(baseline, metadata)
            alike = [rouge_l(new, old) for old, new in zip(before, reference, strict=True)]
            same = [old == new for old, new in zip(before, reference, strict=True)]
            found += [
                Scores(name="ROUGE-L to baseline", metric="mean", values=column(alike), primary=not found,
                       against_baseline=True),
                Scores(name="same text as baseline", metric="mean", values=column(same), against_baseline=True),
            ]  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts that became others; those that lost most of ROUGE-L first."""
        wanted = [[] if item.label is None else summaries(item.label) for item in items]
        return changed_texts(texts_of(baseline, metadata), texts_of(predictions, metadata), wanted, rouge_l)


def summaries(label: Any) -> list[str]:
    """The summaries of an item's label, one or several."""
    return [label] if isinstance(label, str) else list(label)


def rouge_1(text: str, wanted: str) -> float:
    """F1 of words (Lin, 2004)."""
    return _of_ngrams(text, wanted, 1)


def rouge_2(text: str, wanted: str) -> float:
    """F1 of pairs of words."""
    return _of_ngrams(text, wanted, 2)


def rouge_l(text: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words."""
    ours, theirs = WORD.findall(text.lower()), WORD.findall(wanted.lower())
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for place, other in enumerate(theirs, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return _f1(row[-1], len(ours), len(theirs))


def _of_ngrams(text: str, wanted: str, n: int) -> float:
    ours, theirs = (_ngrams(WORD.findall(one.lower()), n) for one in (text, wanted))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


TASK = Summarization()
