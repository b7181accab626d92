"""Candidates built and scored as Ray tasks on the nodes that are the target; Ray itself tries one again whose worker died."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fmopt.core.errors import ClusterError, FmoptError, PassError, StoreError
from fmopt.core.model import Artifact, file_digest
from fmopt.core.stages.store import KEY, link_or_copy
from fmopt.measurement.backends import HostBackend
from fmopt.workflow.cluster import node
from fmopt.workflow.cluster.lease import Node, leased
from fmopt.workflow.cluster.node import ArtifactRef, JobSpec, Outcome, StageRef
from fmopt.workflow.cluster.ray_output import without_ray_output
from fmopt.workflow.search.executor import Build, LocalExecutor, Task
from fmopt.workflow.search.network_timer import priced
from fmopt.workflow.search.run import Run

RETRIES = 3  # of a task whose worker or node died
POLL_S = 15.0  # between two looks whether nodes are still there
LOST = "the cluster is gone ({}); run the same command again when it is back: finished stages are kept"


class RayExecutor:
    """Hands tasks to the nodes that fit; what was handed over is awaited when the run comes to it."""

    def __init__(self, nodes: tuple[Node, ...], url: str) -> None:
        self.nodes, self.store = nodes, url
        self.full: set[str] = set()  # nodes whose disk is
        self._run: Run | None = None
        self._order: Any = None
        self._pending: dict[str, Any] = {}
        self._open = ExitStack()

    @property
    def host(self) -> dict[str, Any]:
        """Of the nodes, which are all of one kind."""
        return self.nodes[0].host

    def begin(self, run: Run) -> None:
        """The job travels once; its checkpoint by the store."""
        import ray

        self._run = run
        self._open.enter_context(without_ray_output(self.say))
        checkpoint = run.store.folder("given", {"checkpoint": run.job.metadata.digest}, self._copy_checkpoint)
        job = replace(run.job, clock=HostBackend(), executor=LocalExecutor())
        left = None if run.builder.deadline is None else time.time() + run.builder.deadline - time.monotonic()
        stage = StageRef(checkpoint.name, file_digest(checkpoint / KEY))
        self._order = ray.put(JobSpec(secrets.token_hex(8), job, self.store, stage, left))

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Hand them over; Ray begins as many as there are CPUs for, in this order."""
        for task in tasks:
            if repr(task) not in self._pending and not timed_while_built(task):
                self._pending[repr(task)] = self._submit(task)

    def finish(self, task: Task) -> None:
        """Wait for one; what times networks while it is built has a machine for itself.

        A node whose disk is full is not asked again; StoreError when all of them are.
        """
        if timed_while_built(task):
            self.alone(node.work, task)
            return
        self.ahead([task])
        while True:
            outcome = self._outcome(task)
            if outcome.error is None:
                return
            if not isinstance(outcome.error, StoreError):
                raise outcome.error
            self.full.add(outcome.node)
            if not self.usable():
                raise outcome.error
            self.say(f"a node is left out from here on: {outcome.error}")
            self._pending[repr(task)] = self._submit(task)

    def close(self) -> None:
        """What nobody waits for any more is given up."""
        import ray

        ray.shutdown()
        self._open.close()

    def usable(self) -> list[Node]:
        """Nodes that are alive and have room. ClusterError when none is."""
        import ray

        try:
            alive = {one["NodeID"] for one in ray.nodes() if one["Alive"]}
        except Exception as error:
            raise ClusterError(LOST.format(type(error).__name__)) from error
        there = [one for one in self.nodes if one.id in alive]
        if not there:
            raise ClusterError(LOST.format("none of its nodes that fit the target is left"))
        return [one for one in there if one.id not in self.full]

    def sent(self, artifact: Artifact) -> ArtifactRef:
        """An artifact of the run as it travels."""
        assert self._run is not None
        root = self._run.store.root
        options = dict(artifact.options)
        if not artifact.path.is_relative_to(root):
            return ArtifactRef(artifact.runtime, None, "", options)
        stage, *inside = artifact.path.relative_to(root).parts
        return ArtifactRef(
            artifact.runtime, StageRef(stage, file_digest(root / stage / KEY)), "/".join(inside), options
        )

    def alone(self, what: Callable[..., Outcome], *arguments: Any) -> Any:
        """What a function of `node` gives on a machine of which all CPUs are leased, those of every node on it, so that nothing
        else of this cluster runs beside it. Another machine is taken where one is lost; ClusterError after `RETRIES`."""
        for _ in range(RETRIES + 1):
            with leased(self.usable(), self.usable, POLL_S) as call:
                outcome = call(what, self._order, *arguments)
            if outcome is None:
                self.say("a node was lost while it was timing; another one begins anew")
                continue
            if outcome.error is not None:
                raise outcome.error
            return outcome.value
        raise ClusterError(LOST.format(f"{RETRIES + 1} nodes were lost while timing"))

    def say(self, text: str) -> None:
        """One line to the one who waits."""
        assert self._run is not None
        self._run.progress.say(text)

    def _submit(self, task: Task) -> Any:
        import ray

        ids = ",".join(one.id for one in self.usable())
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(node.work)
        return remote.options(label_selector={"ray.io/node-id": f"in({ids})"}).remote(self._order, task)

    def _outcome(self, task: Task) -> Outcome:
        import ray

        while True:
            try:
                found: Outcome = ray.get(self._pending[repr(task)], timeout=POLL_S)
                return found
            except ray.exceptions.GetTimeoutError:
                self.usable()  # a task for nodes that are gone would wait for ever
            except FmoptError:
                raise
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise PassError(f"{task.recipe.name}: its worker died {RETRIES + 1} times ({_first(error)})") from error
            except ray.exceptions.RayTaskError as error:  # as it would have been raised here
                raise error.cause from error
            except Exception as error:
                raise ClusterError(LOST.format(_first(error))) from error

    def _copy_checkpoint(self, folder: Any) -> None:
        assert self._run is not None
        source = self._run.job.metadata.folder
        for path in sorted(source.rglob("*")):
            if path.is_file():
                link_or_copy(path, folder / path.relative_to(source))


def timed_while_built(task: Task) -> bool:
    """Whether a pass of its recipe decides by timing networks."""
    return isinstance(task, Build) and any(map(priced, task.recipe.steps))


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
