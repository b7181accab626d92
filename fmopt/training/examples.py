"""Rows of data → training examples: what a network reads with what the loss compares its answer to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fmopt.core.errors import ConfigError, DataError
from fmopt.core.media import images
from fmopt.core.model import CheckpointMetadata
from fmopt.edge.errors import EdgeError
from fmopt.edge.parts import Sample
from fmopt.edge.text import Batch, Preprocessor
from fmopt.tasks.automatic_speech_recognition import words_of
from fmopt.tasks.base import Item, Output, Unseen, all_tasks, find_task, output_of

IGNORED = -100  # torch's cross entropy skips this label
# BERT's masked-token prediction (Devlin et al., 2018): the share of tokens to find, and of these the shares that are masked
# and that are another token by chance; the rest stay as they are.
TO_FIND, MASKED, SWAPPED = 0.15, 0.8, 0.1

# input name → int64 (tokens,), pixel_values float32 (3, H, W); labels → scalar or (tokens,); start/end_positions → scalar
Example = dict[str, Any]


class FileExamples(Sequence[Example]):
    """Examples of image or audio files, encoded when they are asked for: a whole data set, decoded, would not fit in memory."""

    def __init__(self, preprocessor: Preprocessor, items: Sequence[Item], make: Callable[..., Example]) -> None:
        self.preprocessor, self.items, self.make = preprocessor, items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        """One example; a slice gives a list of them. DataError that names the row of a file that cannot be read."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        item = self.items[index]
        try:
            batch = self.preprocessor.encode([item.sample])
        except EdgeError as error:
            raise DataError(f"train row {item.row + 1}: {error}") from error
        return _inputs(batch)[0] | self.make(batch, 0, item, {})


def training_examples(
    preprocessor: Preprocessor, metadata: CheckpointMetadata, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]
) -> Sequence[Example]:
    """Unpadded examples of items made from `rows`; long texts of taggers and readers give one per window.

    Those for fill-mask are whole texts without labels: `Masking` makes both, anew for every batch.
    """
    make, task = _maker(preprocessor, metadata, items), find_task(metadata.task)
    bare = next((item for item in items if item.label is None), None)
    if bare is not None and not task.label_is_optional:
        raise DataError(f"train row {bare.row + 1} has no label; fine-tuning needs one in every row")
    if metadata.modality not in ("text", "item"):
        return FileExamples(preprocessor, items, make)
    found = []
    for item in items:
        samples = (
            pieces(item.sample, int(metadata.pipeline["max_length"])) if metadata.modality == "item" else [item.sample]
        )
        batch = preprocessor.encode([rows[item.row]["text"]] if task.output is Output.MASKED_WORDS else samples)
        for window, example in enumerate(_inputs(batch)):
            found.append(example | make(batch, window, item, rows[item.row]))
    return found


def _maker(preprocessor: Preprocessor, metadata: CheckpointMetadata, items: Sequence[Item]) -> Callable[..., Example]:
    """What makes the label of an example; ConfigError for a task that is not trained here."""
    output = output_of(metadata.pipeline)
    if output is Output.AUDIO:
        raise ConfigError(
            "transformers has no training of networks that speak; start from a trained checkpoint, such as facebook/mms-tts-eng"
        )
    if output is Output.CLASSES and metadata.pipeline.get("multi_label"):
        return partial(_classes_example, len(metadata.pipeline["labels"]))
    if output is Output.ANSWER_WORDS:
        return partial(_answer_tokens, preprocessor)
    if output is Output.LETTERS:
        encoder: Any = preprocessor
        tokens, delimiter = encoder.own.tokens, metadata.pipeline["ctc"]["delimiter"]
        spelled = {item.row: letter_ids(tokens, delimiter, item) for item in items if item.label is not None}
        return partial(_spelled_example, spelled)
    if output not in MAKERS:
        trained = ", ".join(task.name for task in all_tasks() if task.output in TRAINED)
        raise ConfigError(f"fine-tuning trains {trained}; for {metadata.task} use sentence-transformers")
    return MAKERS[output]


