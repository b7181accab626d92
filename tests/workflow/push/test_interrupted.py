"""A push that was cut off: nothing that it leaves looks whole, the same command goes on, and nothing of others is overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fmopt.core.errors import ConfigError, StoreError
from fmopt.edge.manifest import UNFINISHED
from fmopt.workflow.push.folder import push_to_folder
from fmopt.workflow.push.hub import push_to_hub
from fmopt.workflow.push.mlflow_run import push_to_mlflow
from fmopt.workflow.push.release import release_of
from tests.hub_server import Hub


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("kind", ["new", "clone", "replaced"])
def test_a_folder_after_a_kill_at_every_step(exported: Path, tmp_path: Path, kind: str) -> None:
    script = Path(__file__).with_name("killed_pushes.py")
    done = subprocess.run(
        [sys.executable, script, exported, tmp_path / "home", kind], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 4
    for step, (after, again) in enumerate(found):
        # what looks whole is the bundle of before, untouched, or the new one
        assert after["licence"] in ("", "license: mit", *(["license: isc"] if kind == "replaced" else [])), step
        assert after["mine"] == (kind == "replaced"), step
        assert again == {"whole": True, "licence": "license: mit", "mine": kind == "replaced", "left": 0}, step
    assert any(not after["whole"] for after, _ in found)


def test_pushing_twice_into_a_folder_is_pushing_once(exported: Path, tmp_path: Path) -> None:
    out = push_to_folder(release_of(exported, licence="mit"), tmp_path / "repo")
    (out / "mine.txt").write_text("mine")
    push_to_folder(release_of(exported, licence="mit"), out)
    (out / "README.md").write_text("my own words")
    with pytest.raises(StoreError, match="--replace puts this bundle in place of the one there"):
        push_to_folder(release_of(exported, licence="mit"), out)
    assert (out / "README.md").read_text() == "my own words"


def test_what_was_cut_off_beside_other_files_is_not_gone_on_with_unasked(exported: Path, tmp_path: Path) -> None:
    out = push_to_folder(release_of(exported, licence="mit"), tmp_path / "repo")
    (out / UNFINISHED).write_text(json.dumps(["fmopt.json", "README.md"]))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="--replace puts this bundle in place"):
        push_to_folder(release_of(exported, licence="isc"), out)
    push_to_folder(release_of(exported, licence="isc"), out, replace=True)
    assert (out / "mine.txt").read_text() == "mine"


def test_a_hub_after_a_kill_in_the_middle_of_an_upload(exported: Path, hub: Hub) -> None:
    command = [sys.executable, "-m", "fmopt", "push", str(exported), "--to", "hub", "--repo", "me/tiny", "--license", "mit",
               "--revision", "v2"]  # fmt: skip
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
    pushing = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hub.on_upload = pushing.kill
    said = pushing.communicate(timeout=120)
    assert pushing.returncode == -signal.SIGKILL, said
    assert hub.commits == []
    assert list(hub.repos["me/tiny"]["branches"]) == [
        "main"
    ]  # no branch that holds what main does, as if it were the new one
    assert set(hub.files("me/tiny")) == {".gitattributes"}
    hub.on_upload = None
    push_to_hub(release_of(exported, licence="mit"), "me/tiny", revision="v2")
    assert hub.files("me/tiny", "v2")["model.onnx"] == (exported / "model.onnx").read_bytes()
    assert len(hub.uploads) == 1


def test_a_hub_that_hangs_up_in_the_middle_of_an_upload(
    exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmopt.workflow.push.hub.PAUSES_S", ())
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)

    hub.on_upload = lambda: None
    with pytest.raises(StoreError, match=r"me/tiny could not be pushed \(.*run the same command again"):
        push_to_hub(release_of(exported, licence="mit"), "me/tiny")
    assert hub.commits == []
    hub.on_upload = None
    push_to_hub(release_of(exported, licence="mit"), "me/tiny")
    assert "fmopt.json" in hub.files("me/tiny")


def test_a_branch_is_not_made_where_main_holds_another_bundle(exported: Path, judged: Path, hub: Hub) -> None:
    push_to_hub(release_of(exported, licence="mit"), "me/tiny")
    with pytest.raises(ConfigError, match=r"me/tiny holds \d+ files at main, .*--replace"):
        push_to_hub(release_of(judged, licence="mit"), "me/tiny", revision="v2")
    assert list(hub.repos["me/tiny"]["branches"]) == ["main"]
    push_to_hub(release_of(judged, licence="mit"), "me/tiny", revision="v2", replace=True)
    assert hub.files("me/tiny", "v2")["fmopt.json"] != hub.files("me/tiny")["fmopt.json"]


@pytest.mark.parametrize("interrupted", [KeyboardInterrupt(), OSError("the network is gone")])
def test_a_run_of_mlflow_that_was_cut_off_is_not_finished(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: BaseException
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    whole = mlflow.MlflowClient.log_artifacts

    def half(client: object, run: str, folder: str, place: str) -> None:
        shutil.copytree(folder, tmp_path / "half")
        (tmp_path / "half" / "model.onnx").unlink()
        whole(client, run, str(tmp_path / "half"), place)
        raise interrupted

    try:
        release, client = release_of(exported, licence="mit"), mlflow.MlflowClient()
        with monkeypatch.context() as patched:
            patched.setattr(mlflow.MlflowClient, "log_artifacts", half)
            with pytest.raises(KeyboardInterrupt if isinstance(interrupted, KeyboardInterrupt) else StoreError):
                push_to_mlflow(release, register="tiny")
        home = client.get_experiment_by_name("fmopt").experiment_id
        (run,) = client.search_runs([home])
        assert run.info.status == ("KILLED" if isinstance(interrupted, KeyboardInterrupt) else "FAILED")
        assert "fmopt.digest" not in run.data.tags
        assert client.search_model_versions("name='tiny'") == []
        assert push_to_mlflow(release, register="tiny").version == "1"
        (found,) = client.search_runs([home], f"tags.`fmopt.digest` = '{release.manifest['digest']}'")
        assert found.info.status == "FINISHED"
    finally:
        mlflow.set_tracking_uri(None)
