"""A question and a context to the span of the context that answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import EdgeError
from .parts import Pipeline, Sample
from .text import Batch, Preprocessor, as_pair, named_outputs

PAIRS = True  # every sample is a pair of texts
ANSWER_TOKENS = 30  # longest answer looked for, as in the SQuAD evaluation of the BERT paper (2018)


def windows(preprocessor: Preprocessor, sample: Any, limit: int) -> list[Any]:
    """Windows over the context, each with the whole question; a question longer than half of it is cut."""
    question, context = as_pair(sample)
    tokenizer = preprocessor.tokenizer
    question = preprocessor.beginning(question, limit)
    asked = preprocessor.encoding(question, special=False)
    if len(asked) > limit // 2:
        question, asked = question[: asked.offsets[limit // 2 - 1][1]], asked.ids[: limit // 2]
    room = limit - len(asked) - tokenizer.num_special_tokens_to_add(True)
    if room < 2:
        raise EdgeError(f"{limit} tokens leave no room for a context; raise max_length")
    # The tokenizer aborts when windows do not advance, so neighbours share at most half of the room.
    stride = min(int(preprocessor.pipeline.get("stride") or 128), room // 2)
    first = preprocessor.encoding(question, context, cut=(limit, stride, "only_second"))
    return [first, *first.overflowing]


def align(batch: Batch, rows: Sequence[Any], padded: Callable[[list[Any], Any], list[Any]]) -> None:
    """Put down where each token is in its text, and which of the two texts that is."""
    batch.offsets = [padded(row.offsets, (0, 0)) for row in rows]
    batch.sequence_ids = [padded(row.sequence_ids, None) for row in rows]


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """{"text", "start", "end", "score"} per sample, with character offsets in the context: the best span over all windows of the
    sample; its score is p(start) · p(end) among all their tokens."""
    starts, ends = named_outputs(pipeline, outputs)
    owners, may_be_none = np.asarray(batch.owner), bool(pipeline.get("no_answer"))
    return [
        _answer(starts, ends, batch, np.flatnonzero(owners == index), as_pair(sample)[1], may_be_none)
        for index, sample in enumerate(samples)
    ]


def _answer(
    starts: np.ndarray, ends: np.ndarray, batch: Batch, rows: np.ndarray, context: str, may_be_none: bool
) -> dict[str, Any]:
    tokens = [np.flatnonzero([part == 1 for part in batch.sequence_ids[row]]) for row in rows]
    # A window without the answer points at its first token ([CLS]); "no answer" is as likely as the least such window.
    firsts = batch.mask[rows].argmax(axis=1)
    null_start, null_end = min(zip(starts[rows, firsts], ends[rows, firsts], strict=True), key=sum)
    spans = [(*_best_span(starts[row, at], ends[row, at]), row, at) for row, at in zip(rows, tokens, strict=True)]
    total, begin, end, row, at = max(spans, key=lambda span: span[0])
    nothing = {"text": "", "start": 0, "end": 0, "score": 0.0}
    null = [null_start], [null_end]
    sides = [
        np.concatenate([side[row, at] for row, at in zip(rows, tokens, strict=True)] + [extra] * may_be_none)
        for side, extra in zip((starts, ends), null, strict=True)
    ]
    if may_be_none and null_start + null_end >= total:
        return {**nothing, "score": _share(null_start + null_end, sides)}
    if total == -np.inf:  # an empty context
        return nothing
    start, stop = batch.offsets[row][at[begin]][0], batch.offsets[row][at[end]][1]
    while start < stop and context[start].isspace():  # byte-level tokens may carry the space before the word
        start += 1
    return {"text": context[start:stop], "start": int(start), "end": int(stop), "score": _share(total, sides)}


def _best_span(start: np.ndarray, end: np.ndarray) -> tuple[float, int, int]:
    """Largest start + end logit with start ≤ end < start + ANSWER_TOKENS; -inf without tokens."""
    if not len(start):
        return float("-inf"), 0, 0
    ordered = np.tri(len(start), dtype=bool).T & np.tri(len(start), k=ANSWER_TOKENS - 1, dtype=bool)
    sums = np.where(ordered, start[:, None] + end[None, :], -np.inf)
    begin, stop = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[begin, stop]), int(begin), int(stop)


def _share(total: float, sides: Sequence[np.ndarray]) -> float:
    """exp(total) as a share of what both sides could be."""
    return float(np.exp(total - sum(np.logaddexp.reduce(side.astype(np.float64)) for side in sides)))


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden answers are compared by."""
    return "change of the answer", _other_answer


def _other_answer(written: Mapping[str, Any], got: Mapping[str, Any]) -> float:
    """1 for an answer elsewhere, else how far its score moved."""
    same = all(written[key] == got[key] for key in ("text", "start", "end"))
    return float(abs(written["score"] - got["score"])) if same else 1.0


def present(
    pipeline: Pipeline, prediction: Mapping[str, Any], sample: Sample, preprocessor: Any = None
) -> dict[str, Any]:
    """The answer as it is."""
    return dict(prediction)
