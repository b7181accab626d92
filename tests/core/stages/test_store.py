import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fmopt.core.errors import StoreError
from fmopt.core.model import file_digest
from fmopt.core.stages import seals
from fmopt.core.stages.store import KEY, LOCK, MARKER, SHARED_BYTES, Store, own_folder, write_whole


def test_a_finished_stage_is_not_done_again(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder):
        calls.append(folder)
        (folder / "x").write_text("1")

    first = store.folder("graph", {"a": 1}, make)
    assert store.folder("graph", {"a": 1}, make) == first
    assert len(calls) == 1
    assert (first / "x").read_text() == "1"


def test_another_key_is_another_stage(tmp_path):
    store = Store(tmp_path)
    assert store.value("n", {"seed": 0}, lambda: 0) == 0
    assert store.value("n", {"seed": 1}, lambda: 1) == 1
    assert store.value("n", {"seed": 0}, lambda: 2) == 0


def test_a_stage_that_breaks_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def make(folder):
        (folder / "half").write_text("…")
        raise ValueError("broke")

    with pytest.raises(ValueError, match="broke"):
        store.folder("graph", {}, make)
    assert list(tmp_path.iterdir()) == []
    assert store.value("graph", {}, lambda: 3) == 3


def test_a_killed_stage_never_looks_finished(tmp_path):
    script = (
        "import sys, time, pathlib\nfrom fmopt.core.stages.store import Store\n"
        "def make(folder):\n    (folder / 'half').write_text('x'); print('running', flush=True); time.sleep(60)\n"
        f"Store(pathlib.Path({str(tmp_path)!r})).folder('graph', {{}}, make)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [p.name.startswith("unfinished-") for p in tmp_path.iterdir()] == [True]
    store = Store(tmp_path)  # the next run clears it away
    assert list(tmp_path.iterdir()) == []
    assert not store.has("graph", {})


def test_a_folder_of_other_peoples_files_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"not empty and was not made by fmopt.*--output"), own_folder(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_fresh_forgets_stages_and_nothing_else(tmp_path):
    with own_folder(tmp_path):
        Store(tmp_path / "stages").value("n", {}, lambda: 1)
        (tmp_path / "report.html").write_text("r")
    with own_folder(tmp_path, fresh=True):
        assert not (tmp_path / "stages").exists()
        assert (tmp_path / "report.html").exists()
        assert (tmp_path / MARKER).exists()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    script = (
        "import sys, time, pathlib\nfrom fmopt.core.stages.store import own_folder\n"
        f"with own_folder(pathlib.Path({str(tmp_path)!r})):\n    print('in', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(StoreError, match="another fmopt works in"), own_folder(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with own_folder(tmp_path):  # a killed run's lock does not linger
        pass


def test_a_full_disk_is_one_line_and_keeps_finished_stages(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], check=False).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        store = Store(mounted / "stages")
        store.value("n", {}, lambda: 1)
        with pytest.raises(StoreError, match=r"disk of .* is full; free some space and run the same command again"):
            store.folder("big", {}, lambda folder: (folder / "w").write_bytes(bytes(4 << 20)))
        assert store.has("n", {})
        assert json.loads((next((mounted / "stages").glob("n-*")) / "value.json").read_text()) == 1
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", mounted], check=True)


def graph(folder):
    (folder / "model.onnx").write_bytes(b"a graph" * 1000)
    (folder / "graph.json").write_text('{"file": "model.onnx"}')


def exchanged(path):
    path.write_bytes(path.read_bytes()[::-1])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def linked(path):
    other = path.parent.parent / "elsewhere"
    other.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("how", [exchanged, cut, emptied, linked, os.unlink])
@pytest.mark.parametrize("name", ["model.onnx", "graph.json", KEY, seals.FILES])
def test_a_stage_that_is_not_as_it_was_finished_is_made_again_and_said(tmp_path, name, how):
    """A graph exchanged in a finished stage was taken, and shipped under the verdict of the one before."""
    said = []
    store = Store(tmp_path, said.append)
    place = store.folder("graph", {"a": 1}, graph)
    right = (place / "model.onnx").read_bytes()
    how(place / name)
    assert store.folder("graph", {"a": 1}, graph) == place
    assert (place / "model.onnx").read_bytes() == right
    assert seals.damage(place) == ""
    assert len(said) == 1
    assert said[0].startswith(f"{place.name} is made again: ")
    store.folder("graph", {"a": 1}, graph)
    assert len(said) == 1


def test_a_file_beside_a_stages_own_and_another_stage_in_its_place_are_noticed(tmp_path):
    said = []
    store = Store(tmp_path, said.append)
    place, other = (store.folder("graph", {"a": number}, graph) for number in (1, 2))
    shutil.rmtree(other)
    shutil.copytree(place, other)
    (place / "model.onnx.data").write_bytes(b"weights of somebody else")
    for number in (1, 2):
        store.folder("graph", {"a": number}, graph)
    assert said == [
        f"{place.name} is made again: model.onnx.data is not one of its files",
        f"{other.name} is made again: it holds another stage",
    ]


def test_a_files_digest_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    first = file_digest(path)
    monkeypatch.setattr("hashlib.file_digest", lambda stream, kind: pytest.fail("it was read again"))
    assert file_digest(path) == first
    monkeypatch.undo()
    path.write_bytes(b"22")
    assert file_digest(path) != first


def test_stages_of_the_same_content_are_one_file_on_disk(tmp_path):
    def large(folder):
        (folder / "model.bin").write_bytes(b"w" * 2 * SHARED_BYTES)

    first = Store(tmp_path).folder("one", {}, large)
    second = Store(tmp_path).folder("two", {}, large)  # of a later run
    assert (first / "model.bin").samefile(second / "model.bin")
    assert seals.damage(first) == seals.damage(second) == ""
    shutil.rmtree(first)
    assert (second / "model.bin").stat().st_size == 2 * SHARED_BYTES


@pytest.mark.skipif(os.name != "posix", reason="rights of other users are Unix's")
def test_what_others_can_write_is_not_taken(tmp_path):
    out = tmp_path / "out"
    with own_folder(out):
        Store(out / "stages").value("n", {}, lambda: 1)
    out.chmod(0o777)
    with pytest.raises(StoreError, match=r"is not taken: every user of this machine can write it"), own_folder(out):
        pass
    out.chmod(0o755)
    (out / "stages").chmod(0o777)
    with pytest.raises(StoreError, match="stages is not taken"):
        Store(out / "stages")
    (out / "stages").chmod(0o755)
    said = []
    place = next((out / "stages").glob("n-*"))
    place.chmod(0o777)
    assert Store(out / "stages", said.append).value("n", {}, lambda: 2) == 2
    assert said == [f"{place.name} is made again: every user of this machine can write it"]


@pytest.mark.parametrize("name", [MARKER, LOCK, "stages"])
def test_links_where_we_make_none_are_refused_and_not_followed(tmp_path, name):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    out.mkdir()
    (out / MARKER).touch()
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(mine / "new" if name != "stages" else mine)
    with pytest.raises(StoreError, match=r"is a link|not made by fmopt"), own_folder(out, fresh=True):
        pass
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_known_by_whatever_a_library_says(tmp_path):
    """safetensors, torch and OpenVINO have errors of their own for it, which made a candidate fail and the run go on."""

    def library(folder):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot write") from error

    def rust(folder):
        raise ValueError('I/O error: Os { code: 28, message: "No space left on device" }')

    for make in (library, rust):
        with pytest.raises(StoreError, match=r"the disk of .* is full; free some space and run the same command again"):
            Store(tmp_path / "stages").folder("x", {}, make)


def test_a_folder_that_vanishes_is_one_line(tmp_path):
    store = Store(tmp_path / "stages")
    shutil.rmtree(tmp_path / "stages")
    with pytest.raises(StoreError, match=r"was removed while fmopt worked with it; run the same command again"):
        store.value("n", {}, lambda: 1)
    assert not (tmp_path / "stages").exists()


def test_a_text_is_written_whole_with_the_rights_that_files_have(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    made = write_whole(tmp_path / "x.json", "{}")
    assert made.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "x.json"]
