"""Texts to arrays, outputs to predictions, predictions to what people read; what that is, the part of a task says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, shorten
from .host import ForkSafeLock
from .parts import Pipeline, Sample, explained, like_lengths, part_of
from .tokenizer_file import open_tokenizer

LONG = 32  # a text of more characters than this for each token that is read is cut before it is tokenized
Cut = tuple[int, int, str]  # tokens, stride, strategy


def read_sample(pipeline: Pipeline, argument: Any) -> Any:
    """The sample that one argument of a command means: itself, or what the pipeline's part makes of it."""
    read = getattr(part_of(pipeline), "read_sample", None)
    if read is None:
        return argument
    with explained():
        return read(argument)


def open_preprocessor(folder: Path, pipeline: Pipeline) -> Any:
    """What encodes samples for the model of a checkpoint or bundle folder: `Preprocessor`, or a part's with its interface."""
    part = part_of(pipeline)
    if getattr(part, "Preprocessor", Preprocessor) is Preprocessor:  # a part for texts may import it
        return Preprocessor(Path(folder) / "tokenizer.json", pipeline)
    return PartPreprocessor(part, Path(folder), pipeline)


@dataclass
class Batch:
    """Encoded samples. One sample gives one row, or several windows where the task reads long texts in pieces.

    `inputs` hold int64 [rows, tokens]; `mask` is the attention mask, also for networks that take none. The lists are
    per row and per token, aligned with the padded row, and empty for tasks that do not need them.
    """

    inputs: dict[str, np.ndarray]
    mask: np.ndarray
    owner: list[int]  # row -> index of its sample
    word_ids: list[list[int | None]] = field(default_factory=list)
    offsets: list[list[tuple[int, int]]] = field(default_factory=list)
    sequence_ids: list[list[int | None]] = field(default_factory=list)


