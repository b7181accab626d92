"""Everything is looked up, and what can be refused is refused, before any weight is touched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmopt.core import length_buckets
from fmopt.core.errors import ConfigError, PlanError
from fmopt.core.model import (
    CheckpointMetadata,
    generates,
    makes_answers,
    reads_texts_at_once,
    static_shape,
    takes_length,
)
from fmopt.core.recipe import checked, read_recipe
from fmopt.core.target import Target
from fmopt.core.workload import Workload
from fmopt.data.datasets import load_data
from fmopt.edge.parts import Sample
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import browser_files
from fmopt.exporters.to_onnx import check_positions
from fmopt.measurement import host_probe, latency
from fmopt.measurement.backends import HostBackend, TimingBackend
from fmopt.measurement.remote.backend import board_target
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import find_task
from fmopt.workflow.job.estimates import amounts, estimate
from fmopt.workflow.job.label_names import with_labels
from fmopt.workflow.job.request import Request, Training
from fmopt.workflow.search.executor import Executor, LocalExecutor
from fmopt.workflow.search.plan import make_plan
from fmopt.workflow.search.run import Job

HISTOGRAM_ITEMS = 1024  # whose lengths say for which ones to compile


def prepare(request: Request) -> Job:
    """Look everything up and refuse what can be refused, before any weight is touched."""
    begun = time.monotonic()
    source = resolve(request.model, tokenizer=request.tokenizer, dequantize=request.dequantize)
    metadata = checkpoint.inspect(source, request.task or source.task, allow_pickle=request.allow_pickle)
    check_positions(metadata)
    request = request.model_copy(update={"workload": fitting(request.workload, metadata)})
    task = find_task(metadata.task)
    spec = request.data or source.default_data
    if spec is None:
        raise PlanError(
            f"{source.title} has no default data; give some with --data (texts of your application, labels if you "
            "have them): calibration and judgement on made-up text would mean nothing"
        )
    target, clock, executor = device(request, metadata)
    request = request.model_copy(update={"store": request.store or executor.store})
    if target.kind == "browser":
        browser_files.check(metadata.pipeline)
    data = load_data(spec, task, metadata, columns=request.columns, seed=request.seed)
    metadata = with_labels(metadata, data)
    recipe = (
        read_recipe(request.recipe) if isinstance(request.recipe, Path) else request.recipe and checked(request.recipe)
    )
    workload = request.workload
    shape = static_shape(metadata.pipeline, workload.items_per_call, workload.length)
    check_training(request, metadata)
    texts = len(data.splits.get("train", ())) + (request.training.unlabelled is not None)
    calibration = [item.sample for item in task.items(data.split("calibration"), metadata)[:HISTOGRAM_ITEMS]]
    buckets = {} if shape is not None else length_options(workload, metadata, calibration, request.seed)
    plan = make_plan(metadata, target, effort=request.effort, recipe=recipe, shape=shape, buckets=buckets, texts=texts)
    estimates = estimate(
        metadata, plan, request.effort, amounts(metadata, task, data, request.effort), host_probe.load_target("host"),
        texts=texts, training=request.training,
    )  # fmt: skip
    plan = plan.model_copy(update={"estimates": estimates})
    return Job(request, metadata, task, target, data, plan, clock, executor, begun)


def fitting(workload: Workload, metadata: CheckpointMetadata) -> Workload:
    """The workload as the task can have it. ConfigError for one that it cannot.

    Items without tokens are timed as they are. Of answers that are made token by token, whose number depends on the weights, it
    is the model's own work that is timed: a step of decoding, or an answer as long as its text.
    """
    title, pipeline = metadata.source.title, metadata.pipeline
    stepwise = generates(pipeline) or makes_answers(pipeline)
    if workload.arrival != "single" and stepwise:
        raise ConfigError(
            f"--workload {workload.arrival} is for models that answer at once; {title} makes its answers token by token: "
            "leave it out, and give --batch for several at once"
        )
    if not takes_length(pipeline):
        if workload.also_length is not None:
            raise ConfigError(
                f"--also-length {workload.also_length} means tokens, and {title} takes none; leave it out"
            )
        from_raw = (workload.from_raw or not workload.own_items) and not stepwise
        return workload.model_copy(update={"length": None, "from_raw": from_raw})
    for name, length in (("length", workload.length), ("also-length", workload.also_length)):
        if length is not None and length > pipeline["max_length"]:
            raise ConfigError(f"--{name} {length} is more than the {pipeline['max_length']} tokens that {title} takes")
    return workload.model_copy(update={"from_raw": False}) if stepwise else workload


def length_options(
    workload: Workload, metadata: CheckpointMetadata, samples: Sequence[Sample], seed: int
) -> dict[str, Any]:
    """Options of runtimes that compile for lengths, from those of calibration items; none where padding could change answers
    or items are no plain texts."""
    pipeline = metadata.pipeline
    padding = pipeline.get("padding") or {}
    if not reads_texts_at_once(pipeline) or padding.get("side", "right") != "right" or pipeline.get("no_padding"):
        return {}
    preprocessor = open_preprocessor(metadata.folder, dict(pipeline))
    rows = workload.items_per_call
    if rows == 1:
        lengths = latency.item_sizes(preprocessor, samples)
    else:
        lengths = [
            int(preprocessor.encode(group).mask.shape[1])
            for group in latency.replayed(preprocessor, samples, rows, seed)
        ]
    found = length_buckets.choose(lengths, length_buckets.most_buckets(metadata.weight_bytes))
    pad = {"input_ids": int(padding.get("id", 0)), "token_type_ids": int(padding.get("type_id", 0))}
    return {"buckets": found, "rows": rows, "pad": {name: pad[name] for name in pipeline["inputs"] if name in pad}}


def device(request: Request, metadata: CheckpointMetadata) -> tuple[Target, TimingBackend, Executor]:
    """What is optimized for, the clock that stands there (on a board or a cluster where one is named, else here), and where
    candidates are built and scored."""
    if request.clean and request.on is None:
        raise ConfigError("--clean goes with --on; add it, or leave --clean out")
    if request.cluster is not None and metadata.graph is not None:
        raise ConfigError(
            f"--cluster sends checkpoints to its nodes, and {metadata.source.title} is an ONNX graph; leave it out"
        )
    if request.cluster is not None:
        from fmopt.workflow.cluster.connect import cluster_target  # Ray: only for those who ask for it

        if request.on is not None:
            raise ConfigError("--cluster and --on both say where candidates are timed; leave one out")
        return cluster_target(request.cluster, request.target, request.store, request.stages_folder)
    if request.on is None:
        return host_probe.load_target(request.target), HostBackend(), LocalExecutor()
    return *board_target(request.on, request.target, metadata, clean=request.clean), LocalExecutor()


def check_training(request: Request, metadata: CheckpointMetadata) -> None:
    """ConfigError or CheckpointError for what training is asked to use and cannot."""
    training = request.training
    if training != Training() and request.effort != "max":
        raise ConfigError("teacher, unlabelled and epochs are for training, which only --effort max does")
    if training.unlabelled is not None and not Path(training.unlabelled).is_file():
        raise ConfigError(f"there is no file {training.unlabelled}; --unlabelled takes one with a text on each line")
    if training.teacher is not None:
        checkpoint.inspect(resolve(training.teacher), metadata.task)
