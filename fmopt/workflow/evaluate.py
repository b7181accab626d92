"""Metrics of a model or bundle on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import Scores
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.predictions import predict
from fmopt.exporters import bundle as bundles
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.workflow.deployed import open_artifact
from fmopt.workflow.label_names import with_labels

if TYPE_CHECKING:
    pass


def evaluate(
    model: str | Path,
    data: str | Path | None,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[Scores, float]]:
    """Metrics of a model or bundle on a split of labelled data; each with its value."""
    folder = Path(model)
    if bundles.is_bundle(folder):
        metadata, artifact = bundles.bundle_metadata(folder), bundles.bundle_artifact(folder)
        default = None
    else:
        source = resolve(str(model))
        metadata, artifact = checkpoint.inspect(source, task or source.task), None
        default = source.default_data
    kind = plugins.find("tasks", metadata.task)
    spec = str(data) if data else default
    if spec is None:
        raise DataError("nothing to evaluate on: give --data")
    dataset = load_data(spec, kind, metadata, columns=columns, seed=seed)
    if artifact is None:
        metadata = with_labels(metadata, dataset)
        artifact = plugins.find("runtimes", "torch").build(metadata, {"dtype": "fp32"}, metadata.folder)
    items = kind.items(dataset.split(split), metadata)
    runner = open_artifact(artifact, host_probe.cores())
    progress = progress or Silent()
    progress.start(f"evaluating on {split}", len(items))
    try:
        got = predict(
            runner,
            open_preprocessor(metadata.folder, dict(metadata.pipeline)),
            dict(metadata.pipeline),
            items,
            batch=batch,
            progress=progress.step,
        )
    finally:
        runner.close()
    scores = [score for score in kind.scores(got, items, None, metadata) if not score.against_baseline]
    if not scores:
        raise DataError(
            f"{spec} has no labels for {metadata.task}; only a comparison with a baseline could be made: see `fmopt optimize`"
        )
    return [(score, float(METRICS[score.metric].of(score.array()))) for score in scores]
