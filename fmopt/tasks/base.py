"""What a task is: rows → items, predictions + labels → one row of numbers per item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
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


class Task(Protocol):
    """What a model is for and how it is judged."""

    name: str
    auto_class: str  # the transformers class that loads it, e.g. "AutoModelForTokenClassification"
    architectures: tuple[str, ...]  # ends of class names that show this task, e.g. ("ForTokenClassification",)
    columns: Mapping[str, tuple[str, ...]]  # role -> accepted column names, most usual first
    needed: tuple[tuple[str, ...], ...]  # alternatives of roles without which nothing can be predicted, best first

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """Items of rows whose columns are already named by role; DataError on a label the model does not know."""

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Metrics, exactly one of them primary. Without labels: fidelity to `baseline`; without that too: none."""

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Items for which people would see another result than the baseline's."""


def modality_of(task: Task) -> str:
    """What the samples of a task are: "text" unless it says "image" or "audio" of itself."""
    return str(getattr(task, "modality", "text"))


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


def label_index(value: Any, labels: Sequence[str], row: int) -> int | None:
    """The class number of a label given as name (in any case) or number; DataError when the model does not have it."""
    if value is None:
        return None
    if isinstance(value, str):
        number = _by_name(tuple(labels)).get(name_key(value))
        if number is None and value.strip().isdecimal():  # a csv writes numbers as text
            number = int(value)
    else:
        whole = isinstance(value, int | np.integer) or (isinstance(value, float) and value.is_integer())
        number = int(value) if whole else None
    if number is not None and 0 <= number < len(labels):
        return number
    shown = ", ".join(labels[:6]) + (", …" if len(labels) > 6 else "")
    raise DataError(
        f"row {row + 1} has the label {value!r}, which the model does not know; it has {len(labels)}: {shown}"
    )


@lru_cache(maxsize=8)
def _by_name(labels: tuple[str, ...]) -> dict[str, int]:
    return {name_key(label): index for index, label in reversed(list(enumerate(labels)))}


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
