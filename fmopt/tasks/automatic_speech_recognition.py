"""Speech recognition: the words in a recording, as a text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled

WORD = re.compile(r"\w+(?:['’]\w+)*")  # what two ways of writing the same words have in common


class SpeechRecognition(Task):
    """Texts, judged by the words that have to be put in, taken out or replaced to get the transcript."""

    name = "automatic-speech-recognition"
    modality = "audio"
    auto_class = "AutoModelForCTC AutoModelForSpeechSeq2Seq"
    architectures = ("ForCTC", "WhisperForConditionalGeneration")
    columns: Mapping[str, tuple[str, ...]] = {
        "audio": ("audio", "sound", "speech", "wav", "file", "file_name", "path", "filename"),
        "transcript": ("transcript", "transcription", "text", "sentence", "normalized_text", "raw_text", "label"),
    }
    needed = (("audio",),)
    output = Output.LETTERS  # of an encoder alone; one with a decoder answers in words
    usage = Usage("speech.wav", "its transcript")

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a transcript that is no text."""
        for number, row in enumerate(rows, 1):
            reference = row.get("transcript")
            if reference is not None and not isinstance(reference, str):
                raise DataError(
                    f"row {number} has the transcript {reference!r}, which is no text; name the classes in a labels.json"
                )
        return [Item(number, row["audio"], row.get("transcript")) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Word and character error rates (WER, CER) where there are transcripts; how many texts are the baseline's, and the
        word error rate against those. Case and punctuation do not count, as is usual for WER."""
        texts = [str(prediction["text"]) for prediction in predictions]
        found = []
        if labelled(items):
            reference = [str(item.label) for item in items]
            found = [_rate("WER", words_of, texts, reference, primary=True), _rate("CER", letters_of, texts, reference)]
        if baseline is not None:
            before = [str(prediction["text"]) for prediction in baseline]
            same = [words_of(old) == words_of(new) for old, new in zip(before, texts, strict=True)]
            found += [
                _rate("WER to baseline", words_of, texts, before, primary=not found, against_baseline=True),
                Scores(name="same text as baseline", metric="mean", values=column(same), against_baseline=True),
            ]
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Items with other words; those that gained errors first."""
        found = []
        for index, (old, new, item) in enumerate(zip(baseline, predictions, items, strict=True)):
            before, after = words_of(old["text"]), words_of(new["text"])
            if before != after:
                reference = None if item.label is None else words_of(item.label)
                harm = 0.0 if reference is None else float(edits(reference, after) - edits(reference, before))
                found.append(Change(index, old["text"], new["text"], harm, item.label))
        return found


def words_of(text: str) -> list[str]:
    """The words of a text without case and punctuation."""
    return WORD.findall(text.casefold().replace("’", "'"))


def letters_of(text: str) -> list[str]:
    """The characters of its words and the blanks between them."""
    return list(" ".join(words_of(text)))


def edits(reference: Sequence[str], found: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that make one of the other (Levenshtein, 1966)."""
    row = list(range(len(found) + 1))
    for number, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], number
        for place, got in enumerate(found, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (wanted != got))
    return row[-1]


def _rate(
    name: str,
    parts: Any,
    texts: Sequence[str],
    reference: Sequence[str],
    *,
    primary: bool = False,
    against_baseline: bool = False,
) -> Scores:
    pairs = [(parts(right), parts(text)) for right, text in zip(reference, texts, strict=True)]
    values = [[float(edits(right, got)), float(len(right))] for right, got in pairs]
    return Scores(name=name, metric="error_rate", values=values, primary=primary, against_baseline=against_baseline)


TASK = SpeechRecognition()
