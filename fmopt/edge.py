"""Runs a bundle with nothing but numpy, tokenizers and the runtime (onnxruntime or openvino).

This one file is fmopt's bottom layer and is copied into every bundle as `run.py`, so it imports nothing of fmopt:

    python run.py predict "some text"        python run.py bench --length 128        python run.py verify

It turns raw texts into arrays, runs the graph, turns outputs into predictions, and refuses a bundle that is damaged
or that computes something else on this machine than where it was judged. It knows nothing of training or exporting.
What other raws or answers need is in a *part*, a file beside this one (see `PARTS`).

Words used here. A *raw* is what the user has: a text, a pair of texts, a list of words or of items, or the bytes of an image or
audio file. A *prediction* is what is judged (a vector, logits, an answer); `present` makes it readable. A *pipeline* is a dict
of JSON values; a part adds its own:
    task         sentence-embedding, text-classification, text-regression, token-classification, question-answering
                 fill-mask, text-generation, translation, summarization or text-to-audio
    max_length   tokens; longer texts are cut, or read in windows where the task allows
    inputs       names the network takes: input_ids, attention_mask, token_type_ids
    outputs      ["last_hidden_state"], ["logits"] or ["start_logits", "end_logits"]
    padding      {"id", "type_id", "token", "side"}
    pooling, normalize (embedding); labels, multi_label (classification); stride (windows: tokens shared by neighbours);
    no_answer (question answering: True when the model may answer "nothing"); add_prefix_space (byte-level tokenizers);
    mask {"id", "token"} (fill-mask)
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Raw = str | tuple[str, str] | list[str] | bytes
Pipeline = Mapping[str, Any]

FORMAT = "fmopt-bundle-1"
MANIFEST, GOLDEN, UNFINISHED = "fmopt.json", "golden.json", ".fmopt-writing"
# What may lie beside the files of a manifest: written after it, or by a run of ours.
UNLISTED = frozenset(
    {
        MANIFEST,
        "record.json",
        "report.html",
        "report.md",
        "stages",
        "running",
        "checkpoint",
        "bundle.tmp",
        "__pycache__",
    }
)
# CPU features that sum 8-bit products in 32 bits; a graph that needs one is served by any of them.
INT8_DOT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"})
ANSWER_TOKENS = 30  # longest answer looked for, as in the SQuAD evaluation of the BERT paper (2018)
APPENDS = "fmopt.appends"  # metadata of a graph whose past may lie in buffers with room for more
PAST = "past_key_values."  # begins the names of inputs that hold what earlier tokens left (see edge_generation.py)
FILLS = 5  # tokens shown for a mask, as transformers' pipeline does


# Tasks whose raws or answers are not plain text -> the file beside this one that knows them. Such a part imports numpy and
# nothing of fmopt, raises ValueError with one line for a raw it cannot read, and has
#     postprocess, present             as the functions of that name here
# and may have
#     Preprocessor(folder, pipeline)   encode(raws, length=None) -> an object with inputs, mask (or None) and owner, as
#                                      Batch; else `Preprocessor`, for texts
#     read_raw(text) -> raw            what an argument of `run.py predict` means; else the text itself
#     run(pipeline, runner, batch, most)   when one pass through the graph is not enough; else `run_rows`
#     timed(runner, inputs) -> inputs  of the call whose latency matters; else the inputs themselves
#     work(runner, inputs)             what a latency is taken of, when it is more than one call
#     answer(model, raws, **wishes)    what people read, where it is not the judged prediction made readable
#     stream(model, raw, **wishes)     the same of one raw, in pieces as they come
#     soonest(model, raws)             the first piece of every answer, for its latency; else the predictions
#     add_arguments(parser), wishes_of(arguments)   wishes on the command line
#     difference(written, got)         of a golden prediction; else `difference`
PARTS: dict[str, str] = {
    "image-classification": "edge_image",
    "zero-shot-image-classification": "edge_image",
    "audio-classification": "edge_audio",
    "automatic-speech-recognition": "edge_audio",
    "text-generation": "edge_generation",
    "image-segmentation": "edge_image",
    "image-feature-extraction": "edge_image",
    "translation": "edge_seq2seq",
    "summarization": "edge_seq2seq",
    "sequential-recommendation": "edge_recommendation",
    "text-to-audio": "edge_speech",
    "object-detection": "edge_image",
}
# Parts that work by another: they find it under the name it has for them, and bundles carry it too.
BY_OTHERS = {
    "edge_seq2seq": {"generation": "edge_generation"},
    "edge_whisper": {"audio": "edge_audio", "seq2seq": "edge_seq2seq"},
}
HALVES = "halves"  # option of a graph of two halves, each opened by itself (see edge_seq2seq.py), …
HALVES_BY = "decoder_input_ids"  # … and the input that the second takes


class EdgeError(Exception):
    """Something that can be explained in one line: what, where, and the way out."""


def part_of(pipeline: Pipeline) -> Any:
    """The module for a pipeline whose raws or answers are not plain text, None for others."""
    name = part_name(pipeline)
    return None if name is None else _part(name)


def part_name(pipeline: Pipeline) -> str | None:
    """The part that a pipeline names, else that of its task."""
    return pipeline.get("part") or PARTS.get(pipeline["task"])


@cache
def _part(name: str) -> Any:
    if __package__:
        return import_module(f"{__package__}.{name}")
    path = Path(__file__).with_name(f"{name}.py")  # run.py of a bundle
    if not path.is_file():
        raise EdgeError(f"{path} is missing; copy the whole bundle")
    loader = SourceFileLoader(f"{name}@{path.parent}", str(path))
    module = ModuleType(loader.name)
    sys.modules[loader.name] = module  # dataclasses look their module up
    for called, other in BY_OTHERS.get(name, {}).items():
        setattr(module, called, _part(other))
    loader.exec_module(module)
    return module


def part_files(pipeline: Pipeline) -> list[Path]:
    """The files of a pipeline's part and those it works by, which lie beside this one, also in a bundle."""
    names = [name for name in (part_name(pipeline),) if name is not None]
    for name in names:
        names += [other for other in BY_OTHERS.get(name, {}).values() if other not in names]
    return [Path(__file__).with_name(f"{name}.py") for name in names]


