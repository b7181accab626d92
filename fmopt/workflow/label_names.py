"""Checkpoints that know labels by what they say (CLIP), given those of a data set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointFacts
from fmopt.data.datasets import Dataset
from fmopt.models import checkpoint
from fmopt.models.checkpoint import ZERO_SHOT
from fmopt.models.source import cache_folder, made_once
from fmopt.models.weights import link_files
from fmopt.training.examples import label_names


def with_labels(facts: CheckpointFacts, data: Dataset | None) -> CheckpointFacts:
    """The same facts; of a checkpoint that takes any labels those of its copy in the cache, whose config.json names the ones of
    `data`. One that names labels keeps them.

    DataError without data, when it has fewer than two, or numbers alone, of which no text can be made.
    """
    if facts.task != ZERO_SHOT or facts.pipeline["labels"]:
        return facts
    if data is None:
        raise DataError(f"{facts.source.title} names no labels: give data with those that it shall know, with --data")
    rows = [row for split in data.splits.values() for row in split]
    names = list(data.label_names) or label_names(ZERO_SHOT, rows)
    if all(name.removeprefix("LABEL_").isdecimal() for name in names):
        raise DataError(
            f"{facts.source.title} knows labels by what they say, and those of {data.name} are numbers; put their names, "
            'in order, as a JSON list into labels.json beside the data: ["airplane", "automobile", ...]'
        )
    folder = _copy(facts, names)
    return checkpoint.inspect(replace(facts.source, folder=folder), facts.task)


def _copy(facts: CheckpointFacts, names: list[str]) -> Path:
    key = hashlib.sha256(json.dumps([facts.digest, names]).encode()).hexdigest()[:16]
    place = cache_folder() / "labelled" / f"{facts.folder.name}-{key}"

    def make(out: Path) -> None:
        link_files(facts.folder, out, skip=frozenset({"config.json"}))
        classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (out / "config.json").write_text(json.dumps({**facts.config, **classes}, indent=1))

    return made_once(place, make)
