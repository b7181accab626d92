"""What runs on a node: it opens the same job in a folder of its own, makes one stage by the run's own code, and shares it.

A process serves many tasks and opens a job once. Nothing comes back but how it went: what was made is in the store.
"""

from __future__ import annotations

import atexit
import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import FmoptError
from fmopt.core.model import Artifact
from fmopt.core.plugins import ROOT
from fmopt.core.progress import Silent
from fmopt.core.results import Footprint
from fmopt.core.stages.shared import SharedStages
from fmopt.core.stages.store import Store, scratch_beside
from fmopt.edge.host import cache_folder
from fmopt.measurement import host_probe
from fmopt.measurement.backends import HostBackend, Timed, Work
from fmopt.workflow.job.start import start
from fmopt.workflow.search.builder import tool_versions
from fmopt.workflow.search.executor import Build, LocalExecutor, Predict, Task
from fmopt.workflow.search.run import SCORING, Job, Run
from fmopt.workflow.search.scoring import predictions

_RUNS: dict[str, Run] = {}  # of this process, by order
_OPEN = ExitStack()
atexit.register(_OPEN.close)


@dataclass(frozen=True)
class StageRef:
    """A finished stage in the store: its name, and the sha256 of what it depends on."""

    name: str
    key_sha256: str


@dataclass(frozen=True)
class JobSpec:
    """A job as it travels: the checkpoint is a stage of the store, clock and executor are the node's own."""

    name: str  # another one for every run
    job: Job
    url: str  # of the store
    checkpoint: StageRef
    deadline: float | None  # of training; time.time(), which nodes agree on well enough for a time limit


@dataclass(frozen=True)
class ArtifactRef:
    """An artifact as it travels: a file of a stage, or the checkpoint itself where there is none."""

    runtime: str
    stage: StageRef | None
    file: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a task went, and where."""

    node: str
    error: FmoptError | None = None
    value: Any = None


def describe() -> dict[str, Any]:
    """What this node is, for the one who chooses among them."""
    return {
        "host": host_probe.host_fingerprint(),
        "gpus": gpus(),
        "versions": {**tool_versions(), "fmopt files": own_digest()},
        "machine": machine(),
    }


def own_digest() -> str:
    """sha256 over fmopt's own code: nodes of one version number may still have other code."""
    total = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def machine() -> str:
    """The same for nodes on one machine, another one otherwise: the boot that it runs since."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import platform

        return platform.node()


def gpus() -> list[str]:
    """Names of the GPUs that torch sees."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def work(order: JobSpec, task: Task) -> Outcome:
    """Make what a task asks for, in the store that all share."""
    try:
        run = opened(order)
        match task:
            case Build(recipe):
                artifact(run, task.recipe)
            case Predict(recipe, split, most, batch, length):
                run.recipes[recipe.name] = recipe
                run.artifacts[recipe.name] = artifact(run, recipe)
                predictions(run, recipe.name, split, most=most, batch=batch, length=length)
    except FmoptError as error:
        return Outcome(node_id(), error)
    return Outcome(node_id())


def time_in_turn(order: JobSpec, asked: Work) -> Outcome:
    """The clock's work on this node; the reader of samples is the checkpoint's own."""
    try:
        run = opened(order)
        artifacts = {name: received(run, order, sent) for name, sent in asked.artifacts.items()}  # type: ignore[arg-type]
        timed: Timed = HostBackend().in_turn(
            replace(asked, artifacts=artifacts, preprocessor=run.builder.preprocessor), Silent()
        )
        return Outcome(node_id(), value=timed)
    except FmoptError as error:
        return Outcome(node_id(), error)


def footprint(order: JobSpec, sent: ArtifactRef, inputs: dict[str, np.ndarray], threads: int) -> Outcome:
    """Peak memory and load time of an artifact here."""
    try:
        found: Footprint = HostBackend().footprint(received(opened(order), order, sent), inputs, threads)
        return Outcome(node_id(), value=found)
    except FmoptError as error:
        return Outcome(node_id(), error)


def artifact(run: Run, recipe: Any) -> Artifact:
    """A recipe's artifact, and what the run asks of its network besides."""
    made = run.builder.artifact(recipe)
    if recipe.runtime != "torch":
        run.builder.parity(recipe.steps, recipe)
        run.builder.layer_metadata(recipe.steps, recipe)
    return made


def received(run: Run, order: JobSpec, sent: ArtifactRef) -> Artifact:
    """An artifact that was sent, here."""
    if sent.stage is None:
        return Artifact(sent.runtime, run.job.metadata.folder, sent.options)
    return Artifact(sent.runtime, run.store.bring(sent.stage.name, sent.stage.key_sha256) / sent.file, sent.options)


def opened(order: JobSpec) -> Run:
    """The job of an order, opened in this process in a folder that ends with it."""
    if order.name not in _RUNS:
        folder = _OPEN.enter_context(scratch_beside(cache_folder() / "cluster" / "node"))
        given = Store(folder / "given", shared=SharedStages(order.url))
        job = order.job
        source = replace(job.metadata.source, folder=given.bring(order.checkpoint.name, order.checkpoint.key_sha256))
        left = None if order.deadline is None else max(order.deadline - time.time(), 0.0) / SCORING
        changes = {"out": folder, "stages": folder / "stages", "store": order.url, "time_limit_s": left}
        _RUNS[order.name] = start(
            replace(
                job,
                metadata=replace(job.metadata, source=source),
                request=job.request.model_copy(update=changes),
                clock=HostBackend(),
                executor=LocalExecutor(),
                begun=time.monotonic(),
            ),
            Silent(),
        )
    return _RUNS[order.name]


def node_id() -> str:
    """Ray's name of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
