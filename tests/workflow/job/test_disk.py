"""What a run takes on disk: asked for beforehand, counted once, given back without touching what is still read."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fmopt.cli.app import main
from fmopt.core.errors import StoreError
from fmopt.core.stages.store import Store, own_folder
from fmopt.workflow.job.disk import clean, disk_bytes, drop_on_the_way, require_room


def finished(out: Path) -> Path:
    """A folder as a run leaves it, with 100 kB in each stage; the artifact shares its graph's file."""

    def make(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(os.urandom(100_000))

    def trained(folder: Path) -> None:
        make(folder)
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"trained")

    with own_folder(out):
        store = Store(out / "stages")
        graph = store.folder("graph-export", {}, make)
        store.folder("graph-distill", {}, trained)
        store.folder("timed", {}, make)
        store.folder("artifact-onnxruntime", {}, lambda folder: os.link(graph / "model.onnx", folder / "model.onnx"))
        store.value("latency", {}, lambda: 1)
        (out / "record.json").write_text("{}")
    return out


def stages(out: Path) -> set[str]:
    return {path.name.rpartition("-")[0] for path in (out / "stages").iterdir()}


def test_a_file_with_two_names_counts_once_and_graphs_on_the_way_are_dropped(tmp_path: Path):
    out = finished(tmp_path / "out")
    assert 300_000 < disk_bytes(out) < 310_000
    freed = drop_on_the_way(out / "stages")
    assert 100_000 < freed < 105_000  # of the network that was timed: the graph's bytes are the artifact's too
    assert stages(out) == {"graph-distill", "artifact-onnxruntime", "latency"}


def test_clean_frees_the_stages_and_leaves_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = finished(tmp_path / "out")
    assert main(["clean", str(out)]) == 0
    assert "freed, 5 finished stages removed" in capsys.readouterr().out
    assert not (out / "stages").exists()
    assert (out / "record.json").is_file()
    assert clean(out).stages == 0


def test_clean_touches_nothing_of_a_folder_that_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "thesis.txt").write_text("mine")
    assert main(["clean", str(tmp_path)]) == 2
    assert "was not made by fmopt; nothing was touched" in capsys.readouterr().err
    assert (tmp_path / "stages" / "thesis.txt").is_file()


def test_room_is_asked_for_less_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = finished(tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    require_room(out, out / "stages", 1_200_000)
    with pytest.raises(
        StoreError, match=r"about 1.70 MB are needed in .*out and 1.00 MB are free; make room, or choose another"
    ):
        require_room(out, out / "stages", 2_000_000)
    with pytest.raises(StoreError, match=r"about 2\.00 MB are needed"):
        require_room(tmp_path / "new" / "out", tmp_path / "new" / "out" / "stages", 2_000_000)
