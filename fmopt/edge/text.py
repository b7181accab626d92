"""Texts to arrays, outputs to predictions, predictions to what people read; other kinds of input have parts of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .parts import EdgeError, Pipeline, Sample, explained, last_line, need, part_of, shorten

ANSWER_TOKENS = 30  # longest answer looked for, as in the SQuAD evaluation of the BERT paper (2018)


FILLS = 5  # tokens shown for a mask, as transformers' pipeline does


def read_sample(task: str, argument: Any) -> Any:
    """The raw that one argument of a command means: itself, or what the task's part makes of it."""
    read = getattr(part_of({"task": task}), "read_sample", None)
    if read is None:
        return argument
    with explained():
        return read(argument)


def open_preprocessor(folder: Path, pipeline: Pipeline) -> Any:
    """What encodes samples for the model of a checkpoint or bundle folder: `Preprocessor`, or a part's with its interface."""
    part = part_of(pipeline)
    if not hasattr(part, "Preprocessor"):
        return Preprocessor(Path(folder) / "tokenizer.json", pipeline)
    return PartPreprocessor(part, Path(folder), pipeline)


@dataclass
class Batch:
    """Encoded samples. One raw gives one row, or several windows where the task reads long texts in pieces.

    `inputs` hold int64 [rows, tokens]; `mask` is the attention mask, also for networks that take none. The lists are
    per row and per token, aligned with the padded row, and empty for tasks that do not need them.
    """

    inputs: dict[str, np.ndarray]
    mask: np.ndarray
    owner: list[int]  # row -> index of its raw
    word_ids: list[list[int | None]] = field(default_factory=list)
    offsets: list[list[tuple[int, int]]] = field(default_factory=list)
    sequence_ids: list[list[int | None]] = field(default_factory=list)


