"""Run a variant over items as production would, keep every prediction, and name the items that changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.edge import Pipeline, Preprocessor, postprocess, present
from fmopt.model import CheckpointFacts
from fmopt.record import Changed
from fmopt.runtimes.base import Runner
from fmopt.tasks.base import Item, Task


def predict(
    runner: Runner,
    preprocessor: Preprocessor,
    pipeline: Pipeline,
    items: Sequence[Item],
    *,
    batch: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """One prediction per item, in order. Batches hold texts of like length, so that little is padding."""
    order = list(range(len(items))) if batch == 1 else sorted(range(len(items)), key=lambda i: len(str(items[i].raw)))
    got: list[Any] = [None] * len(items)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        raws = [items[i].raw for i in chosen]
        encoded = preprocessor.encode(raws)
        for index, prediction in zip(
            chosen, postprocess(pipeline, runner.run(encoded.inputs), encoded, raws), strict=True
        ):
            got[index] = prediction
        if progress:
            progress(len(chosen))
    return got


def save_predictions(path: Path, predictions: Sequence[Any]) -> None:
    """Arrays as npz, answers as JSON; never pickle."""
    if isinstance(predictions[0], dict):
        path.with_suffix(".json").write_text(json.dumps(list(predictions)))
    else:
        arrays = [np.atleast_1d(np.asarray(p)) for p in predictions]
        np.savez(
            path.with_suffix(".npz"),
            flat=np.concatenate([a.ravel() for a in arrays]),
            shapes=np.array([(a.shape[0], a.shape[1] if a.ndim > 1 else -1) for a in arrays]),
        )


def load_predictions(path: Path) -> list[Any]:
    """What `save_predictions` wrote."""
    if path.with_suffix(".json").is_file():
        return list(json.loads(path.with_suffix(".json").read_text()))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        flat, shapes = stored["flat"], stored["shapes"]
    sizes = [rows * (columns if columns >= 0 else 1) for rows, columns in shapes]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [
        part if columns < 0 else part.reshape(rows, columns)
        for part, (rows, columns) in zip(parts, shapes, strict=True)
    ]


def changed_items(
    task: Task,
    items: Sequence[Item],
    baseline: Sequence[Any],
    candidate: Sequence[Any],
    facts: CheckpointFacts,
    *,
    limit: int = 40,
) -> list[Changed]:
    """Items whose readable prediction is another one now; vectors are never the same to the last bit and are left out."""
    if task.name == "sentence-embedding":
        return []
    pipeline = dict(facts.pipeline)
    found = []
    for item, before, after in zip(items, baseline, candidate, strict=True):
        old, new = present(pipeline, before, item.raw), present(pipeline, after, item.raw)
        if json.dumps(old, default=str) != json.dumps(new, default=str):
            found.append(
                Changed(row=item.row, text=str(item.raw), label=str(item.label), baseline=str(old), candidate=str(new))
            )
    return found[:limit]