@contextmanager
def _explained() -> Iterator[None]:
    """A part's ValueError as an EdgeError."""
    try:
        yield
    except ValueError as error:
        raise EdgeError(str(error)) from error


def read_raw(task: str, told: Any) -> Any:
    """The raw that one argument of a command means: itself, or what the task's part makes of it."""
    read = getattr(part_of({"task": task}), "read_raw", None)
    if read is None:
        return told
    with _explained():
        return read(told)


def open_preprocessor(folder: Path, pipeline: Pipeline) -> Any:
    """What encodes raws for the model of a checkpoint or bundle folder: `Preprocessor`, or a part's with its interface."""
    part = part_of(pipeline)
    if not hasattr(part, "Preprocessor"):
        return Preprocessor(Path(folder) / "tokenizer.json", pipeline)
    return PartPreprocessor(part, Path(folder), pipeline)


# -------------------------------------------------------------------------------- texts → arrays


@dataclass
class Batch:
    """Encoded raws. One raw gives one row, or several windows where the task reads long texts in pieces.

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
    """Encodes raws exactly as the checkpoint's own (fast) Hugging Face tokenizer does."""

    def __init__(self, tokenizer_file: Path, pipeline: Pipeline):
        tokenizers = _need("tokenizers", "tokenizers")
        if not Path(tokenizer_file).is_file():
            raise EdgeError(f"{tokenizer_file} is missing; a model needs the tokenizer.json it was trained with")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises bare Exception
            raise EdgeError(f"{tokenizer_file} is not a tokenizer this library reads: {_line(error)}") from error
        self.pipeline = pipeline
        if pipeline.get("add_prefix_space"):
            self.tokenizer = _with_prefix_space(self.tokenizer)
        truncation = self.tokenizer.truncation or {}
        self._direction = truncation.get("direction", "right").lower()
        self._truncation: tuple[int, int, str] | None = None
        self.tokenizer.no_padding()  # padded here, to the longest row of a batch

    def encode(self, raws: Sequence[Raw], length: int | None = None) -> Batch:
        """Arrays of the raws, cut at the pipeline's max_length and padded to the longest row.

        With `length`, rows are cut and padded to exactly that many tokens. EdgeError on a raw the task cannot read.
        """
        limit = length or int(self.pipeline["max_length"])
        rows, owner = [], []
        for index, raw in enumerate(raws):
            try:
                windows = self._windows(raw, limit)
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

    def _windows(self, raw: Any, limit: int) -> list[Any]:
        """The tokenizer's encodings of one raw: one, or several windows that overlap by `stride` tokens."""
        task = self.pipeline["task"]
        if self.pipeline.get("prefix") and isinstance(raw, str):
            raw = self.pipeline["prefix"] + raw
        if task == "question-answering":
            return self._question_windows(*_as_pair(raw), limit)
        if task == "token-classification":
            words = [word for word, _, _ in split_words(raw)]
            room = limit - self.tokenizer.num_special_tokens_to_add(False)
            self._cut_at(limit, min(int(self.pipeline.get("stride") or room // 4), room // 2), "longest_first")
            first = self._encode(words, None, words=True)
            return [first, *first.overflowing]
        self._cut_at(limit, 0, "longest_first")
        text, pair = _as_pair(raw) if isinstance(raw, tuple) else (raw, None)
        return [self._encode(text, pair, words=isinstance(raw, list))]

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
            raise EdgeError(f"{_shorten(text)} is not a text, a pair of texts or a list of words") from error

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
        with _explained():
            self.own = part.Preprocessor(folder, pipeline)

    def encode(self, raws: Sequence[Raw], length: int | None = None) -> Any:
        """The part's batch of the raws; `length` means what the part says."""
        with _explained():
            return self.own.encode(raws, length)


def split_words(raw: Raw) -> list[tuple[str, int, int]]:
    """Words with their character offsets: a list's own words joined by spaces, or a text split for a tagger.

    Taggers learn on words with punctuation set apart but abbreviations, hyphens and @names whole; so is a text split.
    """
    if isinstance(raw, str):
        found = re.finditer(r"[@#]?\w+(?:[-'’._/&]\w+)*|[^\w\s]", raw)
        return [(match.group(), match.start(), match.end()) for match in found]
    if not isinstance(raw, list) or not all(isinstance(word, str) for word in raw):
        raise EdgeError(f"{_shorten(raw)} is no text and no list of words")
    words, at = [], 0
    for word in raw:
        words.append((word, at, at + len(word)))
        at += len(word) + 1
    return words


def _as_pair(raw: Any) -> tuple[str, str]:
    if isinstance(raw, tuple) and len(raw) == 2 and all(isinstance(part, str) for part in raw):
        return raw
    raise EdgeError(f"{_shorten(raw)} is not a pair of texts; give (first, second), for an answer (question, context)")


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


# -------------------------------------------------------------------------------- outputs → predictions


def postprocess(pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, raws: Sequence[Raw]) -> list[Any]:
    """One prediction per raw, from the network's outputs for `batch`.

    sentence-embedding: float32 (dim,); text-classification: logits float32 (classes,); text-regression: float32 (1,);
    token-classification: logits float32 (words, classes) of each word's first sub-token; question-answering:
    {"text", "start", "end", "score"} with character offsets in the context; fill-mask: log-probabilities float32 (masks,
    vocabulary). EdgeError for a text without any mask. Other tasks: see their part.
    """
    part = part_of(pipeline)
    if part is not None:
        with _explained():
            return list(part.postprocess(pipeline, outputs, batch, raws))
    arrays = [_named(outputs, name, len(pipeline["outputs"])) for name in pipeline["outputs"]]
    task = pipeline["task"]
    if task == "sentence-embedding":
        return list(pool(arrays[0], batch.mask, pipeline.get("pooling", "mean"), bool(pipeline.get("normalize"))))
    if task == "text-classification":
        return list(arrays[0])
    if task == "text-regression":
        return list(arrays[0].reshape(len(batch.owner), -1)[:, :1])
    if task == "token-classification":
        return _word_logits(arrays[0], batch, raws, pipeline)
    if task == "question-answering":
        return _answers(arrays[0], arrays[1], batch, raws, bool(pipeline.get("no_answer")))
    if task == "fill-mask":
        return [_fills(*row, pipeline) for row in zip(arrays[0], batch.inputs["input_ids"], raws, strict=True)]
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


def _word_logits(logits: np.ndarray, batch: Batch, raws: Sequence[Raw], pipeline: Pipeline) -> list[np.ndarray]:
    labels = list(pipeline.get("labels", []))
    found = []
    for raw in raws:
        rows = np.zeros((len(split_words(raw)), logits.shape[-1]), dtype=np.float32)
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
    starts: np.ndarray, ends: np.ndarray, batch: Batch, raws: Sequence[Raw], may_be_none: bool
) -> list[dict[str, Any]]:
    """The best span of each raw over all its windows; its score is p(start) · p(end) among all their tokens."""
    owners = np.asarray(batch.owner)
    return [
        _answer(starts, ends, batch, np.flatnonzero(owners == index), _as_pair(raw)[1], may_be_none)
        for index, raw in enumerate(raws)
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


def _fills(logits: np.ndarray, ids: np.ndarray, raw: Raw, pipeline: Pipeline) -> np.ndarray:
    """Log-probabilities (masks, vocabulary) at the masks of one row of ids."""
    mask = pipeline["mask"]
    at = ids == mask["id"]
    if not at.any():
        raise EdgeError(
            f"{_shorten(raw)!r} has no {mask['token']} among the {pipeline['max_length']} tokens that are read; write "
            f"{mask['token']} where a word is wanted"
        )
    shifted = logits[at] - logits[at].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


# -------------------------------------------------------------------------------- predictions → people


def present(pipeline: Pipeline, prediction: Any, raw: Raw, preprocessor: Any = None) -> Any:
    """A prediction as JSON for people; that of a fill-mask model is spelled by the `preprocessor` that encoded the raw.

    A vector as a list; {"label", "score", "scores"} (with "labels" above one half when several may hold); a number; a
    list of {"entity", "text", "start", "end", "score"}; an answer dict; a list of {"score", "token", "token_str",
    "sequence"}, or one such list for each of several masks, as transformers' fill-mask pipeline gives.
    """
    task = pipeline["task"]
    part = part_of(pipeline)
    if part is not None:
        return part.present(pipeline, prediction, raw, getattr(preprocessor, "own", preprocessor))
    if task == "sentence-embedding":
        return [float(value) for value in prediction]
    if task == "text-regression":
        return float(prediction[0])
    if task == "text-classification":
        return _present_class(prediction, pipeline)
    if task == "token-classification":
        return _present_spans(prediction, raw, list(pipeline["labels"]))
    if task == "fill-mask" and preprocessor is not None:
        return _present_fills(prediction, raw, preprocessor)
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


def _present_spans(logits: np.ndarray, raw: Raw, labels: list[str]) -> list[dict[str, Any]]:
    """Runs of words with the same entity; B- begins a new one, labels without B-/I- run on."""
    words = split_words(raw)
    text = raw if isinstance(raw, str) else " ".join(word for word, _, _ in words)
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


def _present_fills(scores: np.ndarray, raw: Raw, preprocessor: Preprocessor) -> list[Any]:
    ids = preprocessor.encode([raw]).inputs["input_ids"][0]
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


# -------------------------------------------------------------------------------- graphs that run


# element types of graph inputs, by ONNX's names and by OpenVINO's
ONNX_KINDS = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16, "bool": np.bool_}
OPENVINO_KINDS = {"i64": np.int64, "i32": np.int32, "f32": np.float32, "f16": np.float16, "boolean": np.bool_}


class OnnxRuntimeRunner:
    """An ONNX graph opened by ONNX Runtime, or one `half` of it. Option: "providers", by default the CPU's."""

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int, half: int | None = None):
        self.ort = ort = _need("onnxruntime", "onnxruntime")
        session = ort.SessionOptions()
        session.intra_op_num_threads = threads
        session.inter_op_num_threads = 1
        session.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        session.log_severity_level = 3
        if threads > 1:
            # Idle threads of one session must not spin beside another that is being timed.
            session.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = ort.InferenceSession(
                onnx_model(path, session, half),
                session,
                providers=list(options.get("providers", ["CPUExecutionProvider"])),
            )
        except Exception as error:  # pybind classes derive from Exception only
            raise EdgeError(f"ONNX Runtime {ort.__version__} cannot open {path}: {_line(error)}") from error
        kinds = {f"tensor({name})": kind for name, kind in ONNX_KINDS.items()}
        self.inputs = {port.name: kinds.get(port.type, np.int64) for port in self.session.get_inputs()}
        self.optional = {
            port.name: kinds.get(port.type, np.int64) for port in self.session.get_overridable_initializers()
        }
        self.past = {port.name: port.shape for port in self.session.get_inputs() if port.name.startswith(PAST)}
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.appends = APPENDS in self.session.get_modelmeta().custom_metadata_map
        self.bound: tuple[dict[str, np.ndarray], Any] | None = (
            None  # the last past that was appended to, with its binding
        )

    def room(self, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """An empty past with room for so many tokens, which `run` appends to in place; nothing where the graph cannot."""
        if not self.appends:
            return {}
        return {name: np.zeros((rows, shape[1], tokens, shape[3]), np.float32) for name, shape in self.past.items()}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the graph does not take are ignored, a past that is not given is empty.

        A past that has room for the new tokens too (see `room`) is appended to where it lies, and is the present.
        """
        asked = {**self.inputs, **{name: kind for name, kind in self.optional.items() if name in inputs}}
        total = inputs["attention_mask"].shape[1] if self.appends else 0
        if self.appends and all(name in inputs and inputs[name].shape[2] >= total for name in self.past):
            return self._append({name: kind for name, kind in asked.items() if name not in self.past}, inputs)
        feed = _feed(asked, with_past(self.past, inputs))
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))

    def _append(self, asked: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        past = {name: inputs[name] for name in self.past}
        presents = {f"present.{name.removeprefix(PAST)}": array for name, array in past.items()}
        if self.bound is None or any(self.bound[0][name] is not array for name, array in past.items()):
            binding = self.session.io_binding()
            for names in (past, presents):
                bind = binding.bind_input if names is past else binding.bind_output
                for name, array in names.items():
                    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self.bound = past, binding
        binding = self.bound[1]
        feed = _feed(asked, inputs)  # lives until the run is over
        for name, array in feed.items():
            value = self.ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)  # not bind_cpu_input, which knows no optional inputs
        rest = [name for name in self.outputs if name not in presents]
        for name in rest:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        made = dict(zip([*presents, *rest], binding.get_outputs(), strict=True))
        return {**{name: made[name].numpy() for name in rest}, **presents}

    def close(self) -> None:
        """Give back memory and threads."""
        self.session = self.bound = None


def onnx_model(path: Path, session: Any, half: int | None) -> str | bytes:
    """What a session opens: the file, or one half of it, in memory."""
    if half is None:
        return str(path)
    # Weights that lie beside a file are not found by what is in memory.
    session.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path(path).parent))
    model: bytes = _part("edge_seq2seq").halves(path)[half]
    return model


class OpenVinoRunner:
    """An IR or ONNX graph opened by OpenVINO on the CPU.

    Options: "precision", "f32" (default) or "bf16"; "shape", [batch, tokens] that it is compiled for: other shapes run
    too, on a second compilation that is made when the first of them comes (a fraction of a second); "kv_cache", "f32"
    (default) or "u8", how a stateful graph keeps keys and values. `half`: of two, the one that is opened.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int, half: int | None = None):
        openvino = _need("openvino", "openvino")
        self.path, self.half = path, half
        self.properties = {
            # Without the hint OpenVINO silently computes in bf16 where the CPU can.
            "INFERENCE_PRECISION_HINT": str(options.get("precision", "f32")),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            **({"KV_CACHE_PRECISION": str(options.get("kv_cache", "f32"))} if options.get("stateful") else {}),
        }
        self.shape = tuple(options.get("shape") or ()) or None
        self.requests: dict[tuple[int, ...] | None, Any] = {}
        try:
            compiled = self._request(self.shape).get_compiled_model()
        except Exception as error:
            raise EdgeError(f"OpenVINO {openvino.__version__} cannot open {path}: {_line(error)}") from error
        self.inputs = {
            port.any_name: OPENVINO_KINDS.get(port.element_type.get_type_name(), np.int64) for port in compiled.inputs
        }
        dims = {port.any_name: port.partial_shape for port in compiled.inputs if port.any_name.startswith(PAST)}
        self.past = {name: [one.get_length() if one.is_static else None for one in dim] for name, dim in dims.items()}
        self.outputs = [_openvino_name(port, f"output_{i}") for i, port in enumerate(compiled.outputs)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the graph does not take are ignored, a past that is not given is empty."""
        return self.infer(with_past(self.past, inputs))

    def infer(self, inputs: Mapping[str, np.ndarray], request: Any = None) -> dict[str, np.ndarray]:
        """Outputs by name, of a `new_request` where one is given."""
        feed = _feed(self.inputs, inputs)
        shape = next(iter(feed.values())).shape
        running = request or self._request(shape if shape == self.shape else None)
        # Views of the request's own memory, which the next call writes to: copied here, for OpenVINO's way takes far longer.
        results = running.infer(feed, share_inputs=True, share_outputs=True)
        return {name: value.copy() for name, value in zip(self.outputs, results.values(), strict=True)}

    def new_request(self) -> Any:
        """A further request, with a state of its own."""
        return self._request(self.shape).get_compiled_model().create_infer_request()

    def _request(self, shape: tuple[int, ...] | None) -> Any:
        if shape not in self.requests:
            core = _need("openvino", "openvino").Core()
            model = read_openvino(self.path, shape, self.half)
            self.requests[shape] = core.compile_model(model, "CPU", self.properties).create_infer_request()
        return self.requests[shape]

    def close(self) -> None:
        """Give back memory and threads."""
        self.requests = {}


def _openvino_name(port: Any, otherwise: str) -> str:
    """What an output was called in the graph that it was read from; one tensor may have the names of others too."""
    read = port.node.friendly_name.partition("/sink_port")[0]
    return read if read in port.names else min(port.names, default=otherwise)


def read_openvino(path: Path, shape: Sequence[int] | None = None, half: int | None = None) -> Any:
    """An openvino.Model of an IR or ONNX file or of one half of it, its inputs [batch, tokens] fixed to `shape` where one is
    given."""
    openvino = _need("openvino", "openvino")
    model = openvino.Core().read_model(str(path))
    if half is not None:
        model = _part("edge_seq2seq").openvino_halves(openvino, model)[half]
    if shape:
        model.reshape({port.any_name: list(shape) for port in model.inputs})
    return model


class HalvesRunner:
    """The two halves of a graph, each opened by itself."""

    def __init__(self, halves: Sequence[Any]):
        self.halves = halves

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of that half whose inputs these are."""
        return self.halves[half_of(inputs)].run(inputs)

    def close(self) -> None:
        """Give back memory and threads."""
        for half in self.halves:
            half.close()


def half_of(inputs: Mapping[str, Any]) -> int:
    """Which of two halves takes these inputs."""
    return int(HALVES_BY in inputs)


RUNNERS: dict[str, type[OnnxRuntimeRunner] | type[OpenVinoRunner]] = {
    "onnxruntime": OnnxRuntimeRunner,
    "openvino": OpenVinoRunner,
}


def open_runner(runtime: str, path: Path, options: Mapping[str, Any], threads: int) -> Any:
    """Open a graph as production does. Options a runner does not know concern how the graph was built.

    EdgeError for a runtime that only fmopt itself can open.
    """
    if runtime not in RUNNERS:
        beside = Path(__file__).with_name(f"run_{runtime}.py")
        raise EdgeError(
            f"this bundle is for {runtime}: use {beside.name} instead of run.py"
            if beside.is_file()
            else f"runtime {runtime!r} needs torch, which this file does without; use fmopt.load instead"
        )
    if not Path(path).is_file():
        raise EdgeError(f"{path} is missing")
    if options.get("stateful"):
        return _part("edge_generation").Stateful(OpenVinoRunner(path, options, threads))
    if options.get(HALVES):
        return HalvesRunner([RUNNERS[runtime](path, options, threads, half) for half in (0, 1)])
    return RUNNERS[runtime](path, options, threads)


def with_past(shapes: Mapping[str, Sequence[Any]], inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The inputs, with an empty one for each past that the graph takes and they lack: [rows, heads, 0, size], or zeros of the
    graph's own size where it is a state that does not grow."""
    lacking = {name: shape for name, shape in shapes.items() if name not in inputs}
    if not lacking:
        return inputs
    rows = len(next(iter(inputs.values())))
    kept = {name: shape[2] if isinstance(shape[2], int) else 0 for name, shape in lacking.items()}
    empty = {name: np.zeros((rows, lacking[name][1], kept[name], lacking[name][3]), np.float32) for name in lacking}
    return {**inputs, **empty}


def _feed(wanted: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise EdgeError(f"the graph wants input {missing[0]!r}; it was given {', '.join(sorted(inputs))}")
    return {name: np.ascontiguousarray(inputs[name], dtype=kind) for name, kind in wanted.items()}


# -------------------------------------------------------------------------------- a bundle that answers


class Model:
    """An opened bundle: raws in, predictions out."""

    def __init__(self, facts: Mapping[str, Any], preprocessor: Any, runner: Any):
        self.facts = facts
        self.pipeline: Pipeline = facts["pipeline"]
        self.preprocessor = preprocessor
        self.runner = runner

    def predict(self, raws: Sequence[Raw], batch_size: int = 1) -> list[Any]:
        """Predictions as they are judged; see `postprocess`."""
        found: list[Any] = []
        for start in range(0, len(raws), batch_size):
            part = raws[start : start + batch_size]
            batch = self.preprocessor.encode(part)
            outputs = run_batch(self.pipeline, self.runner, batch, batch_size)
            found += postprocess(self.pipeline, outputs, batch, part)
        return found

    def soonest(self, raws: Sequence[Raw]) -> Any:
        """What a latency from raw to answer is taken of: the predictions, or the first piece of answers made in pieces."""
        part = part_of(self.pipeline)
        if not hasattr(part, "soonest"):
            return self.predict(raws, len(raws))
        with _explained():
            return part.soonest(self, raws)

    def __call__(self, raw: Any, **wishes: Any) -> Any:
        """What people read, for one raw or, given a list, for each of its raws (so a list of words goes in a list).

        A `pathlib.Path` stands for the bytes of that file. `wishes` are what the task's part takes, such as max_new_tokens.
        """
        raws = [_file_bytes(one) if isinstance(one, Path) else one for one in (raw if isinstance(raw, list) else [raw])]
        shown = self._shown(raws, wishes)
        return shown if isinstance(raw, list) else shown[0]

    def _shown(self, raws: Sequence[Raw], wishes: Mapping[str, Any]) -> list[Any]:
        part = part_of(self.pipeline)
        if not raws:
            return []
        if hasattr(part, "answer"):
            with _explained():
                return list(part.answer(self, raws, **wishes))
        if wishes:
            raise EdgeError(f"{self.pipeline['task']} takes no {', '.join(wishes)}")
        made = Model.predict(self, raws)  # not a subclass's, which may refuse by errors of its own
        return [present(self.pipeline, *pair, self.preprocessor) for pair in zip(made, raws, strict=True)]

    def stream(self, raw: Any, **wishes: Any) -> Iterator[Any]:
        """The answer to one raw in pieces, as they are made; EdgeError for a task that answers at once."""
        part = part_of(self.pipeline)
        if not hasattr(part, "stream"):
            raise EdgeError(f"{self.pipeline['task']} answers at once; there is nothing to stream")
        with _explained():
            yield from part.stream(self, raw, **wishes)

    def told(self, arguments: Sequence[Any], **wishes: Any) -> tuple[list[Any], list[str]]:
        """What people read for each argument of a command, None for one that cannot be read; and a line for each of those."""
        shown, problems = [], []
        for number, argument in enumerate(arguments, start=1):
            try:
                raw = read_raw(self.pipeline["task"], argument)
                shown += self._shown([raw], wishes)
            except EdgeError as error:
                shown.append(None)
                problems.append(f"item {number}: {str(error).removeprefix('item 1: ')}")
        return shown, problems

    def close(self) -> None:
        """Give back memory and threads."""
        self.runner.close()


def run_batch(pipeline: Pipeline, runner: Any, batch: Any, most: int) -> Mapping[str, Any]:
    """The outputs `postprocess` reads, of at most `most` rows at once."""
    run = getattr(part_of(pipeline), "run", None)
    if run is None:
        return run_rows(runner, batch.inputs, most)
    with _explained():
        return dict(run(pipeline, runner, batch, most))


def timed_inputs(pipeline: Pipeline, runner: Any, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Inputs of the call whose latency matters, made of those of whole raws: for text generation one step of decoding."""
    part = part_of(pipeline)
    return part.timed(runner, inputs) if hasattr(part, "timed") else inputs


def timed_call(pipeline: Pipeline, runner: Any, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """What a latency is taken of, made of inputs of whole raws: one call of the runner, or what the task's part says."""
    part = part_of(pipeline)
    if hasattr(part, "work"):
        return lambda: part.work(runner, inputs)
    call = timed_inputs(pipeline, runner, inputs)
    return lambda: runner.run(call)


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeError(f"{path} cannot be read: {error.strerror}") from error


def run_rows(runner: Any, inputs: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Run at most `most` rows at once: a long text has many windows, and memory is for `most`."""
    rows = len(next(iter(inputs.values())))
    if rows <= most:
        return dict(runner.run(inputs))
    parts = [runner.run({k: v[i : i + most] for k, v in inputs.items()}) for i in range(0, rows, most)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# -------------------------------------------------------------------------------- this machine


# Features by the names that systems give them: Linux x86, Linux Arm, macOS; the values are those of target files.
X86 = "avx avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 avx_vnni avx_vnni_int8"
AMX = "amx_tile amx_int8 amx_bf16 amx_fp16"
ARM = "asimd:neon asimdhp:fp16 asimddp:dotprod i8mm bf16 sve sve2"
MACOS = "avx1_0:avx avx2_0:avx2 advsimd:neon fp16 dotprod"
FEATURES = {
    name: new or name for name, _, new in (word.partition(":") for word in f"{X86} {AMX} {ARM} {MACOS}".split())
}


def isa_features() -> list[str]:
    """CPU features that decide which kernels run, sorted; empty when this system does not say (Windows)."""
    flags: list[str] = []
    if sys.platform.startswith("linux"):
        # x86 calls the line "flags", Arm "Features"
        line = next((part for part in _cpuinfo() if part.lower().startswith(("flags", "features"))), "")
        flags = line.partition(":")[2].split()
    elif sys.platform == "darwin":
        told = re.findall(r"hw\.optional\.(?:arm\.FEAT_)?(\w+): 1", _output("sysctl", "hw.optional"))
        flags = [name.lower() for name in told]
    return sorted({FEATURES[flag] for flag in flags if flag in FEATURES})


def host_fingerprint() -> dict[str, Any]:
    """What a measurement or a self-test on this machine depends on, except versions: cpu, arch, isa, cores, os."""
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    if not cpu and sys.platform == "darwin":
        cpu = _output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    if not cpu and Path("/proc/device-tree/model").is_file():  # Arm boards name the board, not the core
        cpu = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "arch": platform.machine(),
        "isa": isa_features(),
        "cores": available_cores(),
        "os": f"{platform.system()} {platform.release()}",
    }


def available_cores() -> int:
    """Cores this process may use: less than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> float | None:
    """Largest memory this process ever held, in MB (10⁶ bytes); None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: its maximum survives exec, so a child would inherit that of a large parent.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found.group(1)) * 1024 / 1e6 if found else None
    if sys.platform == "win32":
        return None
    return import_module("resource").getrusage(0).ru_maxrss / 1e6  # macOS counts bytes


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except OSError:
        return ""


# -------------------------------------------------------------------------------- whole, and the same here?


def read_facts(folder: Path) -> dict[str, Any]:
    """A bundle's fmopt.json, checked against its own digest. EdgeError when it is damaged or no bundle."""
    path = Path(folder) / MANIFEST
    if (Path(folder) / UNFINISHED).exists():
        raise EdgeError(f"{folder} is not finished: writing it was interrupted; make the bundle again")
    if not path.is_file():
        raise EdgeError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        text = path.read_bytes().decode()
        facts = json.loads(text)
        if facts["format"] != FORMAT:
            raise EdgeError(
                f"{path} is of format {facts['format']!r}, this file reads {FORMAT!r}; use the run.py beside it"
            )
        intact = facts["digest"] == manifest_digest(text, facts["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeError(f"{path} is damaged: {_line(error)}") from error
    if not intact:
        raise EdgeError(f"{path} was changed after it was written; make the bundle again")
    return facts


def manifest_digest(text: str, digest: str) -> str:
    """sha256 of a manifest's text without its own digest, so that it vouches for every other byte of itself."""
    return hashlib.sha256(text.replace(digest, "").encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def verify(folder: Path) -> list[str]:
    """What is wrong with a bundle's files, one line each naming the file; empty when all is as it was written."""
    folder = Path(folder)
    try:
        facts = read_facts(folder)
    except EdgeError as error:
        return [str(error)]
    beside = sorted({path.name for path in folder.iterdir()} - {Path(name).parts[0] for name in facts["files"]})
    strangers = [name for name in beside if name not in UNLISTED and not name.startswith(".fmopt")]
    return _damage(folder, facts) + [f"{name} does not belong to the bundle" for name in strangers]


def _damage(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, written in facts["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != written["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {written['bytes']}")
        elif sha256_file(path) != written["sha256"]:
            problems.append(f"{name} was changed: its sha256 is not the one in {MANIFEST}")
    return problems


def raw_to_json(raw: Raw) -> dict[str, Any]:
    """A raw as JSON that keeps a pair, a list of words and bytes apart."""
    if isinstance(raw, str):
        return {"text": raw}
    if isinstance(raw, bytes):
        return {"bytes": base64.b64encode(raw).decode("ascii")}
    return {"pair": list(raw)} if isinstance(raw, tuple) else {"words": list(raw)}


def raw_from_json(written: Mapping[str, Any]) -> Raw:
    """The inverse of `raw_to_json`."""
    if "bytes" in written:
        return base64.b64decode(written["bytes"])
    return tuple(written["pair"]) if "pair" in written else written.get("words", written.get("text"))


def prediction_to_json(prediction: Any) -> Any:
    """A prediction as JSON; arrays keep six decimals, far below any tolerance."""
    if isinstance(prediction, np.ndarray):
        return np.round(prediction.astype(np.float64), 6).tolist()
    return prediction


def difference(written: Any, got: Any) -> float:
    """Largest absolute difference of two predictions; an answer elsewhere in its context counts 1, a NaN infinity."""
    if isinstance(written, Mapping):
        same = all(written[key] == got[key] for key in ("text", "start", "end"))
        return abs(written["score"] - got["score"]) if same else 1.0
    before, now = np.asarray(written, dtype=np.float64), np.asarray(got, dtype=np.float64)
    if before.shape != now.shape:
        return float("inf")
    gap = np.abs(before - now)
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def self_test(folder: Path, model: Model) -> tuple[float, float]:
    """(largest difference to the golden predictions, tolerance); EdgeError when it is outside the tolerance."""
    try:
        golden = json.loads((Path(folder) / GOLDEN).read_text(encoding="utf-8"))
        items, tolerance = golden["items"], float(golden["tolerance"])
        raws = [raw_from_json(item["raw"]) for item in items]
        written = [item["prediction"] for item in items]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeError(f"{folder}: {GOLDEN} cannot be read: {_line(error)}") from error
    gap = getattr(part_of(model.pipeline), "difference", difference)
    worst = max(map(gap, written, model.predict(raws)), default=0.0)
    if not worst <= tolerance:
        raise EdgeError(
            f"{folder} computes something else here than where it was judged: golden predictions differ by up to "
            f"{worst:.3g}, allowed is {tolerance:.3g}; optimize the model again on this machine"
        )
    return worst, tolerance


def load(
    folder: str | Path,
    threads: int | None = None,
    opener: Callable[[str, Path, Mapping[str, Any], int], Any] = open_runner,
) -> Model:
    """Open a bundle: hashes are verified, and on a machine it has not run on before its golden items too.

    `threads`: by default every core this process may use. Warns when the CPU lacks a feature that the graph was judged
    with. EdgeError when the bundle is damaged, or its predictions are outside the tolerance here.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    damage = _damage(folder, facts)
    if damage:
        raise EdgeError(f"{folder} is damaged: {'; '.join(damage)}; copy the bundle again, or make it again")
    for warning in isa_warnings(facts, isa_features()):
        warnings.warn(warning, stacklevel=2)
    model = open_model(folder, facts, threads, opener)
    marker = _marker(facts)
    if not _known_here(facts) and not marker.is_file():
        self_test(folder, model)
        _leave(marker, facts)
    return model


def open_model(folder: Path, facts: Mapping[str, Any], threads: int | None, opener: Callable[..., Any]) -> Model:
    """The model of a bundle, without any check."""
    preprocessor = open_preprocessor(folder, facts["pipeline"])
    runner = opener(facts["runtime"], folder / facts["model_file"], facts["options"], threads or available_cores())
    return Model(facts, preprocessor, runner)


def isa_warnings(facts: Mapping[str, Any], isa: Sequence[str]) -> list[str]:
    """What may go wrong because this CPU lacks a feature the graph was judged with."""
    needs = set(facts["needs_isa"])
    missing = needs - set(isa)
    if missing & INT8_DOT and INT8_DOT & set(isa):
        missing -= INT8_DOT  # any of them sums without saturation
    if not missing:
        return []
    names = ", ".join(sorted(missing))
    if not isa:
        return [f"the model was judged on a CPU with {names}; this system does not say whether this CPU has it"]
    risk = "8-bit products may saturate and change its predictions" if missing & INT8_DOT else "it may be slower"
    return [
        f"the model was judged on a CPU with {names}, which this one lacks: {risk}; optimize it again for this target"
    ]


def circumstances(runtime: str) -> dict[str, Any]:
    """What predictions may depend on here: the CPU, its features, the runtime's version."""
    host = host_fingerprint()
    return {"cpu": host["cpu"], "isa": host["isa"], "runtime": [runtime, package_version(runtime)]}


def package_version(package: str) -> str | None:
    """The installed version; None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _known_here(facts: Mapping[str, Any]) -> bool:
    runtime = facts["runtime"]
    host = facts["host"]
    built = {"cpu": host["cpu"], "isa": host["isa"], "runtime": [runtime, facts["versions"].get(runtime)]}
    return built == circumstances(runtime)


def _marker(facts: Mapping[str, Any]) -> Path:
    """The file that says this very bundle passed its self-test in these circumstances."""
    key = json.dumps([facts["digest"], circumstances(facts["runtime"])], sort_keys=True)
    return cache_folder() / "self-tests" / hashlib.sha256(key.encode()).hexdigest()


def _leave(marker: Path, facts: Mapping[str, Any]) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(facts["digest"])
    except OSError:
        return  # a read-only home: the self-test runs again next time


def cache_folder() -> Path:
    """Where this user's caches are, as the system wants it."""
    home = Path.home()
    system = {"darwin": home / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA", home))}
    return Path(os.environ.get("XDG_CACHE_HOME") or system.get(sys.platform, home / ".cache")) / "fmopt"


# -------------------------------------------------------------------------------- how fast is it here?


def bench(
    folder: Path, *, batch: int = 1, length: int | None = None, threads: int | None = None, seconds: float = 10.0
) -> dict[str, Any]:
    """Latencies in ms of the golden texts, `batch` at once, cut or repeated to `length` tokens when given.

    "model" is the graph alone, for text generation one more token; "end_to_end" starts with the text and ends with the
    prediction, or the first token, at the texts' own lengths. Each is sampled for `seconds` or 200 times, whichever is
    more, and at most 5,000 times.
    """
    started = time.perf_counter()
    model = load(folder, threads)
    load_ms = (time.perf_counter() - started) * 1e3
    golden = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    raws = [raw_from_json(item["raw"]) for item in golden["items"]]
    if not raws:
        raise EdgeError(f"{folder} has no golden texts to run")
    raws = [raws[index % len(raws)] for index in range(batch)]
    encoded = model.preprocessor.encode([_repeated(raw, length) for raw in raws] if length else raws, length)
    inputs = {name: array[:batch] for name, array in encoded.inputs.items()}
    part = part_of(model.pipeline)
    return {
        "model": _sampled(timed_call(model.pipeline, model.runner, inputs), seconds),
        "end_to_end": _sampled(lambda: model.soonest(raws), seconds),
        # whether "model" is one step of several, and "end_to_end" ends with the first
        "steps": hasattr(part, "timed") and not hasattr(part, "work"),
        "batch": batch,
        "tokens": int(encoded.mask.shape[1]) if "max_length" in model.pipeline else None,  # what has none has no tokens
        "threads": threads or available_cores(),
        "load_ms": load_ms,
        "peak_memory_mb": peak_memory_mb(),
        "host": host_fingerprint(),
        "runtime": [model.facts["runtime"], package_version(model.facts["runtime"])],
    }


def _repeated(raw: Raw, length: int) -> Raw:
    """The raw with its (last) text repeated until it has at least `length` tokens, one for each word."""
    if isinstance(raw, bytes):
        return raw
    if isinstance(raw, list):
        return (raw or ["word"]) * (length // max(len(raw), 1) + 1)
    text = raw if isinstance(raw, str) else raw[1]
    many = " ".join([text or "word"] * (length // max(len(text.split()), 1) + 1))
    return many if isinstance(raw, str) else (raw[0], many)


def _sampled(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    for _ in range(5):
        call()
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < 200 or (time.perf_counter() - began < seconds and len(samples) < 5000):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "samples_ms": samples}


# -------------------------------------------------------------------------------- the command


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        raise EdgeError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """`predict`, `bench` and `verify` for the bundle in `folder`, by default this file's own; returns the exit code."""
    folder = folder or Path(__file__).resolve().parent
    try:
        with warnings.catch_warnings():
            # A warning is one line on stderr, not a place in this file.
            warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
            asked = _parser(folder).parse_args(argv)
            return asked.command(folder, asked)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = _Parser(prog="run.py", description="Runs the model in this folder.")
    commands = parser.add_subparsers(required=True, metavar="predict|bench|verify", parser_class=_Parser)
    predict = commands.add_parser("predict", help="what the model makes of texts, or of image or audio files")
    predict.add_argument("texts", nargs="*", metavar="TEXT|FILE")
    predict.add_argument("--file", type=Path, help="UTF-8, one a line; of a pair, the two texts parted by a tab")
    predict.add_argument(
        "--pair", action="store_true", help="take the texts two by two (question context is always so)"
    )
    try:
        part = part_of(read_facts(folder)["pipeline"])
    except EdgeError:  # told when the command runs
        part = None
    if hasattr(part, "add_arguments"):
        part.add_arguments(predict)
    predict.set_defaults(command=_predict)
    timed = commands.add_parser("bench", help="how fast it is here")
    timed.add_argument("--batch", type=_count, default=1, help="texts at once (1)")
    timed.add_argument("--length", type=_count, help="tokens; by default those of the golden texts")
    timed.add_argument("--seconds", type=float, default=10.0, help="sample at least so long (10)")
    timed.set_defaults(command=_bench)
    checked = commands.add_parser("verify", help="are the files whole, and does it compute here what it should")
    checked.set_defaults(command=_verify)
    for each in (predict, timed, checked):
        each.add_argument("--threads", type=_count, help="by default every core this process may use")
        each.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _predict(folder: Path, asked: argparse.Namespace) -> int:
    pipeline = read_facts(folder)["pipeline"]
    task = pipeline["task"]
    raws = list(_raws(asked, pairs=asked.pair or task == "question-answering"))
    if not raws:
        raise EdgeError("nothing to predict; give them as arguments, or --file with one a line")
    part = part_of(pipeline)
    wishes = part.wishes_of(asked) if hasattr(part, "wishes_of") else {}
    model = load(folder, asked.threads)
    if getattr(asked, "stream", False):
        for piece in _one_streamed(model, [read_raw(task, raw) for raw in raws], wishes):
            print(piece, end="", flush=True)
        print()
        return 0
    shown, problems = model.told(raws, **wishes)
    if asked.json:
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print("\n".join(json.dumps(one, ensure_ascii=False) for one in shown if one is not None))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _one_streamed(model: Model, raws: Sequence[Raw], wishes: Mapping[str, Any]) -> Iterator[str]:
    if len(raws) != 1:
        raise EdgeError(f"one text is streamed at a time; {len(raws)} were given")
    return model.stream(raws[0], **wishes)


def _raws(asked: argparse.Namespace, *, pairs: bool) -> Iterator[Raw]:
    if pairs and len(asked.texts) % 2:
        raise EdgeError(f"texts come in pairs here, such as question and context; {len(asked.texts)} were given")
    yield from zip(asked.texts[::2], asked.texts[1::2], strict=True) if pairs else asked.texts
    for number, line in enumerate(_lines(asked.file) if asked.file else [], start=1):
        first, tab, second = line.partition("\t")
        if pairs and not tab:
            raise EdgeError(f"{asked.file}, line {number}: no tab parts the two texts")
        yield (first, second) if pairs else line


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_bytes().decode().splitlines() if line.strip()]
    except OSError as error:
        raise EdgeError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EdgeError(f"{path} is not UTF-8: byte {error.start}; convert it first") from error


def _bench(folder: Path, asked: argparse.Namespace) -> int:
    got = bench(folder, batch=asked.batch, length=asked.length, threads=asked.threads, seconds=asked.seconds)
    if asked.json:
        print(json.dumps(got))
        return 0
    size = f"batch {got['batch']}" + (f" × {got['tokens']} tokens" if got["tokens"] else "")
    print(f"{size}, {got['threads']} threads, {' '.join(map(str, got['runtime']))}")
    titles = ("one more token", "first token") if got["steps"] else ("model alone", "raw to answer")
    for name, title in zip(("model", "end_to_end"), titles, strict=True):
        row = got[name]
        print(
            f"{title:>14}  p50 {row['p50_ms']:.2f} ms  p90 {row['p90_ms']:.2f}  p99 {row['p99_ms']:.2f}  "
            f"({len(row['samples_ms'])} samples)"
        )
    if got["steps"]:
        print(f"{got['batch'] * 1e3 / got['model']['p50_ms']:.1f} tokens/s after {got['tokens']} tokens")
    memory = got["peak_memory_mb"]
    print(f"load {got['load_ms']:.0f} ms, peak memory {'unknown' if memory is None else f'{memory:.0f} MB'}")
    return 0


def _verify(folder: Path, asked: argparse.Namespace) -> int:
    problems = verify(folder)
    answer: dict[str, Any] = {"largest_difference": None, "tolerance": None}
    if not problems:
        facts = read_facts(folder)
        try:
            worst, tolerance = self_test(folder, open_model(folder, facts, asked.threads, open_runner))
            answer = {"largest_difference": worst, "tolerance": tolerance}
        except EdgeError as error:
            problems.append(str(error))
        for warning in isa_warnings(facts, isa_features()):
            warnings.warn(warning, stacklevel=1)
    if asked.json:
        print(json.dumps({"ok": not problems, "problems": problems, **answer}))
    elif problems:
        print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
    else:
        print(
            f"whole; golden predictions differ by {answer['largest_difference']:.2g}, allowed {answer['tolerance']:.2g}"
        )
    return 2 if problems else 0


# -------------------------------------------------------------------------------- small helpers


def _need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise EdgeError(f"{package} is not installed here; pip install {package}") from error


def _line(error: BaseException) -> str:
    """The telling line of a library's error: the last, without addresses of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _shorten(lines[-1] if lines else type(error).__name__, 300)


def _shorten(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
