"""A machine of the cluster for oneself: a placement group over all CPUs of all nodes on it, given back when the block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fmopt.workflow.cluster.node import Outcome


@dataclass(frozen=True)
class Node:
    """One node, as it says of itself."""

    id: str
    address: str
    cpus: int
    labels: dict[str, str]
    host: dict[str, Any]
    versions: dict[str, str]
    machine: str  # the same for nodes on one machine


@contextmanager
def leased(
    nodes: Sequence[Node], still: Callable[[], Sequence[Node]], poll_s: float
) -> Iterator[Callable[..., Outcome | None]]:
    """A function that calls another one there; it gives None where the machine was lost meanwhile.

    `still` says which nodes are left, and raises when none is.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    first = nodes[0].machine
    here = [one for one in nodes if one.machine == first]
    group = placement_group(
        [{"CPU": one.cpus} for one in here],
        strategy="STRICT_SPREAD",
        bundle_label_selector=[{"ray.io/node-id": one.id} for one in here],
    )
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)

    def lost() -> bool:
        left = {one.id for one in still()}
        return any(one.id not in left for one in here)

    def call(what: Callable[..., Outcome], *arguments: Any) -> Outcome | None:
        while not group.wait(poll_s):  # others time there, or build
            if lost():
                return None
        remote = ray.remote(num_cpus=here[0].cpus, max_retries=0, scheduling_strategy=strategy)(what)
        running = remote.remote(*arguments)
        while True:
            try:
                found: Outcome = ray.get(running, timeout=poll_s)
                return found
            except ray.exceptions.GetTimeoutError:
                if lost():
                    return None
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError:  # the worker, or its node
                still()
                return None

    try:
        yield call
    finally:
        with suppress(Exception):  # where the cluster is gone there is nothing to give back
            remove_placement_group(group)
