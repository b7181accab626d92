"""From a job that is looked up and checked to a run under way: here, and on every node that works for it."""

from __future__ import annotations

from fmopt.core.model import CheckpointMetadata
from fmopt.core.progress import Progress
from fmopt.core.stages.shared import SharedStages
from fmopt.core.stages.store import Store
from fmopt.edge.text import open_preprocessor
from fmopt.measurement import latency
from fmopt.models.graphs.metadata import origin_of
from fmopt.workflow.job.request import Effort
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.run import SCORING, Job, Run

CALIBRATION_ITEMS = {"quick": 300, "standard": 1024, "max": 1024}  # second-order scores want more than ranges do
# Of more parameters than these, whose items take the time of several of others, fewer are enough for ranges: SmoothQuant's
# authors take 512, GPTQ's 128 (both 2022).
LARGE, OF_LARGE = 60e6, 128


def calibration_items(effort: Effort, metadata: CheckpointMetadata) -> int:
    """How many items a network is calibrated on at most."""
    return OF_LARGE if effort == "quick" and metadata.parameters > LARGE else CALIBRATION_ITEMS[effort]


def start(job: Job, progress: Progress) -> Run:
    """Open the store and gather what all candidates share."""
    request = job.request
    shared = None if request.store is None else SharedStages(request.store, progress.say)
    items = job.task.items(job.data.split("calibration"), job.metadata)[
        : calibration_items(request.effort, job.metadata)
    ]
    limit = request.time_limit_s
    deadline = None if limit is None else job.begun + SCORING * limit
    builder = Builder(
        metadata=job.metadata,
        target=job.target,
        store=Store(request.stages_folder, progress.say, shared),
        preprocessor=open_preprocessor(job.metadata.folder, dict(job.metadata.pipeline)),
        calibration=[item.sample for item in items],
        calibration_digest=f"{job.data.digest}:{len(items)}",
        seed=request.seed,
        memory_cap_bytes=request.max_calibration_memory,
        progress=progress,
        train=job.data.splits.get("train", ()),
        workload=request.workload,
        deadline=deadline,
    )
    run = Run(job, builder, progress)
    if job.clock.note:
        run.warnings.append(job.clock.note)
    if job.metadata.graph is not None:
        run.warnings.append(f"{job.metadata.source.title} came as an ONNX graph: {origin_of(job.metadata.graph)}")
    if uncovered := longer_than_compiled(job, builder):
        run.warnings.append(uncovered)
    if "tensorrt" in job.target.runtimes and not job.target.present:
        run.warnings.append(
            f"{job.target.title} is not here: accuracy is that of the graphs that TensorRT builds from, computed by ONNX "
            "Runtime and rounded after every operator in half precision; no engine was built, and no speed measured"
        )
    return run


def longer_than_compiled(job: Job, builder: Builder) -> str:
    """A line where items are longer than every length that a recipe compiles for; else empty."""
    listed = [recipe.options["buckets"] for recipe in job.plan.candidates if recipe.options.get("buckets")]
    if not listed:
        return ""
    longest = min(max(buckets) for buckets in listed)
    sizes = latency.item_sizes(builder.preprocessor, builder.calibration)
    longer = sum(size > longest for size in sizes)
    return (
        f"{longer} of {len(sizes)} calibration items are longer than the {longest} tokens that OpenVINO is compiled for; such "
        "items run on dynamic shapes, which takes longer"
        if longer
        else ""
    )