def pieces(history: Any, most: int) -> list[Any]:
    """A history in pieces of at most `most` items, from the newest backwards, neighbours sharing one item: what comes after
    every item is in one of them. A history of one item has nothing to learn from and gives one piece."""
    ends = range(len(history), 1, -(most - 1))
    return [history[max(0, end - most) : end] for end in ends] or [history]


def known_examples(
    preprocessor: Preprocessor, metadata: CheckpointMetadata, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]
) -> Sequence[Example]:
    """Unpadded examples of items made from `rows`, labelled where they can be, each text without a label once."""
    task = find_task(metadata.task)
    if task.output is Output.MASKED_WORDS:
        return unlabelled_examples(preprocessor, metadata, [rows[item.row]["text"] for item in items])
    if task.label_is_optional:
        return list(training_examples(preprocessor, metadata, items, rows)) if items else []
    if metadata.modality != "text":
        return FileExamples(
            preprocessor, items, partial(_as_far_as_known, metadata, _maker(preprocessor, metadata, items))
        )
    given = [item for item in items if item.label is not None] if task.learns_labels else []
    seen = {id(item) for item in given}
    rest = {repr(item.sample): item.sample for item in items if id(item) not in seen}
    labelled = list(training_examples(preprocessor, metadata, given, rows)) if given else []
    return labelled + unlabelled_examples(preprocessor, metadata, list(rest.values()))


def unlabelled_examples(
    preprocessor: Preprocessor, metadata: CheckpointMetadata, samples: Sequence[Sample]
) -> list[Example]:
    """Unpadded examples of texts without labels: where labels would be is IGNORED, or NaN where they are numbers.

    For fill-mask a text is its own label: tokens are masked by a draw that depends on the text alone.
    """
    inputs = (example for sample in samples for example in _inputs(preprocessor.encode([sample])))
    output = output_of(metadata.pipeline)
    if output is Output.MASKED_WORDS:
        masking = Masking.of(preprocessor)
        return [
            masking.masked(example, np.random.default_rng(zlib.crc32(example["input_ids"].tobytes())))
            for example in inputs
        ]
    if output is Output.NEXT_WORDS:
        return [example | {"labels": example["input_ids"].copy()} for example in inputs]
    return [example | _no_label(metadata, len(example.get("input_ids", ()))) for example in inputs]


@dataclass(frozen=True)
class Masking:
    """What masked-token prediction needs to know of a tokenizer."""

    mask: int  # id of the mask token
    special: tuple[int, ...]  # ids that are never to be found
    ordinary: tuple[int, ...]  # all others, to swap in

    @classmethod
    def of(cls, preprocessor: Preprocessor) -> Masking:
        """That of a pipeline's tokenizer."""
        tokenizer = preprocessor.tokenizer
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        ordinary = sorted(set(tokenizer.get_vocab().values()) - special)
        return cls(int(preprocessor.pipeline["mask"]["id"]), tuple(sorted(special)), tuple(ordinary))

    def masked(self, example: Example, draw: np.random.Generator) -> Example:
        """The example with tokens masked, and as labels int64 (tokens,) what they were; at least one, if there is any."""
        ids = example["input_ids"]
        open_places = np.flatnonzero(~np.isin(ids, self.special))
        chosen = open_places[draw.random(len(open_places)) < TO_FIND]
        if not len(chosen) and len(open_places):
            chosen = draw.choice(open_places, 1)
        fate = draw.random(len(chosen))
        hidden, labels = ids.copy(), np.full(len(ids), IGNORED, dtype=np.int64)
        labels[chosen] = ids[chosen]
        hidden[chosen[fate < MASKED]] = self.mask
        swapped = chosen[fate >= 1 - SWAPPED]
        hidden[swapped] = draw.choice(self.ordinary, len(swapped))
        return {**example, "input_ids": hidden, "labels": labels}


