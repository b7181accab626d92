"""Checkpoints that know labels by what they say (CLIP), given those of a data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.data.datasets import Dataset
from fmopt.models import checkpoint
from fmopt.models.source import cache_folder, made_once
from fmopt.models.weights import link_files
from fmopt.tasks.base import find_task


def with_labels(metadata: CheckpointMetadata, data: Dataset | None) -> CheckpointMetadata:
    """The same metadata; of a checkpoint that takes any labels those of its copy in the cache, whose config.json names those of
    `data`. One that names labels keeps them.

    DataError without data, when it has fewer than two, or numbers alone, of which no text can be made.
    """
    task = find_task(metadata.task)
    if not task.classes_from_data or metadata.pipeline["labels"]:
        return metadata
    if data is None:
        raise DataError(
            f"{metadata.source.title} names no labels: give data with those that it shall know, with --data"
        )
    rows = [row for split in data.splits.values() for row in split]
    names = list(data.label_names) or task.label_names(rows)
    if all(name.removeprefix("LABEL_").isdecimal() for name in names):
        raise DataError(
            f"{metadata.source.title} knows labels by what they say, and those of {data.name} are numbers; put their names, "
            'in order, as a JSON list into labels.json beside the data: ["airplane", "automobile", ...]'
        )
    folder = _copy(metadata, names)
    return checkpoint.inspect(replace(metadata.source, folder=folder), metadata.task)


def _copy(metadata: CheckpointMetadata, names: list[str]) -> Path:
    key = hashlib.sha256(json.dumps([metadata.digest, names]).encode()).hexdigest()[:16]
    place = cache_folder() / "labelled" / f"{metadata.folder.name}-{key}"

    def make(out: Path) -> None:
        link_files(metadata.folder, out, skip=frozenset({"config.json"}))
        classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (out / "config.json").write_text(json.dumps({**metadata.config, **classes}, indent=1))

    return made_once(place, make)
