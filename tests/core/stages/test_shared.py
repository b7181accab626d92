"""One store of stages for several folders: a folder, and an S3 server that runs here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from fmopt.core.errors import ConfigError, StoreError
from fmopt.core.stages import shared as shared_stages
from fmopt.core.stages.shared import SharedStages
from fmopt.core.stages.store import Store

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
import time; time.sleep(3600)
"""


@pytest.fixture(scope="module")
def s3_server():
    pytest.importorskip("moto", reason="the S3 server of these tests is moto: make setup")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    port = next(line.split()[1] for line in process.stdout if line.startswith("port "))
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path):
    """An empty bucket as a `--store`."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server[1],
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{tmp_path.name.replace('_', '-').lower()[-40:]}-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/stages-of-all"


@pytest.fixture(params=["folder", "file", "s3"])
def url(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    folder = tmp_path / "shared"
    return folder.as_uri() if request.param == "file" else str(folder)


def large(folder: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "model.onnx").write_bytes(b"weights" * 20_000)
    (folder / "graph.json").write_text("{}")


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


def store(root: Path, url: str, said: list[str] | None = None) -> Store:
    say = (said if said is not None else []).append
    return Store(root, say, SharedStages(url, say))


def test_what_one_folder_made_another_takes(tmp_path, url):
    first = store(tmp_path / "a", url)
    made = first.folder("graph", {"a": 1}, large)
    assert first.value("about", {"of": "graph"}, lambda: [1, 2]) == [1, 2]
    second = store(tmp_path / "b", url)
    found = second.folder("graph", {"a": 1}, never)
    assert second.value("about", {"of": "graph"}, lambda: never(found)) == [1, 2]
    assert {p.relative_to(found): p.read_bytes() for p in found.rglob("*") if p.is_file()} == {
        p.relative_to(made): p.read_bytes() for p in made.rglob("*") if p.is_file()
    }
    assert (len(first.made), first.fetched) == (2, [])
    assert (second.made, len(second.fetched)) == ([], 2)
    assert not list((tmp_path / "b").glob("unfinished-*"))


def test_another_key_is_made(tmp_path, url):
    store(tmp_path / "a", url).value("n", {"seed": 0}, lambda: 0)
    assert store(tmp_path / "b", url).value("n", {"seed": 1}, lambda: 1) == 1


def test_of_two_writers_the_first_stays_and_both_go_on_from_it(tmp_path, url):
    both = [store(tmp_path / name, url) for name in "ab"]
    barrier = threading.Barrier(2)
    got = {}

    def work(number):
        def make():
            barrier.wait(60)  # neither finds the other's
            return number

        got[number] = both[number].value("n", {}, make)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] == got[1]
    assert store(tmp_path / "c", url).value("n", {}, lambda: 7) == got[0]


def blob_of(url: str, content: bytes) -> Path:
    root = Path(url.removeprefix("file://"))
    return next(path for path in (root / "blobs").iterdir() if path.read_bytes() == content)


@pytest.mark.parametrize("damage", ["changed", "longer", "missing"])
def test_a_damaged_file_is_not_used_and_written_anew(tmp_path, damage):
    url, said = str(tmp_path / "shared"), []
    store(tmp_path / "a", url).folder("graph", {"a": 1}, large)
    blob = blob_of(url, b"{}")
    {
        "changed": lambda: blob.write_bytes(b"[]"),
        "longer": lambda: blob.write_bytes(b"{}" * 9),
        "missing": blob.unlink,
    }[damage]()
    again = store(tmp_path / "b", url, said)
    assert (again.folder("graph", {"a": 1}, large) / "graph.json").read_text() == "{}"
    assert len(said) == 1
    assert "is made again: graph.json is " in said[0]
    assert store(tmp_path / "c", url).folder("graph", {"a": 1}, never)
    assert blob.read_bytes() == b"{}"


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {**found, "../../escaped": found["graph.json"]},
        lambda found: {**found, "/etc/escaped": found["graph.json"]},
        lambda found: {**found, "a//b": found["graph.json"]},
        lambda found: {**found, "files.json": found["graph.json"]},
        lambda found: {**found, "graph.json": {"sha256": "../../x", "bytes": 2}},
        lambda found: {**found, "key.json": found["graph.json"]},
        lambda found: {name: one for name, one in found.items() if name != "key.json"},
        lambda found: {**found, "graph.json": {**found["graph.json"], "bytes": -1}},
        lambda found: [found],
        lambda found: {"deep": json.loads("[" * 300 + "]" * 300)},
    ],
)
def test_a_manifest_that_makes_no_sense_is_no_stage(tmp_path, change):
    url, said = str(tmp_path / "shared"), []
    store(tmp_path / "a", url).folder("graph", {"a": 1}, large)
    manifest = next((tmp_path / "shared" / "stages").glob("graph-*.json"))
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    assert (store(tmp_path / "b", url, said).folder("graph", {"a": 1}, large) / "graph.json").read_text() == "{}"
    assert len(said) == 1
    assert "is made again: " in said[0]
    assert not list(tmp_path.rglob("*escaped*"))
    assert store(tmp_path / "c", url).folder("graph", {"a": 1}, never)


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    url, said = str(tmp_path / "shared"), []
    store(tmp_path / "a", url).folder("graph", {"a": 1}, large)
    blob, secret = blob_of(url, b"{}"), tmp_path / "secret"
    secret.write_bytes(b"{}")
    blob.unlink()
    blob.symlink_to(secret)
    assert (store(tmp_path / "b", url, said).folder("graph", {"a": 1}, large) / "graph.json").read_text() == "{}"
    assert "is left out from here on" in said[0]


def test_a_folder_that_others_can_write_is_not_taken(tmp_path):
    shared = tmp_path / "shared"
    store(tmp_path / "a", str(shared))
    (shared / "blobs").chmod(0o777)
    with pytest.raises(StoreError, match=r"blobs is not taken: every user of this machine can write it.*--store"):
        SharedStages(str(shared))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/x", "a store is a folder, file:///FOLDER or s3://BUCKET/PREFIX, not http://"),
        ("s3://", "names no bucket"),
        ("s3://me:secret@bucket/x", "keys do not belong into a URL"),
        ("file://mnt/stages", "three slashes"),
    ],
)
def test_what_is_no_store_is_said(url, words):
    with pytest.raises(ConfigError, match=words) as caught:
        SharedStages(url)
    assert "secret" not in str(caught.value)


def test_a_store_that_cannot_be_written_is_said_at_the_start(tmp_path, s3_server, monkeypatch, bucket):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"--store .*file/shared cannot be written"):
        SharedStages(str(tmp_path / "file" / "shared"))
    with pytest.raises(StoreError, match=r"--store s3://no-such-bucket/x cannot be written"):
        SharedStages("s3://no-such-bucket/x")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="no store of fmopt; nothing was touched"):
        SharedStages(str(tmp_path / "theirs"))
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_a_folder_that_is_full_or_gone_ends_sharing_and_not_the_run(tmp_path):
    url, said = str(tmp_path / "shared"), []
    here = store(tmp_path / "a", url, said)
    for name in ("blobs", "stages"):
        (tmp_path / "shared" / name).rmdir()
        (tmp_path / "shared" / name).write_text("")
    assert here.value("n", {}, lambda: 1) == 1
    assert here.value("m", {}, lambda: 2) == 2
    assert len(said) == 1
    assert "is left out from here on" in said[0]


def test_a_server_that_stops_answering_ends_sharing_and_not_the_run(tmp_path, bucket, s3_server, monkeypatch):
    said: list[str] = []
    here = store(tmp_path / "a", bucket, said)
    assert here.value("n", {}, lambda: 1) == 1  # within the usual time: the first requests import what speaks S3
    monkeypatch.setattr(shared_stages, "TIMEOUT_S", 3.0)
    os.kill(s3_server[0].pid, signal.SIGSTOP)
    try:
        assert here.value("m", {}, lambda: 2) == 2
        assert here.value("o", {}, lambda: 3) == 3
    finally:
        os.kill(s3_server[0].pid, signal.SIGCONT)
    assert len(said) == 1
    assert "is left out from here on (TimeoutError: no answer for 3 s)" in said[0]


def test_a_writer_that_is_killed_leaves_no_half_stage(tmp_path):
    url = tmp_path / "shared"
    script = (
        "import pathlib, sys\nfrom fmopt.core.stages.store import Store\nfrom fmopt.core.stages.shared import SharedStages\n"
        "def make(folder):\n    (folder / 'x').write_bytes(bytes(300 << 20)); print('made', flush=True)\n"
        f"Store(pathlib.Path({str(tmp_path / 'a')!r}), print, SharedStages({str(url)!r})).folder('graph', {{'a': 1}}, make)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "made\n"
    while not list((url / "blobs").glob(".unfinished-*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not list((url / "stages").glob("graph-*"))
    assert (store(tmp_path / "b", str(url)).folder("graph", {"a": 1}, large) / "graph.json").is_file()
    assert store(tmp_path / "c", str(url)).folder("graph", {"a": 1}, never)


def test_the_server_is_there(s3_server):
    """That the tests above spoke to a server, not to nothing."""
    assert urllib.request.urlopen(s3_server[1], timeout=10).status == 200
