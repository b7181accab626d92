"""Texts to one label for each word, and to the spans that words with the same label make."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import EdgeError, shorten
from .parts import Pipeline, Sample
from .text import Batch, Preprocessor, named_outputs, softmax

WORDS = True  # a text is read as it stands, a list word by word
Word = tuple[str, int, int]  # itself, and where it begins and ends in the text

# Scripts whose words stand without blanks between them: Han and kana, Thai, Lao, Burmese, Khmer.
UNSPACED = re.compile(
    "[\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
JOINERS = "\u200c\u200d"  # between the letters of one word, in Persian and in Indic scripts
ALONE, MARK = (
    "\ue000",
    "\ue001",
)  # what stands for such a letter, and for a mark on a letter, while words are looked for
WORD = re.compile(rf"{ALONE}{MARK}*|[@#]?[\w{MARK}]+(?:[-'’._/&][\w{MARK}]+)*|[^\w\s]{MARK}*")


def windows(preprocessor: Preprocessor, sample: Any, limit: int) -> list[Any]:
    """The tokenizer's encodings of a text or of a list of words, in windows that overlap by the pipeline's stride."""
    split_words(sample)  # refuses what is neither
    room = limit - preprocessor.tokenizer.num_special_tokens_to_add(False)
    stride = min(int(preprocessor.pipeline.get("stride") or room // 4), room // 2)
    first = preprocessor.encoding(sample, words=isinstance(sample, list), cut=(limit, stride, "longest_first"))
    found = [first, *first.overflowing]
    return found[::-1] if preprocessor.direction == "left" else found  # in the order of the text


def align(batch: Batch, rows: Sequence[Any], padded: Callable[[list[Any], Any], list[Any]]) -> None:
    """Put down which word each token is of, and where it is in its text."""
    batch.word_ids = [padded(row.word_ids, None) for row in rows]
    batch.offsets = [padded(row.offsets, (0, 0)) for row in rows]


def split_words(sample: Sample) -> list[Word]:
    """Words with their character offsets: a list's own words joined by spaces, or a text split for a tagger.

    Taggers learn on words with punctuation set apart but abbreviations, hyphens and @names whole; so is a text split. Marks
    (vowel signs, accents) belong to their letter; where a script sets no blanks between words, each letter is one.
    EdgeError for a sample that is neither.
    """
    if isinstance(sample, str):
        return [(sample[m.start() : m.end()], m.start(), m.end()) for m in WORD.finditer(_shapes(sample))]
    if not isinstance(sample, list) or not all(isinstance(word, str) for word in sample):
        raise EdgeError(f"{shorten(sample)} is no text and no list of words")
    words, at = [], 0
    for word in sample:
        words.append((word, at, at + len(word)))
        at += len(word) + 1
    return words


def _shapes(text: str) -> str:
    """The text, of the same length, with marks and letters that stand alone as one character each."""
    if text.isascii():
        return text
    marks = {c for c in set(text) if c in JOINERS or unicodedata.category(c).startswith("M")}
    return "".join(MARK if c in marks else ALONE if UNSPACED.match(c) else c for c in text)


def _word_logits(logits: np.ndarray, batch: Any, samples: Sequence[Sample], labels: Sequence[str]) -> list[np.ndarray]:
    """Logits float32 [words, classes] of every sample: those of each word's first token.

    `logits` are of tokens, [rows, tokens, classes]. A word without any token (a stray control character) is nothing, "O".
    """
    words = [split_words(sample) for sample in samples]
    found = [np.zeros((len(each), logits.shape[-1]), dtype=np.float32) for each in words]
    seen: list[set[int]] = [set() for _ in samples]
    for rows in found:
        if "O" in labels:
            rows[:, labels.index("O")] = 1.0
    inside = {number: labels.index("I" + name[1:]) for number, name in enumerate(labels)
              if name.startswith("B-") and "I" + name[1:] in labels}  # fmt: skip
    for row, owner in enumerate(batch.owner):
        sample = samples[owner]
        covered = (
            _covered(sample, words[owner], batch.offsets[row])
            if isinstance(sample, str)
            else [range(0) if word is None else range(word, word + 1) for word in batch.word_ids[row]]
        )
        for token, numbers in enumerate(covered):
            for number in numbers:
                # A window may begin inside a word; the window before it had the word's first token.
                if number in seen[owner]:
                    continue
                seen[owner].add(number)
                found[owner][number] = _continued(logits[row, token], number > numbers[0], inside)
    return found


def _covered(text: str, words: Sequence[Word], offsets: Sequence[tuple[int, int]]) -> list[range]:
    """The numbers of the words that each token has a part of; none of special tokens and padding."""
    ends, starts = [end for _, _, end in words], [start for _, start, _ in words]
    found = []
    for start, end in offsets:
        while start < end and text[start].isspace():  # byte-level tokens may carry the space before the word
            start += 1
        found.append(range(bisect_right(ends, start), bisect_right(starts, end - 1)) if start < end else range(0))
    return found


def _continued(logits: np.ndarray, goes_on: bool, inside: Mapping[int, int]) -> np.ndarray:
    """A token's logits for a word of it; those after its first go on with the entity that the token begins."""
    best = int(logits.argmax())
    if not goes_on or best not in inside:
        return logits
    swapped = logits.copy()
    swapped[[best, inside[best]]] = logits[[inside[best], best]]
    return swapped


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """Logits float32 (words, classes) of each word's first sub-token, per sample."""
    return _word_logits(named_outputs(pipeline, outputs)[0], batch, samples, list(pipeline.get("labels", [])))


def present(
    pipeline: Pipeline, prediction: np.ndarray, sample: Sample, preprocessor: Any = None
) -> list[dict[str, Any]]:
    """Runs of words with the same entity as a list of {"entity", "text", "start", "end", "score"}; B- begins a new one, labels
    without B-/I- run on."""
    labels = list(pipeline["labels"])
    words = split_words(sample)
    text = sample if isinstance(sample, str) else " ".join(word for word, _, _ in words)
    spans: list[dict[str, Any]] = []
    open_entity = None
    for (_, start, end), row in zip(words, softmax(prediction), strict=True):
        label = labels[int(row.argmax())]
        kind, entity = (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("", label)
        if label == "O":
            open_entity = None
        elif entity == open_entity and kind != "B":
            spans[-1]["end"] = end
            spans[-1]["scores"].append(float(row.max()))
        else:
            open_entity = entity
            spans.append({"entity": entity, "start": start, "end": end, "scores": [float(row.max())]})
    return [
        {
            "entity": span["entity"],
            "text": text[span["start"] : span["end"]],
            "start": span["start"],
            "end": span["end"],
            "score": float(np.mean(span["scores"])),
        }
        for span in spans
    ]
