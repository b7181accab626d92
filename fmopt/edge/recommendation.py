"""Recommendation of a bundle: histories of items → arrays, scores of a catalogue → the items that may come next.

A sample is a history: a list of items in the order in which they were taken, each by its id or its title. items.json beside the
model is the catalogue, [[id, title], …]; a network calls the first of them 1, and padding 0. Needs numpy alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError
from .files import parsed

Pipeline = Mapping[str, Any]

CATALOGUE = "items.json"
SHOWN = 10  # items that people see
PARTED_BY = ";"  # items of a history that a command gives


@dataclass
class Batch:
    """Encoded histories, one row each: input_ids and attention_mask int64 [rows, items], padded on the right."""

    inputs: dict[str, np.ndarray]
    mask: np.ndarray
    owner: list[int]  # row -> index of its sample


class Catalogue:
    """The items that a model knows: what each is called, and the number that the network gives it."""

    def __init__(self, items: Sequence[tuple[str, str]]) -> None:
        self.items = items
        self.numbers = {name: number for number, (name, _) in enumerate(items, 1)}
        self.titled: dict[str, list[int]] = {}
        for number, (_, title) in enumerate(items, 1):
            self.titled.setdefault(title.casefold(), []).append(number)

    def number(self, given: Any) -> int:
        """The network's number of an item given by its id or title; ValueError for one that is not in the catalogue."""
        name = str(given).strip()
        if name in self.numbers:
            return self.numbers[name]
        found = self.titled.get(name.casefold(), [])
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(self.items[number - 1][0] for number in found)
            raise ValueError(f"{name!r} is the title of {len(found)} items; say which by its id: {ids}")
        near = difflib.get_close_matches(name.casefold(), self.titled, n=1) if name else []
        hint = f"; did you mean {self.items[self.titled[near[0]][0] - 1][1]!r}?" if near else ""
        raise ValueError(f"{name!r} is not one of the {len(self.items)} items of the catalogue ({CATALOGUE}){hint}")

    def numbers_of(self, history: Any) -> list[int]:
        """The numbers of a history's items; ValueError that names the first item that is not known."""
        if not isinstance(history, list | tuple):
            raise ValueError(f"{str(history)[:60]!r} is no history; give a list of items, each by its id or title")
        if not history:
            raise ValueError("the history is empty; give at least one item")
        return [self.number(item) for item in history]


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue of a checkpoint or bundle folder; ValueError when there is none that can be read."""
    path = Path(folder) / CATALOGUE
    if not path.is_file():
        raise ValueError(f"{path} is missing; a model needs the catalogue that it was trained with")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Catalogue:
    try:
        return Catalogue([(str(name), str(title)) for name, title in parsed(path.read_bytes(), path.name, list)])
    except (OSError, EdgeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no list of [id, title]: {error}; copy the model's own") from error


class Preprocessor:
    """Makes arrays of histories, of each the newest `max_length` items."""

    def __init__(self, folder: Path, pipeline: Pipeline):
        self.pipeline = pipeline
        self.catalogue = read_catalogue(folder)

    def encode(self, samples: Sequence[Any], length: int | None = None) -> Batch:
        """Arrays of the samples, cut and padded to `length` items, by default to the longest. ValueError on an unknown item."""
        rows = []
        for index, sample in enumerate(samples):
            try:
                rows.append(self.catalogue.numbers_of(sample)[-(length or int(self.pipeline["max_length"])) :])
            except ValueError as error:
                raise ValueError(f"item {index + 1}: {error}") from error
        width = length or max(map(len, rows))
        ids, mask = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(2))
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        return Batch({"input_ids": ids, "attention_mask": mask}, mask, list(range(len(rows))))


def read_sample(text: str) -> list[str]:
    """The history that an argument of the command names: ids or titles parted by ";", or a JSON list of them."""
    if text.lstrip().startswith("["):
        try:
            return [str(item) for item in json.loads(text)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{text[:60]!r} begins like a JSON list and is none: {error}") from error
    return [item.strip() for item in text.split(PARTED_BY) if item.strip()]


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Any]
) -> list[np.ndarray]:
    """One prediction per sample: scores float32 (items,), in the order of the catalogue, also of those in the history."""
    return list(np.asarray(outputs["logits"], dtype=np.float32)[:, 1:])


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Any, preprocessor: Any) -> dict[str, Any]:
    """The items that most likely come next, those of the history left out: {"items": [{"item", "title", "score"}, …]}, a
    score being the share among all that are left."""
    catalogue = preprocessor.catalogue
    scores = unseen(prediction, catalogue.numbers_of(sample)).astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = [int(place) for place in np.argsort(-scores, kind="stable")[:SHOWN] if np.isfinite(scores[place])]
    named = [(*catalogue.items[place], float(shares[place])) for place in best]
    return {"items": [dict(zip(("item", "title", "score"), one, strict=True)) for one in named]}


def unseen(prediction: np.ndarray, history: Sequence[int]) -> np.ndarray:
    """The scores, minus infinity for the items (numbers of the network) of a history."""
    scores = np.array(prediction, dtype=np.float32)
    scores[np.asarray(history) - 1] = -np.inf
    return scores
