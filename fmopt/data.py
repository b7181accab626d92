"""Data sets: named splits of rows named by role, and which split may calibrate, select and judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmopt.errors import DataError
from fmopt.model import CheckpointFacts
from fmopt.pydoc import pydoc_splits
from fmopt.tasks.base import Task

Row = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """Splits of rows. Items that calibrated or trained never judge."""

    name: str
    digest: str
    splits: Mapping[str, list[Row]]
    notes: tuple[str, ...] = ()
    licence: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def split(self, name: str) -> list[Row]:
        """Rows of a split; DataError when there is none."""
        if name not in self.splits:
            raise DataError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def load_data(spec: str, task: Task, facts: CheckpointFacts, *, columns: Mapping[str, str] | None = None, seed: int = 0) -> Dataset:
    """The data set that `spec` names, its rows named by the task's roles."""
    if spec == "builtin:pydoc":
        splits = pydoc_splits()
        digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
        return Dataset(spec, digest, splits, notes=("docstrings of the Python standard library",), licence="PSF-2.0")
    raise DataError(f"{spec}: not yet")
