"""A clock that stands on the nodes of a cluster: reference and candidates in turn on one node, which nothing else works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmopt.core.model import Artifact
from fmopt.core.progress import Progress
from fmopt.core.results import Footprint
from fmopt.measurement import host_probe
from fmopt.measurement.backends import Timed, Work
from fmopt.workflow.cluster import node
from fmopt.workflow.cluster.executor import RayExecutor


@dataclass(frozen=True)
class ClusterBackend:
    """Times on whichever node of the target's kind can be had alone."""

    executor: RayExecutor

    @property
    def host(self) -> dict[str, Any]:
        """What the nodes are, all of one kind."""
        return self.executor.host

    @property
    def versions(self) -> dict[str, str]:
        """Installed there, as here: other ones are refused."""
        return host_probe.versions()

    note = ""

    def offer(self, name: str, work: Callable[[], Work]) -> None:
        """Nothing: timing beside building would spoil it."""

    def in_turn(self, work: Work, progress: Progress) -> Timed:
        """All variants on the same input in the same round, in one process of one node."""
        progress.start(f"timing {len(work.artifacts)} variants in turn on a node of the cluster", 1)
        sent: Any = {name: self.executor.sent(artifact) for name, artifact in work.artifacts.items()}
        timed: Timed = self.executor.alone(node.time_in_turn, replace(work, artifacts=sent, preprocessor=None))
        progress.step()
        return timed

    def footprint(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Footprint:
        """Of a process there."""
        found: Footprint = self.executor.alone(node.footprint, self.executor.sent(artifact), dict(inputs), threads)
        return found

    def close(self) -> None:
        """The executor leaves the cluster."""
