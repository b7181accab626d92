"""Texts to one label for each word, and to the spans that words with the same label make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .parts import EdgeError, Pipeline, Sample, shorten
from .text import Batch, Preprocessor, named_outputs, softmax


def windows(preprocessor: Preprocessor, sample: Any, limit: int) -> list[Any]:
    """The tokenizer's encodings of a sample's words, in windows that overlap by the pipeline's stride."""
    words = [word for word, _, _ in split_words(sample)]
    room = limit - preprocessor.tokenizer.num_special_tokens_to_add(False)
    stride = min(int(preprocessor.pipeline.get("stride") or room // 4), room // 2)
    preprocessor.truncate_at(limit, stride, "longest_first")
    first = preprocessor.encoding(words, None, words=True)
    return [first, *first.overflowing]


def align(batch: Batch, rows: Sequence[Any], padded: Callable[[list[Any], Any], list[Any]]) -> None:
    """Put down which word each token is of."""
    batch.word_ids = [padded(row.word_ids, None) for row in rows]


def split_words(sample: Sample) -> list[tuple[str, int, int]]:
    """Words with their character offsets: a list's own words joined by spaces, or a text split for a tagger.

    Taggers learn on words with punctuation set apart but abbreviations, hyphens and @names whole; so is a text split.
    """
    if isinstance(sample, str):
        found = re.finditer(r"[@#]?\w+(?:[-'’._/&]\w+)*|[^\w\s]", sample)
        return [(match.group(), match.start(), match.end()) for match in found]
    if not isinstance(sample, list) or not all(isinstance(word, str) for word in sample):
        raise EdgeError(f"{shorten(sample)} is no text and no list of words")
    words, at = [], 0
    for word in sample:
        words.append((word, at, at + len(word)))
        at += len(word) + 1
    return words


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """Logits float32 (words, classes) of each word's first sub-token, per sample."""
    logits, labels = named_outputs(pipeline, outputs)[0], list(pipeline.get("labels", []))
    found = []
    for sample in samples:
        rows = np.zeros((len(split_words(sample)), logits.shape[-1]), dtype=np.float32)
        if "O" in labels:
            rows[:, labels.index("O")] = 1.0  # a word without any token (a stray control character) is nothing
        found.append(rows)
    seen: set[tuple[int, int]] = set()
    for row, owner in enumerate(batch.owner):
        previous = None
        for token, word in enumerate(batch.word_ids[row]):
            # A window may begin inside a word; the window before it had the word's first token.
            if word is not None and word != previous and (owner, word) not in seen:
                seen.add((owner, word))
                found[owner][word] = logits[row, token]
            previous = word
    return found


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
