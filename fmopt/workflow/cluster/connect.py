"""Which cluster, which of its nodes: each is asked what it is, and one that does not fit the target never judges it.

Ray is imported here and in the files beside it only, for those who ask for a cluster.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from typing import Any

from fmopt.core.errors import ClusterError, ConfigError
from fmopt.core.target import Target, read_target
from fmopt.measurement import host_probe
from fmopt.workflow.cluster import node
from fmopt.workflow.cluster.clock import ClusterBackend
from fmopt.workflow.cluster.executor import RayExecutor
from fmopt.workflow.cluster.lease import Node
from fmopt.workflow.job.disk import SHARED

LABEL = "fmopt.target"  # of nodes that stand for a named target
SAME = ("cpu", "arch", "isa", "cores")  # of a fingerprint: two machines with the same are one kind of machine
PROBE_S = 180.0  # a node imports torch to say what it is
CONNECT_S = 10.0
LOCAL_STORE_BYTES = 200 << 20  # of Ray's own object store: what is large goes by the store of stages


def cluster_target(
    address: str, target: str, store: str | None, stages: Path
) -> tuple[Target, ClusterBackend, RayExecutor]:
    """The target, a clock on the nodes that are one, and the executor on them.

    ConfigError for a wrong address, versions that differ, and a target that no node is; ClusterError where none answers.
    """
    connect(address)
    try:
        nodes = probed()
        refuse_versions(nodes)
        found, fit = fitting(target, nodes)
        url = store
        if url is None:
            if {one.machine for one in nodes} != {node.machine()}:
                raise ConfigError(
                    "--cluster has nodes on other machines, and they share no stages; add --store with a folder that all "
                    "mount, or s3://BUCKET/PREFIX"
                )
            url = str((stages / SHARED).absolute())
        executor = RayExecutor(tuple(fit), url)
    except BaseException:
        import ray

        ray.shutdown()
        raise
    return found, ClusterBackend(executor), executor


def connect(address: str) -> None:
    """Join or start the cluster. ConfigError for what is no address, ClusterError for one where no cluster is."""
    wanted = parse(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs stay visible to tasks that ask Ray for none
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--cluster needs Ray: pip install 'fmopt[cluster]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if isinstance(wanted, int):
            ray.init(
                num_cpus=wanted,
                include_dashboard=False,
                object_store_memory=LOCAL_STORE_BYTES,
                address="local",
                **quiet,
            )
        elif wanted == "auto":
            ray.init(address="auto", **quiet)
        else:
            reachable(wanted)
            ray.init(address=f"ray://{wanted}", log_to_driver=False, logging_level=logging.ERROR)
    except (ConfigError, ClusterError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ClusterError(
            f"--cluster {address} cannot be used ({first}); is one started (ray start --head), of the same versions of Ray and "
            "Python, and RAY_AUTH_MODE=token set where it asks for its token?"
        ) from error


def parse(address: str) -> int | str:
    """How many workers here, "auto", or HOST:PORT of Ray's client server. ConfigError for anything else."""
    if address == "auto":
        return address
    if match := re.fullmatch(r"local:([1-9]\d{0,3})", address):
        return int(match[1])
    match = re.fullmatch(r"ray://((?:[\w.-]+|\[[0-9a-fA-F:]+\]):([1-9]\d{0,4}))", address)
    if match and int(match[2]) < 1 << 16:
        return match[1]
    raise ConfigError(
        f"--cluster {address!r} is not of the form ray://HOST:PORT, auto, or local:N (N workers on this machine)"
    )


def reachable(where: str) -> None:
    """ClusterError where nothing listens: Ray itself would try for half a minute."""
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no cluster answers at ray://{where} ({error.strerror or error}); is it up, and is that the port of its client "
            "server (10001 by default)?"
        ) from error


def probed() -> list[Node]:
    """Every node that takes work, asked what it is. ClusterError where one does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU", 0) >= 1]
    if not alive:
        raise ClusterError("the cluster has no node with a CPU to work on; start one: ray start --address=HEAD:6379")
    describe = ray.remote(num_cpus=0, max_retries=1)(node.describe)
    asked = {
        one["NodeID"]: describe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=one["NodeID"], soft=False)
        ).remote()
        for one in alive
    }
    found = []
    for one in alive:
        try:
            said = ray.get(asked[one["NodeID"]], timeout=PROBE_S)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = next((line for line in reversed(lines) if "Error" in line), (lines or [type(error).__name__])[0])
            raise ClusterError(
                f"node {one['NodeManagerAddress']} cannot work for fmopt ({why[:200]}); is the same fmopt installed there?"
            ) from error
        found.append(
            Node(
                id=one["NodeID"], address=one["NodeManagerAddress"], cpus=int(one["Resources"]["CPU"]),
                labels=dict(one.get("Labels") or {}), host=said["host"], versions=said["versions"], machine=said["machine"],
            )
        )  # fmt: skip
    return found


def refuse_versions(nodes: list[Node]) -> None:
    """ConfigError where a node has another version of anything that results depend on."""
    ours = node.describe()["versions"]
    for one in nodes:
        for name in sorted({*ours, *one.versions}):
            theirs, mine = one.versions.get(name, "none"), ours.get(name, "none")
            if theirs != mine:
                raise ConfigError(
                    f"node {one.address} has {name} {theirs}, and here it is {mine}; install the same versions on all nodes"
                )


def fitting(name: str, nodes: list[Node]) -> tuple[Target, list[Node]]:
    """The target, and the nodes that are it, all of one kind. ConfigError where there is none.

    "host" means this machine's kind; another target is what nodes that carry its label stand for, if they can what it can.
    """
    if name == "host":
        ours = host_probe.host_fingerprint()
        fit = [one for one in nodes if all(one.host[key] == ours[key] for key in SAME)]
        if not fit:
            raise ConfigError(
                f"no node of the cluster is like this machine ({ours['cpu']}, {ours['cores']} cores); name with --target what "
                f"it is for, and start the nodes that are it with ray start … --labels {LABEL}=NAME"
            )
        return host_probe.load_target(name), fit
    target = read_target(name)
    labelled = [one for one in nodes if one.labels.get(LABEL) == target.name]
    if not labelled:
        raise ConfigError(
            f"no node of the cluster carries the label {LABEL}={target.name}; start those that are it with ray start … --labels "
            f"{LABEL}={target.name}"
        )
    for one in labelled:
        lacks = sorted(set(target.isa) - set(one.host["isa"]))
        if one.host["arch"] != target.arch or lacks or one.host["cores"] < target.cores:
            what = f"lacks {', '.join(lacks)}" if lacks else f"is {one.host['arch']} with {one.host['cores']} cores"
            raise ConfigError(
                f"node {one.address} carries the label {LABEL}={target.name} and {what}; take the label from it"
            )
    alike = [one for one in labelled if all(one.host[key] == labelled[0].host[key] for key in SAME)]
    return target.model_copy(update={"present": True, "over_ssh": True}), alike
