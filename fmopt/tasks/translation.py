"""Translation: a text in another language, judged by corpus BLEU and chrF as sacrebleu has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import ConfigError, DataError
from fmopt.core.model import TOKENIZER, CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.text import Preprocessor
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled


class Translation(Task):
    """Texts made of texts, one token after the other: P(y_t | y_1 … y_t-1, x)."""

    name = "translation"
    auto_class = "AutoModelForSeq2SeqLM"
    architectures = (
        "MarianMTModel",
        *(f"{name}ForConditionalGeneration" for name in ("T5", "Bart", "MBart", "M2M100", "Pegasus")),
    )
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("source", "src", "text", "sentence", "en", "english"),
        "target": ("target", "tgt", "translation", "reference", "de", "fr", "es", "it", "ro", "cs", "ru", "zh", "ja"),
    }
    needed = (("text",),)
    output = Output.ANSWER_WORDS
    usage = Usage('"a text"', "its translation; --beams, --max-new-tokens, --stream and more: see --help")

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a translation that is no text."""
        for number, row in enumerate(rows, 1):
            reference = row.get("target")
            if reference is not None and not isinstance(reference, str):
                raise DataError(f"row {number} has the translation {reference!r:.60}, which is no text; mend the row")
        return [Item(number, row["text"], row.get("target")) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """BLEU and chrF of all texts together where there are translations, from each text's own counts of n-grams; the share
        of texts that are the baseline's, and BLEU against those."""
        reference = texts_of(predictions, metadata)
        found = []
        if labelled(items):
            wanted = [str(item.label) for item in items]
            found = [
                _scores("BLEU", "bleu", reference, wanted, primary=True),
                _scores("chrF", "chrf", reference, wanted),
            ]
        if baseline is not None:
            before = texts_of(baseline, metadata)
            same = [old == new for old, new in zip(before, reference, strict=True)]
            found += [
                _scores("BLEU to baseline", "bleu", reference, before, primary=not found, against_baseline=True),
                Scores(name="same text as baseline", metric="mean", values=column(same), against_baseline=True),
            ]
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts that became others; those that lost most of chrF, of each by itself, first."""
        wanted = [[] if item.label is None else [item.label] for item in items]
        return changed_texts(texts_of(baseline, metadata), texts_of(predictions, metadata), wanted, sentence_chrf)


def changed_texts(
    before: Sequence[str], after: Sequence[str], wanted: Sequence[Sequence[str]], score: Callable[[str, str], float]
) -> list[Change]:
    """Texts that became others; the harm is what was lost of `score`, against the one of those `wanted` that fits best."""
    found = []
    for index, (old, new, known) in enumerate(zip(before, after, wanted, strict=True)):
        if old != new:
            worth = [max((score(text, one) for one in known), default=0.0) for text in (old, new)]
            found.append(Change(index, old, new, worth[0] - worth[1], known[0] if known else None))
    return found


def texts_of(predictions: Sequence[Any], metadata: CheckpointMetadata) -> list[str]:
    """What predictions, ids of tokens, say."""
    tokenizer = Preprocessor(metadata.folder / TOKENIZER, metadata.pipeline).tokenizer
    return [tokenizer.decode(np.asarray(ids, dtype=np.int64).tolist()).strip() for ids in predictions]


def sentence_chrf(text: str, wanted: str) -> float:
    """chrF of one text, 0 to 1."""
    return float(_sacrebleu().sentence_chrf(text, [wanted]).score) / 100


def _scores(
    name: str, metric: str, texts: Sequence[str], wanted: Sequence[str], *, primary: bool = False,
    against_baseline: bool = False,
) -> Scores:  # fmt: skip
    """Counts of every text, which sacrebleu adds up before it computes a corpus's score."""
    kind = {"bleu": _sacrebleu().BLEU, "chrf": _sacrebleu().CHRF}[metric]
    counts = kind()._extract_corpus_statistics(list(texts), [list(wanted)])
    values = [[float(value) for value in row] for row in counts]
    return Scores(name=name, metric=metric, values=values, primary=primary, against_baseline=against_baseline)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ConfigError(
            "translations are judged by sacrebleu, which is not installed: pip install sacrebleu"
        ) from error
    return sacrebleu


TASK = Translation()
