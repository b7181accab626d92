"""Workers and nodes of a real cluster that die under a run: the same winner, the same bytes."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from fmopt.workflow.optimize import optimize_request
from tests.workflow.cluster.conftest import assert_made_by_others, assert_same_bytes, request
from tests.workflow.test_shared_store import Lines, contents

pytest.importorskip("ray", reason="clusters are Ray's: make setup")
STORE_BYTES = 80 << 20


class Killer(threading.Thread):
    """Kills the first worker of ours that is seen at each kind of work."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(daemon=True)
        self.left, self.killed, self.over = list(kinds), [], threading.Event()

    def run(self) -> None:
        while self.left and not self.over.is_set():
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                except psutil.Error:
                    continue
                kind = next((one for one in self.left if title.startswith(f"ray::{one}")), None)
                if kind is not None:
                    time.sleep(0.3)  # into the work
                    process.kill()
                    self.left.remove(kind)
                    self.killed.append(kind)
            time.sleep(0.02)


@pytest.fixture
def cluster(monkeypatch):
    """A head that takes no work, and two nodes of one CPU."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    made.extra = [made.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


def test_workers_and_a_node_that_die(alone, cluster, tiny_checkpoint, labelled, tmp_path, capfd):
    killer, lines, out = Killer("work", "time_in_turn"), Lines(), tmp_path / "out"
    say = lines.say

    def remove_a_node(text: str) -> None:
        say(text)
        if text.startswith("a node was lost") and len(cluster.extra) == 2:
            cluster.remove_node(cluster.extra.pop(), allow_graceful=False)

    lines.say = remove_a_node
    killer.start()
    try:
        record = optimize_request(
            request(tiny_checkpoint("bert", "text-classification"), labelled, out, cluster="auto"), lines
        )
    finally:
        killer.over.set()
    assert killer.killed == ["work", "time_in_turn"]
    assert "a worker died at its task, which begins anew" in lines.said
    assert capfd.readouterr().out == ""  # where a command's answer belongs
    assert len(cluster.extra) == 1
    assert_made_by_others(lines)
    assert_same_bytes(contents(alone[0]), contents(out))
    assert record.winner