class Preprocessor:
    """Encodes samples exactly as the checkpoint's own (fast) Hugging Face tokenizer does."""

    def __init__(self, tokenizer_file: Path, pipeline: Pipeline):
        tokenizers = need("tokenizers", "tokenizers")
        if not Path(tokenizer_file).is_file():
            raise EdgeError(f"{tokenizer_file} is missing; a model needs the tokenizer.json it was trained with")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises bare Exception
            raise EdgeError(f"{tokenizer_file} is not a tokenizer this library reads: {last_line(error)}") from error
        self.pipeline = pipeline
        if pipeline.get("add_prefix_space"):
            self.tokenizer = _with_prefix_space(self.tokenizer)
        truncation = self.tokenizer.truncation or {}
        self._direction = truncation.get("direction", "right").lower()
        self._truncation: tuple[int, int, str] | None = None
        self.tokenizer.no_padding()  # padded here, to the longest row of a batch

    def encode(self, samples: Sequence[Sample], length: int | None = None) -> Batch:
        """Arrays of the samples, cut at the pipeline's max_length and padded to the longest row.

        With `length`, rows are cut and padded to exactly that many tokens. EdgeError on a sample the task cannot read.
        """
        limit = length or int(self.pipeline["max_length"])
        rows, owner = [], []
        for index, sample in enumerate(samples):
            try:
                windows = self._windows(sample, limit)
            except EdgeError as error:
                raise EdgeError(f"item {index + 1}: {error}") from error
            rows += windows
            owner += [index] * len(windows)
        if not rows:
            raise EdgeError("there is no text to encode")
        return self._batch(rows, owner, length or max(len(row) for row in rows))

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a whole text, however long; without `special` those of its own words alone."""
        self.tokenizer.no_truncation()
        self._truncation = None
        return list(self._encode(text, None, words=False, special=special).ids)

    def _windows(self, sample: Any, limit: int) -> list[Any]:
        """The tokenizer's encodings of one sample: one, or several windows that overlap by `stride` tokens."""
        task = self.pipeline["task"]
        if self.pipeline.get("prefix") and isinstance(sample, str):
            sample = self.pipeline["prefix"] + sample
        if task == "question-answering":
            return self._question_windows(*as_pair(sample), limit)
        if task == "token-classification":
            words = [word for word, _, _ in split_words(sample)]
            room = limit - self.tokenizer.num_special_tokens_to_add(False)
            self._cut_at(limit, min(int(self.pipeline.get("stride") or room // 4), room // 2), "longest_first")
            first = self._encode(words, None, words=True)
            return [first, *first.overflowing]
        self._cut_at(limit, 0, "longest_first")
        text, pair = as_pair(sample) if isinstance(sample, tuple) else (sample, None)
        return [self._encode(text, pair, words=isinstance(sample, list))]

    def _question_windows(self, question: str, context: str, limit: int) -> list[Any]:
        """Windows over the context, each with the whole question; a question longer than half of it is cut."""
        self.tokenizer.no_truncation()
        self._truncation = None
        asked = self._encode(question, None, words=False, special=False)
        if len(asked) > limit // 2:
            question, asked = question[: asked.offsets[limit // 2 - 1][1]], asked.ids[: limit // 2]
        room = limit - len(asked) - self.tokenizer.num_special_tokens_to_add(True)
        if room < 2:
            raise EdgeError(f"{limit} tokens leave no room for a context; raise max_length")
        # The tokenizer aborts when windows do not advance, so neighbours share at most half of the room.
        self._cut_at(limit, min(int(self.pipeline.get("stride") or 128), room // 2), "only_second")
        first = self._encode(question, context, words=False)
        return [first, *first.overflowing]

    def _cut_at(self, limit: int, stride: int, strategy: str) -> None:
        if self._truncation != (limit, stride, strategy):
            self.tokenizer.enable_truncation(limit, stride=stride, strategy=strategy, direction=self._direction)
            self._truncation = (limit, stride, strategy)

    def _encode(self, text: Any, pair: Any, *, words: bool, special: bool = True) -> Any:
        # One by one: the library's own batching starts threads of its own beside those the caller asked for.
        try:
            return self.tokenizer.encode(text, pair, is_pretokenized=words, add_special_tokens=special)
        except (TypeError, ValueError, UnicodeError) as error:
            raise EdgeError(f"{shorten(text)} is not a text, a pair of texts or a list of words") from error

    def _batch(self, rows: list[Any], owner: list[int], width: int) -> Batch:
        padding = self.pipeline["padding"]
        ids = np.full((len(rows), width), padding["id"], dtype=np.int64)
        types = np.full((len(rows), width), padding.get("type_id", 0), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        left = padding.get("side", "right") == "left"
        for index, row in enumerate(rows):
            at = slice(width - len(row), width) if left else slice(0, len(row))
            ids[index, at], types[index, at], mask[index, at] = row.ids, row.type_ids, row.attention_mask
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        made["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)  # counted from the first token that is no padding
        unknown = set(self.pipeline["inputs"]) - set(made)
        if unknown:
            raise EdgeError(f"the network wants inputs {sorted(unknown)}; a tokenizer makes only {sorted(made)}")
        batch = Batch({name: made[name] for name in self.pipeline["inputs"]}, mask, owner)

        def aligned(values: list[Any], blank: Any) -> list[Any]:
            blanks = [blank] * (width - len(values))
            return blanks + values if left else values + blanks

        task = self.pipeline["task"]
        if task == "token-classification":
            batch.word_ids = [aligned(row.word_ids, None) for row in rows]
        elif task == "question-answering":
            batch.offsets = [aligned(row.offsets, (0, 0)) for row in rows]
            batch.sequence_ids = [aligned(row.sequence_ids, None) for row in rows]
        return batch


class PartPreprocessor:
    """A part's preprocessor; what it refuses is an EdgeError."""

    def __init__(self, part: Any, folder: Path, pipeline: Pipeline):
        self.pipeline = pipeline
        with explained():
            self.own = part.Preprocessor(folder, pipeline)

    def encode(self, samples: Sequence[Sample], length: int | None = None) -> Any:
        """The part's batch of the samples; `length` means what the part says."""
        with explained():
            return self.own.encode(samples, length)


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


def as_pair(sample: Any) -> tuple[str, str]:
    """A raw that must be a pair of texts; EdgeError for another."""
    if isinstance(sample, tuple) and len(sample) == 2 and all(isinstance(part, str) for part in sample):
        return sample
    raise EdgeError(
        f"{shorten(sample)} is not a pair of texts; give (first, second), for an answer (question, context)"
    )


def _with_prefix_space(tokenizer: Any) -> Any:
    """The tokenizer with a space before the first word, as `add_prefix_space=True` does in transformers."""

    def set_in(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("type") in ("ByteLevel", "RobertaProcessing") and "add_prefix_space" in part:
                part["add_prefix_space"] = True
            for value in part.values():
                set_in(value)
        elif isinstance(part, list):
            for value in part:
                set_in(value)

    written = json.loads(tokenizer.to_str())
    set_in(written.get("pre_tokenizer"))
    set_in(written.get("post_processor"))
    return type(tokenizer).from_str(json.dumps(written))


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[Any]:
    """One prediction per raw, from the network's outputs for `batch`.

    sentence-embedding: float32 (dim,); text-classification: logits float32 (classes,); text-regression: float32 (1,);
    token-classification: logits float32 (words, classes) of each word's first sub-token; question-answering:
    {"text", "start", "end", "score"} with character offsets in the context; fill-mask: log-probabilities float32 (masks,
    vocabulary). EdgeError for a text without any mask. Other tasks: see their part.
    """
    part = part_of(pipeline)
    if part is not None:
        with explained():
            return list(part.postprocess(pipeline, outputs, batch, samples))
    arrays = [_named(outputs, name, len(pipeline["outputs"])) for name in pipeline["outputs"]]
    task = pipeline["task"]
    if task == "sentence-embedding":
        return list(pool(arrays[0], batch.mask, pipeline.get("pooling", "mean"), bool(pipeline.get("normalize"))))
    if task == "text-classification":
        return list(arrays[0])
    if task == "text-regression":
        return list(arrays[0].reshape(len(batch.owner), -1)[:, :1])
    if task == "token-classification":
        return _word_logits(arrays[0], batch, samples, pipeline)
    if task == "question-answering":
        return _answers(arrays[0], arrays[1], batch, samples, bool(pipeline.get("no_answer")))
    if task == "fill-mask":
        return [_fills(*row, pipeline) for row in zip(arrays[0], batch.inputs["input_ids"], samples, strict=True)]
    raise EdgeError(f"there is no task {task!r}")


def pool(hidden: np.ndarray, mask: np.ndarray, how: str, normalize: bool) -> np.ndarray:
    """Sentence vectors float32 [rows, dim] from token vectors [rows, tokens, dim], as sentence-transformers pools."""
    weights = mask[:, :, None].astype(np.float32)
    if how == "mean":
        pooled = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    elif how == "max":
        pooled = np.where(weights > 0, hidden, np.float32(-np.inf)).max(axis=1)
    elif how == "cls":
        pooled = hidden[np.arange(len(hidden)), mask.argmax(axis=1)]  # the first token that is no padding
    else:
        raise EdgeError(f"there is no pooling {how!r}; there are mean, cls, max")
    if normalize:
        pooled = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(pooled, dtype=np.float32)


def _named(outputs: Mapping[str, np.ndarray], name: str, wanted: int) -> np.ndarray:
    if name in outputs:
        return np.asarray(outputs[name], dtype=np.float32)
    if wanted == len(outputs) == 1:  # a graph exported elsewhere may call its only output otherwise
        return np.asarray(next(iter(outputs.values())), dtype=np.float32)
    raise EdgeError(f"the graph has no output {name!r}; it has {', '.join(sorted(outputs))}")


def _word_logits(logits: np.ndarray, batch: Batch, samples: Sequence[Sample], pipeline: Pipeline) -> list[np.ndarray]:
    labels = list(pipeline.get("labels", []))
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


def _answers(
    starts: np.ndarray, ends: np.ndarray, batch: Batch, samples: Sequence[Sample], may_be_none: bool
) -> list[dict[str, Any]]:
    """The best span of each sample over all its windows; its score is p(start) · p(end) among all their tokens."""
    owners = np.asarray(batch.owner)
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


def _fills(logits: np.ndarray, ids: np.ndarray, sample: Sample, pipeline: Pipeline) -> np.ndarray:
    """Log-probabilities (masks, vocabulary) at the masks of one row of ids."""
    mask = pipeline["mask"]
    at = ids == mask["id"]
    if not at.any():
        raise EdgeError(
            f"{shorten(sample)!r} has no {mask['token']} among the {pipeline['max_length']} tokens that are read; write "
            f"{mask['token']} where a word is wanted"
        )
    shifted = logits[at] - logits[at].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


def present(pipeline: Pipeline, prediction: Any, sample: Sample, preprocessor: Any = None) -> Any:
    """A prediction as JSON for people; that of a fill-mask model is spelled by the `preprocessor` that encoded the sample.

    A vector as a list; {"label", "score", "scores"} (with "labels" above one half when several may hold); a number; a
    list of {"entity", "text", "start", "end", "score"}; an answer dict; a list of {"score", "token", "token_str",
    "sequence"}, or one such list for each of several masks, as transformers' fill-mask pipeline gives.
    """
    task = pipeline["task"]
    part = part_of(pipeline)
    if part is not None:
        return part.present(pipeline, prediction, sample, getattr(preprocessor, "own", preprocessor))
    if task == "sentence-embedding":
        return [float(value) for value in prediction]
    if task == "text-regression":
        return float(prediction[0])
    if task == "text-classification":
        return _present_class(prediction, pipeline)
    if task == "token-classification":
        return _present_spans(prediction, sample, list(pipeline["labels"]))
    if task == "fill-mask" and preprocessor is not None:
        return _present_fills(prediction, sample, preprocessor)
    return dict(prediction)


def _present_class(logits: np.ndarray, pipeline: Pipeline) -> dict[str, Any]:
    several = bool(pipeline.get("multi_label"))
    shares = 1 / (1 + np.exp(-logits.astype(np.float64))) if several else softmax(logits)
    labels = list(pipeline.get("labels") or [f"LABEL_{index}" for index in range(len(logits))])
    scores = {label: float(share) for label, share in zip(labels, shares, strict=True)}
    best = max(scores, key=lambda label: scores[label])
    shown: dict[str, Any] = {"label": best, "score": scores[best], "scores": scores}
    if several:
        shown["labels"] = [label for label, share in scores.items() if share >= 0.5]
    return shown


def _present_spans(logits: np.ndarray, sample: Sample, labels: list[str]) -> list[dict[str, Any]]:
    """Runs of words with the same entity; B- begins a new one, labels without B-/I- run on."""
    words = split_words(sample)
    text = sample if isinstance(sample, str) else " ".join(word for word, _, _ in words)
    spans: list[dict[str, Any]] = []
    open_entity = None
    for (_, start, end), row in zip(words, softmax(logits), strict=True):
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


def _present_fills(scores: np.ndarray, sample: Sample, preprocessor: Preprocessor) -> list[Any]:
    ids = preprocessor.encode([sample]).inputs["input_ids"][0]
    places = np.flatnonzero(ids == preprocessor.pipeline["mask"]["id"])
    decode, single = preprocessor.tokenizer.decode, len(places) == 1  # other masks stay to be seen

    def fill(place: int, token: int, score: float) -> dict[str, Any]:
        filled = [*ids[:place].tolist(), token, *ids[place + 1 :].tolist()]
        word, text = decode([token], skip_special_tokens=False), decode(filled, skip_special_tokens=single)
        return {"score": score, "token": token, "token_str": word, "sequence": text}

    found = []
    for place, row in zip(places, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:FILLS]
        found.append([fill(int(place), int(token), float(np.exp(row[token]))) for token in best])
    return found[0] if single else found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=-1, keepdims=True)
