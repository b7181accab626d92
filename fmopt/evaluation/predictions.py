"""Run a variant over items as production would, keep every prediction, and name the items that changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.media import images
from fmopt.core.model import CheckpointMetadata, Runner
from fmopt.edge.errors import EdgeError
from fmopt.edge.loading import run_batch
from fmopt.edge.parts import Pipeline, Sample
from fmopt.edge.text import Preprocessor, postprocess
from fmopt.tasks.base import Item, Task

SHOWN_CHARACTERS = 400  # of a text in a report
WIDE = 4096  # columns; a row this long is a vocabulary's


def predict(
    runner: Runner,
    preprocessor: Preprocessor,
    pipeline: Pipeline,
    items: Sequence[Item],
    *,
    batch: int = 1,
    mixed: bool = False,
    length: int | None = None,
    callers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """One prediction per item, in order. Batches hold texts of like length, so that little is padding; `mixed` ones hold what
    comes together in the data. With `length`, texts are padded to that many tokens.

    A text that occurs several times is run once. With `callers`, so many batches are under way at once, for runners that
    compute several calls at the same time. `progress` gets how many more items are done. DataError that names the row of a
    sample that cannot be read.
    """
    places: dict[Any, list[int]] = {}  # text -> indices of the items that have it
    for index, item in enumerate(items):
        places.setdefault(tuple(item.sample) if isinstance(item.sample, list) else item.sample, []).append(index)
    same = list(places.values())
    if batch > 1 and not mixed:
        same.sort(key=lambda indices: _length(items[indices[0]].sample))
    parts = [same[start : start + batch] for start in range(0, len(same), batch)]

    def answers(part: list[list[int]]) -> Sequence[Any]:
        samples = [items[indices[0]].sample for indices in part]
        encoded = _encoded(preprocessor, samples, [items[indices[0]].row for indices in part], length)
        outputs = run_batch(pipeline, runner, encoded, len(encoded.owner))
        made: Sequence[Any] = postprocess(pipeline, outputs, encoded, samples)
        return made

    found: list[Any] = [None] * len(items)
    with ThreadPoolExecutor(callers) as pool:
        for part, made in zip(parts, pool.map(answers, parts) if callers > 1 else map(answers, parts), strict=True):
            for indices, prediction in zip(part, made, strict=True):
                for index in indices:
                    found[index] = prediction
            if progress:
                progress(sum(map(len, part)))
    return found


def _encoded(
    preprocessor: Preprocessor, samples: Sequence[Sample], rows: Sequence[int], length: int | None = None
) -> Any:
    try:
        return preprocessor.encode(samples, length)
    except EdgeError:
        for sample, row in zip(samples, rows, strict=True):
            try:
                preprocessor.encode([sample])
            except EdgeError as error:
                raise DataError(f"row {row + 1}: {str(error).removeprefix('item 1: ')}") from error
        raise


def save_predictions(path: Path, predictions: Sequence[Any]) -> None:
    """Arrays as npz, answers as JSON; never pickle. The same predictions give the same bytes.

    Log-probabilities over a vocabulary are kept in 16 bits, exact to 1 part in 2,048: a thousand of BERT's take 61 MB.
    """
    if not predictions or isinstance(predictions[0], dict):
        path.with_suffix(".json").write_text(json.dumps(list(predictions)), encoding="utf-8")
        return
    arrays = [np.asarray(prediction) for prediction in predictions]  # (dim,), (classes,), (1,) or (words, classes)
    kind = np.float16 if arrays[0].ndim == 2 and arrays[0].shape[1] >= WIDE else arrays[0].dtype
    np.savez(
        path.with_suffix(".npz"),
        flat=np.concatenate([array.ravel().astype(kind, copy=False) for array in arrays]),
        shapes=np.array([array.shape for array in arrays], dtype=np.int64),
    )


def load_predictions(path: Path) -> list[Any]:
    """What `save_predictions` wrote."""
    if path.with_suffix(".json").is_file():
        return list(json.loads(path.with_suffix(".json").read_text("utf-8")))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        flat, shapes = stored["flat"], stored["shapes"]
    parts = np.split(flat, np.cumsum(shapes.prod(axis=1))[:-1])
    kind = np.float32 if flat.dtype == np.float16 else flat.dtype
    return [part.reshape(shape).astype(kind, copy=False) for part, shape in zip(parts, shapes, strict=True)]


def changed_items(
    task: Task,
    items: Sequence[Item],
    baseline: Sequence[Any],
    candidate: Sequence[Any],
    metadata: CheckpointMetadata,
    *,
    limit: int | None = 40,
) -> list[dict[str, Any]]:
    """Items for which people would see another result, the most harmed first: row, text, label, baseline, candidate.

    DataError when the two are not predictions of the same items.
    """
    if not len(items) == len(baseline) == len(candidate):
        raise DataError(
            f"{len(baseline)} and {len(candidate)} predictions cannot be compared on {len(items)} items; predict both "
            "on the same ones"
        )
    if not items:
        return []
    changes = task.changes(candidate, items, baseline, metadata)
    changes.sort(key=lambda change: (-np.nan_to_num(change.harm, nan=np.inf), change.item))
    return [
        {
            "row": items[change.item].row,
            "text": _short(change.text or _text(items[change.item].sample)),
            **_pictured(items[change.item].sample, metadata),
            "label": None if change.label is None else _short(change.label),
            "baseline": _short(change.before),
            "candidate": _short(change.after),
        }
        for change in changes[:limit]
    ]


def _length(sample: Sample) -> int:
    return len(sample) if isinstance(sample, str | bytes) else sum(map(len, sample))


def _text(sample: Sample) -> str:
    if isinstance(sample, str):
        return sample
    if isinstance(sample, bytes):
        return f"{len(sample):,} bytes"
    return (" | " if isinstance(sample, tuple) else " ").join(sample)


def _pictured(sample: Sample, metadata: CheckpointMetadata) -> dict[str, str]:
    """A sample as people see it, where it is an image."""
    return {"image": images.thumbnail(sample)} if metadata.modality == "image" and isinstance(sample, bytes) else {}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
