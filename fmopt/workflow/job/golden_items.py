"""Which inputs a bundle carries for its self-test: some that it was judged with, those of a file, made-up ones, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.evaluation.predictions import predict
from fmopt.exporters.bundles.golden import Golden, measure_golden
from fmopt.measurement import host_probe
from fmopt.tasks.base import Item, find_task
from fmopt.workflow.deployed import BENCH_TEXTS, open_artifact, plain_example

GOLDEN_ITEMS = 8


def golden_of(
    chosen: str,
    judged: Sequence[Any],
    metadata: CheckpointMetadata,
    artifact: Artifact,
    precision: str,
    columns: Mapping[str, str] | None,
) -> Golden:
    """Golden items of an artifact, computed and measured. `chosen` is "data" (the first of the `judged` samples), "none",
    "synthetic", or a data file. DataError for a file that cannot be read."""
    samples, origin = _samples(chosen, judged, metadata, columns)
    items = [Item(row=number, sample=sample) for number, sample in enumerate(samples)]
    runner = open_artifact(artifact, host_probe.cores())
    try:
        preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
        found = predict(runner, preprocessor, dict(metadata.pipeline), items)
    finally:
        runner.close()
    return measure_golden(metadata, artifact, list(zip(samples, found, strict=True)), precision, origin)


def _samples(
    chosen: str, judged: Sequence[Any], metadata: CheckpointMetadata, columns: Mapping[str, str] | None
) -> tuple[list[Any], str]:
    if chosen == "none":
        return [], "none"
    if chosen == "synthetic":
        return [plain_example(metadata.pipeline, text) for text in BENCH_TEXTS], "made-up inputs"
    if chosen == "data":
        first = list(judged[:GOLDEN_ITEMS])
        return first, f"{len(first)} inputs of the data that was given"
    kind = find_task(metadata.task)
    splits = load_data(chosen, kind, metadata, columns=columns).splits.values()
    rows = [row for rows in splits for row in rows]
    found = [item.sample for item in kind.items(rows, metadata)][:GOLDEN_ITEMS]
    return found, f"{len(found)} inputs of the file that was named for it"
