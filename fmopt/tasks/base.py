"""What a task is: rows → items, predictions + labels → one row of numbers per item."""

from __future__ import annotations

import importlib.util
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import ConfigError, DataError
from fmopt.core.model import CheckpointMetadata, makes_answers
from fmopt.core.results import Scores
from fmopt.edge import parts
from fmopt.edge.parts import Sample


@dataclass(frozen=True)
class Item:
    """One thing to predict. A row of the data may give several items (query and document)."""

    row: int  # index of the row it came from, for reports and pairing
    sample: Sample
    label: Any = None  # int class, float, list of tag ids, list of answers; None without labels
    role: str = ""  # "query", "document", "first", "second" where a row gives several items


@dataclass(frozen=True)
class Change:
    """A prediction that is another one than the baseline's, in words for a report."""

    item: int  # index into the items
    before: str
    after: str
    harm: float  # how much worse the item is judged now; below 0 it is judged better; orders what is shown
    label: str | None = None
    text: str | None = None  # where the item's own text is not all of it


class Unseen(str):
    """A label that the data names and the model does not have. An item with it is judged like others, and cannot be right."""


class Output(StrEnum):
    """What a network gives, which says how it is trained, how units are scored for pruning, and what a student learns by.

    B items, n tokens, C classes, V words of a vocabulary.
    """

    CLASSES = "classes"  # logits [B, C]; where a pipeline says "multi_label" each is a yes or no
    NUMBER = "number"  # [B, 1]
    VECTOR = "vector"  # of texts states [B, n, w], which are pooled; else [B, w]
    TAGS = "tags"  # logits [B, n, C] of every token
    SPAN = "span"  # two logits [B, n], in which the tokens of a text compete to be its first and its last
    MASKED_WORDS = "masked words"  # logits [B, n, V]; asked for where a text holds the mask
    NEXT_WORDS = "next words"  # logits [B, n, V], each of the token that follows
    ANSWER_WORDS = "words of an answer"  # logits [B, m, V] of a decoder that reads what an encoder made of the item
    NEXT_ITEM = "next item"  # scores [B, V] over a catalogue
    LETTERS = "letters"  # logits [B, frames, V], of which blanks and repetitions are left out (CTC)
    MAP = "map"  # logits [B, C, H, W] of every pixel
    BOXES = "boxes"  # logits [B, queries, C] and boxes [B, queries, 4]
    AUDIO = "audio"  # samples [B, m]


@dataclass(frozen=True)
class Usage:
    """What the README of a bundle says of it."""

    argument: str  # of `run.py predict`; {mask} stands for the tokenizer's mask token
    result: str
    call: str = ""  # the sample in Python, where it is not the argument


