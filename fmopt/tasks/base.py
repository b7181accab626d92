"""What a task is: rows → items, predictions + labels → one row of numbers per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fmopt.model import CheckpointFacts
from fmopt.results import Scores

Raw = str | tuple[str, str] | list[str]   # a text, a pair, or a list of words: what edge.Preprocessor encodes


@dataclass(frozen=True)
class Item:
    """One thing to predict. A row of the data may give several items (query and document)."""

    row: int                           # index of the row it came from, for reports and pairing
    raw: Raw
    label: Any = None                  # int class, float, list of tag ids, list of answers; None without labels
    role: str = ""                     # "query", "document", "first", "second" where a row gives several items


class Task(Protocol):
    """What a model is for and how it is judged."""

    name: str
    auto_class: str                    # the transformers class that loads it, e.g. "AutoModelForTokenClassification"
    architectures: tuple[str, ...]     # ends of class names that show this task, e.g. ("ForTokenClassification",)
    columns: Mapping[str, tuple[str, ...]]   # role -> accepted column names, most usual first
    needed: tuple[tuple[str, ...], ...]      # alternatives of roles without which nothing can be predicted

    def items(self, rows: Sequence[Mapping[str, Any]], facts: CheckpointFacts) -> list[Item]:
        """Items of rows whose columns are already named by role; DataError on a label the model does not know."""

    def scores(self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any] | None) -> list[Scores]:
        """Metrics, exactly one of them primary. Without labels: fidelity to `baseline`."""
