"""Metrics of a model or bundle on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import MetricValue
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.evaluation.bootstrap import of_items
from fmopt.evaluation.predictions import predict
from fmopt.exporters.bundles import bundle as bundles
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import find_task
from fmopt.workflow.deployed import open_artifact
from fmopt.workflow.job.given import data_path, model_path, tokenizer_folder
from fmopt.workflow.job.label_names import with_labels

if TYPE_CHECKING:
    from fmopt.workflow.job.given import Data, Model


def evaluate(
    model: Model,
    data: Data | None = None,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, MetricValue]:
    """Metrics of a model or bundle on a split of labelled data, by name, the one that judges first.

    Arguments:
        model: a bundle's or a checkpoint's folder, an ONNX file, a known name, a hub name, or a live `torch.nn.Module` of
            transformers.
        data: a file, a folder, a hub name, a `datasets.Dataset` or `DatasetDict`, or a list of dicts; None takes the data of a
            known model.
        tokenizer, processor: what reads the samples of a live network; of an ONNX file the folder of its tokenizer.
        task: what the model is for, where its files do not show it.
        columns: the data's column for each role, such as {"text": "review"}.
        split: which rows are scored; of data without splits a share is "test".
        batch: items at once.
        seed: decides what is cut from what in data without splits, and the bootstrap's draws.

    Returns a `MetricValue` for each metric: `point`, and the two-sided 95 % interval from `low` to `high` for other items of the
    same kind, in units of the metric (0.01 is one point), and how many `items` were scored.

    Raises DataError for data that cannot be used or has no labels, CheckpointError or BundleError for a model that cannot.

    >>> scores = fmopt.evaluate(checkpoint, rows)
    >>> 0 <= scores["accuracy"].low <= scores["accuracy"].point <= scores["accuracy"].high <= 1
    True
    """
    data = data_path(data)
    beside = tokenizer_folder(model, tokenizer)
    model = model_path(model, tokenizer, processor)
    folder = Path(model)
    if bundles.is_bundle(folder):
        metadata, artifact = bundles.bundle_metadata(folder), bundles.bundle_artifact(folder)
        default = None
    else:
        source = resolve(str(model), tokenizer=beside)
        metadata, artifact = checkpoint.inspect(source, task or source.task), None
        default = source.default_data
    kind = find_task(metadata.task)
    spec = str(data) if data else default
    if spec is None:
        raise DataError("nothing to evaluate on: give --data")
    dataset = load_data(spec, kind, metadata, columns=columns, seed=seed)
    with ExitStack() as stack:
        if artifact is None:
            metadata = with_labels(metadata, dataset)
            artifact = _as_it_is(metadata, stack)
        items = kind.items(dataset.split(split), metadata)
        runner = stack.enter_context(closing(open_artifact(artifact, host_probe.cores())))
        progress = progress or Silent()
        progress.start(f"evaluating on {split}", len(items))
        got = predict(
            runner,
            open_preprocessor(metadata.folder, dict(metadata.pipeline)),
            dict(metadata.pipeline),
            items,
            batch=batch,
            progress=progress.step,
        )
    scores = [score for score in kind.scores(got, items, None, metadata) if not score.against_baseline]
    if not scores:
        raise DataError(
            f"{spec} has no labels for {metadata.task}; only a comparison with a baseline could be made: see `fmopt optimize`"
        )
    found = {}
    for score in sorted(scores, key=lambda one: not one.primary):
        interval = of_items(score, seed=seed)
        found[score.name] = MetricValue(**interval.model_dump(), items=len(score.values), primary=score.primary)
    return found


def _as_it_is(metadata: CheckpointMetadata, stack: ExitStack) -> Artifact:
    """A model without any pass: the network in PyTorch, or the ONNX graph that it came as, in a folder that ends with `stack`."""
    if metadata.graph is None:
        made: Artifact = plugins.find("runtimes", "torch").build(metadata, {"dtype": "fp32"}, metadata.folder)
        return made
    from fmopt.exporters.received_onnx import import_onnx

    return Artifact("onnxruntime", import_onnx(metadata, Path(stack.enter_context(TemporaryDirectory()))).path)
