"""Everything is looked up, and what can be refused is refused, before any weight is touched."""

from __future__ import annotations

import time
from pathlib import Path

from fmopt.core.errors import ConfigError, PlanError
from fmopt.core.model import CheckpointMetadata, static_shape, takes_length
from fmopt.core.progress import Progress
from fmopt.core.recipe import read_recipe
from fmopt.core.store import Store
from fmopt.core.target import Target
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import browser_files
from fmopt.measurement import host_probe
from fmopt.measurement.backends import HostBackend, TimingBackend
from fmopt.measurement.remote.backend import board_target
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import find_task
from fmopt.workflow.label_names import with_labels
from fmopt.workflow.request import Request, Training
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.plan import make_plan
from fmopt.workflow.search.run import Job, Run

CALIBRATION_ITEMS = {"quick": 300, "standard": 1024, "max": 1024}  # second-order scores want more than ranges do


def prepare(request: Request) -> Job:
    """Look everything up and refuse what can be refused, before any weight is touched."""
    source = resolve(request.model)
    metadata = checkpoint.inspect(source, request.task or source.task, allow_pickle=request.allow_pickle)
    if not takes_length(metadata.pipeline):
        request = request.model_copy(update={"length": None})
    if request.length is not None and request.length > metadata.pipeline["max_length"]:
        raise ConfigError(
            f"--length {request.length} is more than the {metadata.pipeline['max_length']} tokens that "
            f"{source.title} takes"
        )
    task = find_task(metadata.task)
    spec = request.data or source.default_data
    if spec is None:
        raise PlanError(
            f"{source.title} has no default data; give some with --data (texts of your application, labels if you "
            "have them): calibration and judgement on made-up text would mean nothing"
        )
    target, clock = device(request, metadata)
    if target.kind == "browser":
        browser_files.check(metadata.pipeline)
    data = load_data(spec, task, metadata, columns=request.columns, seed=request.seed)
    metadata = with_labels(metadata, data)
    recipe = read_recipe(request.recipe) if request.recipe else None
    shape = static_shape(metadata.pipeline, request.batch, request.length)
    check_training(request, metadata)
    texts = len(data.splits.get("train", ())) + (request.training.unlabelled is not None)
    plan = make_plan(
        metadata, target, effort=request.effort, recipe=recipe, shape=shape, texts=texts, training=request.training
    )
    return Job(request, metadata, task, target, data, plan, clock)


def device(request: Request, metadata: CheckpointMetadata) -> tuple[Target, TimingBackend]:
    """What is optimized for, and the clock that stands there: on a board where one is named, else here."""
    if request.on is None:
        if request.clean:
            raise ConfigError("--clean goes with --on; add it, or leave --clean out")
        return host_probe.load_target(request.target), HostBackend()
    return board_target(request.on, request.target, metadata, clean=request.clean)


def check_training(request: Request, metadata: CheckpointMetadata) -> None:
    """ConfigError or CheckpointError for what training is told to use and cannot."""
    training = request.training
    if training != Training() and request.effort != "max":
        raise ConfigError("teacher, unlabelled and epochs are for training, which only --effort max does")
    if training.unlabelled is not None and not Path(training.unlabelled).is_file():
        raise ConfigError(f"there is no file {training.unlabelled}; --unlabelled takes one with a text on each line")
    if training.teacher is not None:
        checkpoint.inspect(resolve(training.teacher), metadata.task)


def start(job: Job, progress: Progress) -> Run:
    """Open the store and gather what all candidates share."""
    request = job.request
    items = job.task.items(job.data.split("calibration"), job.metadata)[: CALIBRATION_ITEMS[request.effort]]
    limit = request.time_limit_s
    deadline = None if limit is None else time.monotonic() + limit
    builder = Builder(
        metadata=job.metadata,
        target=job.target,
        store=Store(request.stages_folder, progress.say),
        preprocessor=open_preprocessor(job.metadata.folder, dict(job.metadata.pipeline)),
        calibration=[item.sample for item in items],
        calibration_digest=f"{job.data.digest}:{len(items)}",
        seed=request.seed,
        memory_cap_bytes=request.max_calibration_memory,
        progress=progress,
        train=job.data.splits.get("train", ()),
        batch=request.batch,
        length=request.length,
        threads=request.threads,
        deadline=deadline,
    )
    run = Run(job, builder, progress, deadline)
    if job.clock.note:
        run.warnings.append(job.clock.note)
    if "tensorrt" in job.target.runtimes and not job.target.present:
        run.warnings.append(
            f"{job.target.title} is not here: accuracy is that of the graphs that TensorRT builds from, computed by ONNX "
            "Runtime and rounded after every operator in half precision; no engine was built, and no speed measured"
        )
    return run