class Task(ABC):
    """What a model is for and how it is judged. Whatever depends on the task is said here, so that a task is one file."""

    name: str
    auto_class: str  # the transformers classes that load it, the first that fits: "AutoModelForTokenClassification"
    architectures: tuple[str, ...]  # ends of class names that show this task, e.g. ("ForTokenClassification",)
    columns: Mapping[str, tuple[str, ...]]  # role -> accepted column names, most usual first
    needed: tuple[tuple[str, ...], ...]  # alternatives of roles without which nothing can be predicted, best first
    output: Output
    outputs: tuple[str, ...] = ("logits",)  # names of the network's outputs
    modality: Literal["text", "image", "audio", "item"] = "text"  # what samples are; items: histories of them
    usage: Usage
    in_browser: bool = False  # whether the JavaScript of a bundle's page knows its samples and answers
    reads_windows: bool = False  # whether texts that are too long are read in pieces, instead of being cut
    pipeline_tag: str | None = (
        None  # what model hubs call it, where that is not its name; "" where they have no name for it
    )
    edge_part: Path | None = (
        None  # of another package: extension_NAME.py, which knows samples and answers (see edge/parts.py)
    )

    # of a checkpoint
    priority: int = 0  # of several tasks that an architecture shows, those with the highest one are meant
    regression: bool | None = (
        None  # whether a sequence head must be one for numbers (True) or classes (False); None: any
    )
    takes_any_encoder: bool = False  # whether the network below any head will do
    takes_checkpoints_of: tuple[str, ...] = ()  # further tasks whose checkpoints have what this one needs
    head_tensors: tuple[
        str, ...
    ] = ()  # beginnings of names of weights that show it in a checkpoint that names no class

    # of labels
    shown_by: tuple[str, ...] = ()  # roles by which labelled data shows that it is for training this task; none: never
    shown_alone: bool = False  # whether such data is for no other task, whatever else it has
    class_role: str | None = None  # the role whose values are names or numbers of classes
    has_classes: bool = False  # whether the checkpoint names classes
    classes_from_data: bool = False  # whether a network takes any classes, by their names
    label_is_optional: bool = False  # whether a row without a label can be learned from all the same
    learns_labels: bool = True  # whether training compares outputs with the labels of rows

    @abstractmethod
    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """Items of rows whose columns are already named by role; DataError on a label the model does not know."""

    @abstractmethod
    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Metrics, exactly one of them primary. Without labels: fidelity to `baseline`; without that too: none."""

    @abstractmethod
    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Items for which people would see another result than the baseline's."""

    def allows_subsets(self, items: Sequence[Item]) -> bool:
        """Whether a part of the items is judged as all of them are: not where each is looked for among the others."""
        return True

    def label_names(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Names of the classes that `rows` hold, in the order of their ids; none for tasks without classes.

        DataError when there is nothing to tell apart.
        """
        return [] if self.class_role is None else class_names(rows, self.class_role)

    def pipeline_entries(self, folder: Path, config: Any) -> dict[str, Any]:
        """What a pipeline says, as JSON, beside what its output and modality say; of transformers' `config` of a checkpoint."""
        return {}


def find_task(name: str) -> Task:
    """A task by its name, its part of a bundle made known. ConfigError when there is none, or its part cannot be one."""
    task: Task = plugins.find("tasks", name)
    if task.edge_part is not None:
        _know_part(task.edge_part, task.name)
    return task


def all_tasks() -> tuple[Task, ...]:
    """Every task: ours and those of other packages."""
    return tuple(find_task(name) for name in plugins.names("tasks"))


def output_of(pipeline: Mapping[str, Any]) -> Output:
    """What the network of a pipeline gives: whatever its task, words where an encoder and a decoder answer in them."""
    return Output.ANSWER_WORDS if makes_answers(pipeline) else find_task(pipeline["task"]).output


def _know_part(file: Path, task: str) -> None:
    """Import the part of another package as one of edge's own, so that it finds its siblings here as it does in a bundle."""
    name = f"{parts.__package__}.{file.stem}"
    known = sys.modules.get(name)
    if not (file.stem.startswith(parts.EXTENSION) and file.stem.isidentifier()):
        raise ConfigError(f"the part of task {task!r} is called {file.name}; call it {parts.EXTENSION}{file.stem}.py")
    if known is not None:
        if Path(str(known.__file__)) != file:
            raise ConfigError(f"two packages have a part called {file.name}: {known.__file__} and {file}; rename one")
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ConfigError(f"task {task!r} names the part {file}, which is no file; mend the package that it comes from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def class_names(rows: Sequence[Mapping[str, Any]], role: str, fewest: int = 2) -> list[str]:
    """Names of the classes in a role of `rows`, in the order of their ids; DataError for fewer than `fewest`.

    Names in the data are sorted, "O" first among tags; ids become LABEL_0, LABEL_1, … as in transformers.
    """
    given = [row.get(role) for row in rows]
    listed = [name for value in given for name in (value if isinstance(value, list | tuple) else [value])]
    found: set[Any] = {name for name in listed if name is not None}
    if len(found) < fewest:
        only = next(iter(found), None)
        raise DataError(f"all train rows have the same {role} ({only!r}), so there is nothing to learn")
    if all(isinstance(value, int | np.integer) for value in found):
        if min(found) < 0:
            raise DataError(f"a {role} is {min(found)}; classes are counted from 0")
        return [f"LABEL_{number}" for number in range(max(found) + 1)]
    return sorted((str(value) for value in found), key=lambda name: (name != "O", name))


def labelled(items: Sequence[Item]) -> bool:
    """True when every item can be judged by a label."""
    return bool(items) and all(item.label is not None for item in items)


def text_or_pair(row: Mapping[str, Any]) -> Sample:
    """The text of a row, or its two texts."""
    return (row["text"], row["text_pair"]) if row.get("text_pair") is not None else row["text"]


def column(values: Iterable[float]) -> list[list[float]]:
    """Per-item numbers as `Scores` keeps them: one row of one number for each item."""
    return [[float(value)] for value in values]


def name_key(name: str) -> str:
    """What two spellings of a label have in common: `Card arrival`, `card_arrival` and `CARD-ARRIVAL` are one."""
    return name.strip().casefold().replace("_", " ").replace("-", " ")


def label_index(value: Any, labels: Sequence[str], row: int) -> int | Unseen | None:
    """The class number of a label given as name (in any case) or number; what is `Unseen` stays so. DataError when the model
    does not have it, or has several of that name."""
    if value is None or isinstance(value, Unseen):
        return value
    if isinstance(value, str):
        exact, alike = _by_name(tuple(labels))
        numbers = exact.get(value) or alike.get(name_key(value)) or []
        if len(numbers) > 1:
            raise DataError(
                f"row {row + 1} has the label {value!r}, which {len(numbers)} classes of the model are called "
                f"({', '.join(map(str, numbers))}); give the number of the class"
            )
        number = numbers[0] if numbers else None
        if number is None and _WHOLE.fullmatch(value):  # a csv writes numbers as text
            number = int(float(value))
    else:
        whole = isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer())
        number = int(value) if whole else None
    if number is not None and 0 <= number < len(labels):
        return number
    shown = ", ".join(labels[:6]) + (", …" if len(labels) > 6 else "")
    raise DataError(
        f"row {row + 1} has the label {value!r}, which the model does not know; it has {len(labels)}: {shown}"
    )


_WHOLE = re.compile(r"\s*\d+(?:\.0*)?\s*")


@lru_cache(maxsize=8)
def _by_name(labels: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The classes of every name, as it is written and as it is read in any case."""
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        exact.setdefault(label, []).append(index)
        alike.setdefault(name_key(label), []).append(index)
    return exact, alike


def number_label(value: Any, row: int) -> float | None:
    """A score as a number; DataError when it is none."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"row {row + 1} has the score {value!r}, which is no number") from error
    if not np.isfinite(number):
        raise DataError(f"row {row + 1} has the score {value!r}; remove the row or give a finite number")
    return number
