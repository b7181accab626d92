"""To a real MLflow with a store of its own (SQLite): a run with the figures, the bundle as its artifact, a registered version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import ConfigError, StoreError
from fmopt.evaluation.record import Record
from fmopt.workflow.push.mlflow_run import push_to_mlflow
from fmopt.workflow.push.release import release_of


def test_a_run_holds_the_figures_and_the_bundle(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts beside a store that is a file
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        command = [
            "push",
            str(judged),
            "--to",
            "mlflow",
            "--license",
            "mit",
            "--experiment",
            "tests",
            "--register",
            "tiny",
        ]
        assert main(command) == 0
        assert main(command) == 0
        assert "registered as version 2" in capsys.readouterr().out
        client = mlflow.MlflowClient()
        versions = sorted(client.search_model_versions("name='tiny'"), key=lambda one: int(one.version))
        assert len({one.run_id for one in versions}) == 2  # nothing is overwritten
        run, record = client.get_run(versions[0].run_id), Record.load(judged)
        winner = record.winning
        assert winner is not None
        assert winner.speedup is not None
        assert run.info.status == "FINISHED"
        assert run.data.metrics["speedup_low"] == pytest.approx(winner.speedup.low)
        assert run.data.metrics["latency_p50_ms"] == pytest.approx(winner.p50)
        assert run.data.params["workload"] == record.judged_on.sentence()
        assert run.data.tags["fmopt.verdict"] == record.verdict.outcome.value
        fetched = Path(client.download_artifacts(run.info.run_id, "bundle", str(tmp_path)))
        assert fmopt.verify(fetched) == []
        assert "\nlicense: mit\n" in (fetched / "README.md").read_text()
        with pytest.raises(ConfigError, match="is no name of a registered model"):
            push_to_mlflow(release_of(judged, licence="mit"), register="a/b")
        (tmp_path / "file").write_text("")
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")
        with pytest.raises(StoreError, match=r"MLflow did not take it .* look at MLFLOW_TRACKING_URI"):
            push_to_mlflow(release_of(judged, licence="mit"))
    finally:
        mlflow.set_tracking_uri(None)


def test_without_mlflow_the_way_out_is_said(exported: Path) -> None:
    code = "import sys; sys.modules['mlflow'] = None; from fmopt.cli.app import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "push", str(exported), "--to", "mlflow", "--license", "mit"],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 2
    assert "MLflow is not installed: pip install 'fmopt[mlflow]'" in done.stderr
