"""The same command on Ray's nodes: the same verdict, the same bytes; and what is said when it cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fmopt.cli.app import main
from fmopt.core.errors import ConfigError
from fmopt.workflow.optimize import optimize_request
from tests.workflow.cluster.conftest import assert_made_by_others, assert_same_bytes, request
from tests.workflow.test_shared_store import Lines, contents

pytest.importorskip("ray", reason="clusters are Ray's: make setup")


def test_two_workers_come_to_the_same_as_none(alone, tiny_checkpoint, labelled, tmp_path):
    out, lines = tmp_path / "out", Lines()
    asked = request(tiny_checkpoint("bert", "text-classification"), labelled, out, cluster="local:2")
    record = optimize_request(asked, lines)
    assert_made_by_others(lines)
    assert_same_bytes(contents(alone[0]), contents(out))
    assert record.circumstances.host == alone[1].circumstances.host
    assert not (out / "stages" / "shared").exists()


@pytest.mark.parametrize(
    "address", ["ray://", "ray://host", "ray://host:0", "local:0", "local:x", "10.0.0.1:6379", "ray://h:1/x"]
)
def test_what_is_no_cluster_is_said(address):
    from fmopt.workflow.cluster.connect import parse

    with pytest.raises(ConfigError, match="is not of the form ray://HOST:PORT, auto, or local:N"):
        parse(address)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cluster", "ray://127.0.0.1:1"], "no cluster answers at ray://127.0.0.1:1 (Connection refused)"),
        (["--cluster", "auto"], "--cluster auto cannot be used"),
        (
            ["--cluster", "local:1", "--target", "raspberry-pi-5"],
            "no node of the cluster carries the label fmopt.target=raspberry-pi-5",
        ),
        (["--cluster", "local:1", "--on", "ssh://a@b"], "--cluster and --on both say where candidates are timed"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(tiny_checkpoint, labelled, tmp_path, capsys, options, words):
    model = str(tiny_checkpoint("bert", "text-classification"))
    assert main(["optimize", model, "--data", str(labelled), "-o", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said


def test_versions_that_differ_are_refused():
    from fmopt.workflow.cluster import connect, node

    ours = node.describe()
    other = connect.Node("1", "10.0.0.2", 2, {}, ours["host"], {**ours["versions"], "fmopt version": "0.0.1"}, "x")
    with pytest.raises(
        ConfigError, match=r"node 10\.0\.0\.2 has fmopt version 0\.0\.1, and here it is .*install the same"
    ):
        connect.refuse_versions([other])


def test_a_node_that_cannot_what_its_label_says_is_refused():
    from fmopt.workflow.cluster import connect, node

    ours = node.describe()
    labels = {connect.LABEL: "raspberry-pi-5"}
    wrong = connect.Node("1", "10.0.0.2", 2, labels, ours["host"], ours["versions"], "x")
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.2 carries the label fmopt\.target=raspberry-pi-5 and lacks"):
        connect.fitting("raspberry-pi-5", [wrong])


def test_ray_is_not_imported_for_one_machine(tiny_checkpoint, labelled):
    code = (
        "import sys, fmopt; from fmopt.cli.app import main\n"
        f"fmopt.plan({str(tiny_checkpoint('bert', 'text-classification'))!r}, data={str(labelled)!r})\n"
        "print(sorted(name for name in ('ray', 's3fs', 'optuna') if name in sys.modules))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip().splitlines()[-1] == "[]"