def _no_label(metadata: CheckpointMetadata, tokens: int) -> Example:
    """What stands in for the label of an example of so many tokens, in the shape that labels of the task have."""
    match output_of(metadata.pipeline):
        case Output.ANSWER_WORDS if metadata.modality != "text":
            return {"labels": np.full(1, IGNORED, dtype=np.int64)}
        case Output.VECTOR | Output.ANSWER_WORDS:
            return {}  # what is to be answered, a teacher says
        case Output.SPAN:
            return {"start_positions": np.int64(IGNORED), "end_positions": np.int64(IGNORED)}
        case Output.TAGS:
            return {"labels": np.full(tokens, IGNORED, dtype=np.int64)}
        case Output.BOXES:
            nothing = {"class_labels": np.zeros(0, dtype=np.int64), "boxes": np.zeros((0, 4), dtype=np.float32)}
            return {"labels": nothing}
        case Output.LETTERS:
            return {"labels": np.full(1, IGNORED, dtype=np.int64)}
        case Output.CLASSES if metadata.pipeline.get("multi_label"):
            return {"labels": np.full(len(metadata.pipeline["labels"]), np.nan, dtype=np.float32)}
        case Output.NUMBER:
            return {"labels": np.float32(np.nan)}
        case _:
            return {"labels": np.int64(IGNORED)}


def _inputs(batch: Batch) -> list[Example]:
    """The rows of a batch without their padding."""
    if batch.mask is None:
        return [{name: value[row] for name, value in batch.inputs.items()} for row in range(len(batch.owner))]
    used = batch.mask.astype(bool)
    return [{name: value[row][used[row]] for name, value in batch.inputs.items()} for row in range(len(used))]


def _as_far_as_known(
    metadata: CheckpointMetadata,
    make: Callable[..., Example],
    batch: Batch,
    window: int,
    item: Item,
    row: Mapping[str, Any],
) -> Example:
    return _no_label(metadata, 0) if item.label is None else make(batch, window, item, row)


