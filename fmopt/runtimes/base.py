"""What a runtime is: it builds an artifact for a target, opens it the way production does, and reads its profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fmopt.core.model import Artifact, CheckpointMetadata, Format, Graph, Runner, model_files
from fmopt.core.plugins import did_you_mean
from fmopt.core.results import Frozen, OpTime
from fmopt.core.stages.store import link_or_copy
from fmopt.core.target import Target
from fmopt.edge.runners import DECODER_INPUT, ENCODER_DECODER


class Runtime(Protocol):
    """A way to run artifacts."""

    name: str
    format: Format  # the state of the model it builds from
    opening: tuple[str, ...]  # options that say how an artifact is opened and change nothing in its files

    def missing(self) -> str | None:
        """Why it cannot run here (package absent, no such device), with the way out; None when it can."""

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """Why these options cannot be used on this target (a precision the device lacks); None when they can."""

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """Files in `out` that `open` opens."""

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """Open as deployed."""

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Median milliseconds per operator over several runs, from the runtime's own profiler."""


class Here(Frozen):
    """What a runtime can do on this machine, each "yes", "no: REASON", or what is done in its place."""

    built: str = "yes"
    judged: str = "yes"
    timed: str = "yes"


def on_this_machine(runtime: Runtime) -> Here:
    """By what is missing; a runtime that can do one thing without the others says so itself, in a method `here`."""
    said: Here | None = runtime.here() if hasattr(runtime, "here") else None
    reason = runtime.missing()
    if reason is not None:
        return Here(built=f"no: {reason}", judged=f"no: {reason}", timed=f"no: {reason}")
    return said or Here()


def unfit(name: str, known: Sequence[str], target: Target, options: Mapping[str, Any]) -> str | None:
    """Why a runtime with these options cannot be on a target at all: it is not there, or an option is none of those `known`."""
    if name not in target.runtimes:
        return f"{target.name} has no runtime {name!r}; it has {', '.join(target.runtimes)}"
    unknown = next((option for option in options if option not in known), None)
    return f"{name} has no option {unknown!r}{did_you_mean(unknown, known)}" if unknown else None


def opening_options(graph: Graph) -> dict[str, Any]:
    """Options that a graph of two parts needs, to be opened one by one; none for others."""
    return {ENCODER_DECODER: True} if DECODER_INPUT in graph.inputs else {}


def copy_model(path: Path, out: Path) -> Path:
    """The files of model.onnx or model.xml, with the weights beside it, in `out`, unless they are there already: links to the
    same bytes where the file system has them, else copies; its new path."""
    out.mkdir(parents=True, exist_ok=True)
    for file in model_files(path):
        if not (out / file.name).exists():
            link_or_copy(file, out / file.name)
    return out / path.name
