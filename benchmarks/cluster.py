"""A cluster of Ray under an optimization: what it costs, and what is left of a run whose workers and nodes are killed.

    python benchmarks/cluster.py --kills 20 -o benchmarks/results/cluster.json

`empty` is the wall time of so many tasks that do nothing, on two workers. `runs` compares `optimize` of a tiny model without a
cluster and with `--cluster local:2`, each in a fresh folder, and again from another folder with the store of the first.
`kills` kills one process of a cluster (a worker of ours; in every fourth run a whole node) at a random moment of each run: the
winner and the bytes of every graph, artifact and prediction must be those of the undisturbed run; a run that ended in one
line is run again, and counted. Wall times want a quiet machine, and say how many cores they had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from kills import Bench, Said, digests, prepare

from fmopt.core.errors import FmoptError
from fmopt.measurement import host_probe
from fmopt.workflow.optimize import optimize_request

STORE_BYTES = 80 << 20
TRIES = 3  # of one command that ended in one line


def optimized(bench: Bench, out: Path, **where: Any) -> tuple[float, Any, list[str]]:
    """(Seconds, record, what was said) of one run."""
    said, begun = Said(), time.monotonic()
    record = optimize_request(bench.request(out).model_copy(update=where), said)
    return time.monotonic() - begun, record, said.lines


def same(bench: Bench, out: Path) -> bool:
    """Whether every file that the undisturbed run has too has its bytes; what was not scored there has none to compare."""
    found = digests(out)
    both = set(found) & set(bench.want)
    return bool(both) and all(found[path] == bench.want[path] for path in both)


def empty_tasks(count: int) -> dict[str, Any]:
    """Seconds of tasks that do nothing."""
    import ray

    from fmopt.workflow.cluster.connect import connect

    connect("local:2")
    try:
        nothing = ray.remote(num_cpus=1)(_nothing)
        ray.get([nothing.remote() for _ in range(4)])  # the workers are up
        begun = time.monotonic()
        ray.get([nothing.remote() for _ in range(count)])
        return {"tasks": count, "seconds": round(time.monotonic() - begun, 2)}
    finally:
        ray.shutdown()


def _nothing() -> None:
    return None


@dataclass
class Striker(threading.Thread):
    """Kills one worker of ours, or one node, some seconds into a run."""

    cluster: Any
    node: Any  # None: a worker
    wait_s: float
    struck: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        """Wait, and strike once."""
        self.over.wait(self.wait_s)
        while not self.over.is_set() and not self.struck:
            if self.node is not None:
                self.cluster.remove_node(self.node, allow_graceful=False)
                self.struck = True
            for process in psutil.Process().children(recursive=True):
                try:
                    if not self.struck and process.cmdline()[:1] in (["ray::work"], ["ray::time_in_turn"]):
                        process.kill()
                        self.struck = True
                except psutil.Error:
                    continue
            time.sleep(0.02)


def killed_runs(bench: Bench, work: Path, kills: int, whole: float) -> dict[str, int]:
    """What came of runs of which one process was killed each."""
    from ray.cluster_utils import Cluster

    draw = random.Random(0)
    found = {"runs": kills, "struck": 0, "same winner": 0, "same bytes": 0, "ended in one line and run again": 0}
    for number in range(kills):
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
        os.environ["RAY_ADDRESS"] = cluster.address
        out = work / f"killed-{number}"
        striker = Striker(cluster, nodes[1] if number % 4 == 3 else None, draw.uniform(0.1, 0.7) * whole)
        striker.start()
        try:
            for _ in range(TRIES):
                try:
                    _, record, _ = optimized(bench, out, cluster="auto")
                    found["same winner"] += record.winner == bench.chosen[0]
                    found["same bytes"] += same(bench, out)
                    break
                except FmoptError as error:
                    print(f"run {number}: {error}", file=sys.stderr, flush=True)
                    found["ended in one line and run again"] += 1
        finally:
            striker.over.set()
            striker.join()
            cluster.shutdown()
        found["struck"] += striker.struck
        print(f"run {number}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--empty", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bench = prepare(work)
        alone, _, _ = optimized(bench, work / "alone")
        store = str(work / "store")
        clustered, _, _ = optimized(bench, work / "two", cluster="local:2", store=store)
        again, _, said = optimized(bench, work / "again", store=store)
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": host_probe.host_fingerprint(),
            "versions": host_probe.versions(),
            "empty": empty_tasks(asked.empty),
            "runs": {
                "alone_s": round(alone, 1),
                "local:2_s": round(clustered, 1),
                "same bytes": same(bench, work / "two"),
                "again_from_another_folder_s": round(again, 1),
                "again_said": next(line for line in said if "were taken from" in line).replace(store, "STORE"),
            },
            "kills": killed_runs(bench, work, asked.kills, clustered),
        }
    text = json.dumps(result)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