def _whole_text(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    return {}


def _next_tokens(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """The tokens themselves: the network's own loss compares each with what was said before it."""
    return {"labels": batch.inputs["input_ids"][window][batch.mask[window].astype(bool)].copy()}


def _answer_tokens(
    preprocessor: Preprocessor, batch: Batch, window: int, item: Item, row: Mapping[str, Any]
) -> Example:
    """The tokens of the answer that is wanted, its end included; the decoder begins with one of its own."""
    pipeline = preprocessor.pipeline
    wanted = item.label if isinstance(item.label, str) else item.label[0]  # of several summaries
    encoder: Any = getattr(preprocessor, "own", preprocessor)
    if "language_ids" in pipeline:
        raise DataError(
            "the checkpoint names no language, and transcripts do not say which is theirs; name it in its "
            'generation_config.json, for example "language": "en"'
        )
    if "forced_bos_token_id" in pipeline:  # the language of the answer, which a tokenizer made for texts does not know
        ids = [pipeline["forced_bos_token_id"], *encoder.ids(wanted, special=False)]
    else:
        ids = [*pipeline["decoder_start_token_ids"][1:], *encoder.ids(wanted)]
    ids = ids[: pipeline["max_new_tokens"] - 1]
    stop = pipeline["eos_token_id"][:1]
    return {"labels": np.array(ids if ids[-1:] == stop else [*ids, *stop], dtype=np.int64)}


def _class_example(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    return {"labels": np.int64(IGNORED if isinstance(item.label, Unseen) else item.label)}


def letter_ids(tokens: Sequence[str], delimiter: str, item: Item) -> np.ndarray:
    """The words of an item's transcript as ids int64 (letters,) of a vocabulary of letters, in the case that it has.

    DataError for a letter that the vocabulary lacks.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    upper = "E" in ids and "e" not in ids
    words = [word.upper() if upper else word for word in words_of(item.label)]
    text = delimiter.join(words)
    missing = sorted(set(text) - set(ids))
    if missing:
        raise DataError(
            f"row {item.row + 1} has the transcript {item.label[:60]!r}, and the model's vocabulary has no "
            f"{' '.join(missing)}; spell it otherwise, or add it to vocab.json"
        )
    return np.array([ids[letter] for letter in text], dtype=np.int64)


def _spelled_example(
    ids: Mapping[int, np.ndarray], batch: Batch, window: int, item: Item, row: Mapping[str, Any]
) -> Example:
    """The letters of the transcript, by the item's row."""
    return {"labels": ids[item.row]}


def _map_example(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """The class of every pixel, int64 (H, W), in the size that the network reads."""
    return {"labels": images.resized_map(item.label, *batch.inputs["pixel_values"].shape[2:]).astype(np.int64)}


def _boxes_example(batch: Any, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """The class and the box of every thing in an image: int64 (n,), and float32 (n, 4) of middle, width and height as
    shares of the image, as DETR's loss takes them."""
    height, width = batch.sizes[window]
    corners = item.label[:, 1:] / [width, height, width, height]
    boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    return {"labels": {"class_labels": item.label[:, 0].astype(np.int64), "boxes": boxes.astype(np.float32)}}


def _classes_example(classes: int, batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """Yes (1) or no (0) for each of so many classes."""
    labels = np.zeros(classes, dtype=np.float32)
    labels[[label for label in item.label if not isinstance(label, Unseen)]] = 1
    return {"labels": labels}


def _number_example(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    return {"labels": np.float32(item.label)}


def _tag_examples(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """The word's tag on its first sub-token; other sub-tokens and the special ones are not judged either."""
    used = batch.mask[window].astype(bool)
    words = [word for word, token in zip(batch.word_ids[window], used, strict=True) if token]
    seen: set[int] = set()
    labels = np.full(len(words), IGNORED, dtype=np.int64)
    for position, word in enumerate(words):
        if word is not None and word not in seen:
            seen.add(word)
            labels[position] = IGNORED if isinstance(item.label[word], Unseen) else item.label[word]
    return {"labels": labels}


def _answer_examples(batch: Batch, window: int, item: Item, row: Mapping[str, Any]) -> Example:
    """First and last token of the first answer; position 0 ([CLS]) where this window does not hold all of it."""
    first, last = 0, 0
    answers, starts = row.get("answers") or [], row.get("answer_starts") or []
    if answers and starts:
        begin, end = int(starts[0]), int(starts[0]) + len(answers[0])
        used = batch.mask[window].astype(bool)
        at = int(np.flatnonzero(used)[0])
        spans = [
            (position - at, offset) for position, offset in enumerate(batch.offsets[window])
            if used[position] and batch.sequence_ids[window][position] == 1
        ]  # fmt: skip
        inside = [position for position, (low, high) in spans if low < end and high > begin]
        if inside and spans[0][1][0] <= begin and spans[-1][1][1] >= end:
            first, last = inside[0], inside[-1]
    return {"start_positions": np.int64(first), "end_positions": np.int64(last)}


# What makes the labels of an example, by what a network gives; those of words and letters are made in `_maker`.
MAKERS: dict[Output, Callable[..., Example]] = {
    Output.CLASSES: _class_example,
    Output.MAP: _map_example,
    Output.BOXES: _boxes_example,
    Output.NUMBER: _number_example,
    Output.TAGS: _tag_examples,
    Output.SPAN: _answer_examples,
    Output.MASKED_WORDS: _whole_text,
    Output.NEXT_WORDS: _next_tokens,
    Output.NEXT_ITEM: _next_tokens,
}
TRAINED = frozenset({*MAKERS, Output.ANSWER_WORDS, Output.LETTERS})
