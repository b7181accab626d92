"""ExecuTorch: programs for phones and boards with XNNPACK's kernels, run here by its own runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import PassError, UnmeasuredError
from fmopt.core.model import Artifact, CheckpointMetadata, Graph, Runner
from fmopt.core.results import OpTime
from fmopt.core.target import Target
from fmopt.edge.executorch import ExecuTorchRunner
from fmopt.runtimes.base import copy_model, unfit

OPTIONS = ("quantize",)


class ExecuTorch:
    """Runs .pte programs; option `quantize` "int8" rounds weights and activations of every Linear."""

    name = "executorch"
    format = "executorch"
    opening: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """None when the package is installed."""
        return None if find_spec("executorch") else "executorch is not installed: pip install executorch torchao"

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime or option the target does not have."""
        if reason := unfit(self.name, OPTIONS, target, options):
            return reason
        if options.get("quantize", "int8") != "int8":
            return f"{self.name} has no quantize {options['quantize']!r}; it has int8"
        return None

    def build(self, source: Graph | CheckpointMetadata, options: Mapping[str, Any], out: Path) -> Artifact:
        """The program in `out`, with the names of what it takes and gives."""
        if not isinstance(source, Graph) or source.format != self.format:
            raise PassError(f"{self.name} builds from a network that was exported for it")
        names = {"inputs": list(source.inputs), "outputs": list(source.outputs)}
        return Artifact(self.name, copy_model(source.path, out), {**options, **names})

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The runner that bundles use."""
        return ExecuTorchRunner(artifact.path, artifact.options, threads)

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """UnmeasuredError: the runtime in its Python package was built without a profiler."""
        raise UnmeasuredError(
            "ExecuTorch's Python package was built without its profiler; its operators cannot be timed"
        )


RUNTIME = ExecuTorch()
