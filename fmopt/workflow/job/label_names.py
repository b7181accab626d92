"""Models that name no labels, given those of a data set: checkpoints that know labels by their words (CLIP), ONNX graphs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata, ReceivedGraph
from fmopt.data.datasets import Dataset
from fmopt.models import checkpoint
from fmopt.models.source import cache_folder, made_once
from fmopt.models.weights import link_files
from fmopt.tasks.base import Task, find_task


def with_labels(metadata: CheckpointMetadata, data: Dataset | None) -> CheckpointMetadata:
    """The same metadata; of a checkpoint that takes any labels those of its copy in the cache, whose config.json names those of
    `data`. One that names labels keeps them.

    DataError without data, when it has fewer than two, or numbers alone, of which no text can be made; of an ONNX graph where
    nothing says which of its outputs is which label.
    """
    task = find_task(metadata.task)
    if metadata.graph is not None:
        unnamed = task.has_classes and not metadata.pipeline["labels"]
        return _inspected(metadata, _of_graph(metadata, metadata.graph, task, data)) if unnamed else metadata
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
    return _inspected(metadata, names)


def _of_graph(metadata: CheckpointMetadata, graph: ReceivedGraph, task: Task, data: Dataset | None) -> list[str]:
    """Names of a graph's classes, in the order of its outputs: those that the data lists, else LABEL_0, LABEL_1, … as
    transformers calls classes without names, where labels are numbers or there are none."""
    listed = [] if data is None else list(data.label_names)
    rows = [row for split in ({} if data is None else data.splits).values() for row in split]
    values = [row.get(task.class_role or "") for row in rows]
    words = [
        one
        for value in values
        for one in (value if isinstance(value, list | tuple) else [value])
        if isinstance(one, str)
    ]
    if not listed and any(not word.strip().isdecimal() for word in words):
        raise DataError(
            f"{metadata.source.title} names no labels and {'the data' if data is None else data.name} has them as words, in no "
            f"order; put their names, in the order of the graph's {graph.classes} classes, as a JSON list into labels.json "
            "beside the graph"
        )
    if listed and len(listed) != graph.classes:
        raise DataError(
            f"the data lists {len(listed)} labels, and {metadata.source.title} gives {graph.classes} classes; mend that"
        )
    return listed or [f"LABEL_{number}" for number in range(graph.classes)]


def _inspected(metadata: CheckpointMetadata, names: list[str]) -> CheckpointMetadata:
    source = replace(metadata.source, folder=_copy(metadata, names), tokenizer=None)
    return checkpoint.inspect(source, metadata.task)


def _copy(metadata: CheckpointMetadata, names: list[str]) -> Path:
    key = hashlib.sha256(json.dumps([metadata.digest, names]).encode()).hexdigest()[:16]
    place = cache_folder() / "labelled" / f"{metadata.folder.name}-{key}"

    def make(out: Path) -> None:
        link_files(metadata.folder, out, skip=frozenset({"config.json"}))
        classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (out / "config.json").write_text(json.dumps({**metadata.config, **classes}, indent=1))

    return made_once(place, make)