class Preprocessor:
    """Encodes samples exactly as the checkpoint's own (fast) Hugging Face tokenizer does; several threads may use one."""

    def __init__(self, tokenizer_file: Path, pipeline: Pipeline):
        self.tokenizer = open_tokenizer(Path(tokenizer_file))
        self.pipeline = pipeline
        self.part = part_of(pipeline)
        truncation = self.tokenizer.truncation or {}
        self.direction = str(pipeline.get("truncation_side") or truncation.get("direction", "right")).lower()
        self._lock = ForkSafeLock()  # where a text is cut is a setting of the tokenizer, not of a call
        self.tokenizer.no_padding()  # padded here, to the longest row of a batch
        self.tokenizer.encode_special_tokens = bool(pipeline.get("split_special_tokens"))
        # Byte-level tokenizers see words apart from their text, so each word of a list brings its own space.
        self._word_tokenizer = (
            _with_prefix_space(self.tokenizer) if pipeline.get("add_prefix_space") else self.tokenizer
        )
        if not getattr(self.part, "WORDS", False):
            self.tokenizer = self._word_tokenizer
        self._truncation: dict[int, Cut | None] = {}  # of each tokenizer

    def encode(self, samples: Sequence[Sample], length: int | None = None) -> Batch:
        """Arrays of the samples, cut at the pipeline's max_length and padded to the longest row.

        With `length`, rows are cut and padded to exactly that many tokens. EdgeError on a sample the task cannot read.
        """
        rows = self.rows(samples, length)
        owner = [index for index, windows in enumerate(rows) for _ in windows]
        flat = [row for windows in rows for row in windows]
        if not flat:
            raise EdgeError("there is no text to encode")
        return self._batch(flat, owner, length or max(map(len, flat)))

    def rows(self, samples: Sequence[Sample], length: int | None = None) -> list[list[Any]]:
        """The tokenizer's encodings of every sample, one or several windows. EdgeError says which sample cannot be read."""
        found = []
        for number, sample in enumerate(samples, start=1):
            try:
                found.append(self._windows(sample, length or int(self.pipeline["max_length"])))
            except EdgeError as error:
                raise EdgeError(f"item {number}: {error}") from error
        return found

    def batches(self, samples: Sequence[Sample]) -> Iterator[tuple[list[int], Batch]]:
        """All samples in batches of like length (see `like_lengths`), each with the indices of its samples."""
        rows = self.rows(samples)
        for indices in like_lengths([sum(map(len, windows)) for windows in rows]):
            flat = [row for index in indices for row in rows[index]]
            owner = [place for place, index in enumerate(indices) for _ in rows[index]]
            yield indices, self._batch(flat, owner, max(map(len, flat)))

    def ids(self, text: str, *, special: bool = True, most: int | None = None) -> list[int]:
        """Token ids of a whole text; without `special` those of its own words alone. Of one that is far longer than `most`
        tokens, only more than so many."""
        return list(self.encoding(text if most is None else self.beginning(text, most), special=special).ids)

    def _windows(self, sample: Any, limit: int) -> list[Any]:
        """The tokenizer's encodings of one sample: one, or several windows that overlap by `stride` tokens."""
        prefix = self.pipeline.get("prefix")
        if prefix and isinstance(sample, str):
            sample = prefix + sample
        elif prefix and isinstance(sample, tuple):
            sample = (f"{prefix}{sample[0]}", *sample[1:])
        if hasattr(self.part, "windows"):
            return list(self.part.windows(self, sample, limit))
        text, pair = as_pair(sample) if isinstance(sample, tuple) else (sample, None)
        text, pair = self.beginning(text, limit), self.beginning(pair, limit)
        return [self.encoding(text, pair, words=isinstance(sample, list), cut=(limit, 0, "longest_first"))]

    def beginning(self, text: Any, tokens: int) -> Any:
        """Of a text far longer than so many tokens, the part that the first of them come from and some more; of a tokenizer that
        cuts on the left, the last. Others, and what is no text, as they are."""
        size = LONG * (tokens + LONG)
        while isinstance(text, str) and size < len(text):
            last = self.direction == "left"
            part = text[-size:] if last else text[:size]
            # Between words, where there are any: half a word at the end has other tokens.
            space = re.search(r"\s", part) if last else re.search(r"\s\S*$", part[-size // 4 :])
            if space is not None:
                part = part[space.start() :] if last else part[: len(part) - size // 4 + space.start()]
            if len(self.encoding(part, special=False)) > tokens + LONG:
                return part
            size *= 4  # blanks and what the tokenizer drops
        return text

    def encoding(
        self, text: Any, pair: Any = None, *, words: bool = False, special: bool = True, cut: Cut | None = None
    ) -> Any:
        """The tokenizer's encoding of a text, of a list of `words`, or of a pair, cut at so many tokens with what is left in
        windows that share `stride`, where `cut` says so. EdgeError for what is none of these."""
        # One by one: the library's own batching starts threads of its own beside those the caller asked for.
        tokenizer = self._word_tokenizer if words else self.tokenizer
        try:
            with self._lock:
                self._cut_at(tokenizer, cut)
                return tokenizer.encode(text, pair, is_pretokenized=words, add_special_tokens=special)
        except (TypeError, ValueError, UnicodeError) as error:
            raise EdgeError(f"{shorten(text)} is not a text, a pair of texts or a list of words") from error

    def _cut_at(self, tokenizer: Any, cut: Cut | None) -> None:
        if self._truncation.get(id(tokenizer), ()) == cut:
            return
        if cut is None:
            tokenizer.no_truncation()
        else:
            limit, stride, strategy = cut
            tokenizer.enable_truncation(limit, stride=stride, strategy=strategy, direction=self.direction)
        self._truncation[id(tokenizer)] = cut

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

        def padded(values: list[Any], blank: Any) -> list[Any]:
            blanks = [blank] * (width - len(values))
            return blanks + values if left else values + blanks

        if hasattr(self.part, "align"):
            self.part.align(batch, rows, padded)
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


def as_pair(sample: Any) -> tuple[str, str]:
    """A sample that must be a pair of texts; EdgeError for another."""
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
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Any, samples: Sequence[Sample]
) -> list[Any]:
    """One prediction per sample, from the network's outputs for `batch`, as the part of the pipeline makes it.

    EdgeError for a task without a part, or outputs that are not the pipeline's.
    """
    part = part_of(pipeline)
    if part is None:
        raise EdgeError(f"there is no task {pipeline['task']!r}")
    with explained():
        return list(part.postprocess(pipeline, outputs, batch, samples))


def named_outputs(pipeline: Pipeline, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs that a pipeline names, float32, in its order; EdgeError when the graph has others."""
    wanted = list(pipeline["outputs"])
    if len(wanted) == len(outputs) == 1:  # a graph exported elsewhere may call its only output otherwise
        return [np.asarray(array, dtype=np.float32) for array in outputs.values()]
    for name in wanted:
        if name not in outputs:
            raise EdgeError(f"the graph has no output {name!r}; it has {', '.join(sorted(outputs))}")
    return [np.asarray(outputs[name], dtype=np.float32) for name in wanted]


def present(pipeline: Pipeline, prediction: Any, sample: Sample, preprocessor: Any = None) -> Any:
    """A prediction as JSON for people, as the part of the pipeline makes it; some are spelled by the `preprocessor` that encoded
    the sample. EdgeError for a task without a part."""
    part = part_of(pipeline)
    if part is None:
        raise EdgeError(f"there is no task {pipeline['task']!r}")
    return part.present(pipeline, prediction, sample, getattr(preprocessor, "own", preprocessor))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=-1, keepdims=True)
