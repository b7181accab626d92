import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fmopt.core.errors import StoreError
from fmopt.core.store import MARKER, Store, own_folder


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
        "import sys, time, pathlib\nfrom fmopt.core.store import Store\n"
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
        "import sys, time, pathlib\nfrom fmopt.core.store import own_folder\n"
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
