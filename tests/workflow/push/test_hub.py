"""To a hub on loopback, by the real client: one commit of a bundle that verifies once it is fetched again."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import ConfigError, StoreError
from fmopt.workflow.push import hub as pushing
from fmopt.workflow.push.release import release_of
from tests.hub_server import Hub


class Told:
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def start(self, text: str, total: int) -> None: ...
    def step(self, done: int = 1) -> None: ...
    def stop(self) -> None: ...


def test_what_is_fetched_again_is_the_bundle(judged: Path, hub: Hub, tmp_path: Path) -> None:
    (judged / "private.txt").write_text("mine")
    address = pushing.push_to_hub(release_of(judged, licence="mit"), "me/tiny", private=True)
    assert address.startswith(f"{hub.address}/me/tiny/commit/")
    assert hub.repos["me/tiny"]["private"] is True
    listed = json.loads(hub.files("me/tiny")["fmopt.json"])["files"]
    assert set(hub.files("me/tiny")) == {*listed, "fmopt.json", ".gitattributes"}
    assert hub.files("me/tiny")["model.onnx"] == (judged / "model.onnx").read_bytes()
    fetched = Path(huggingface_hub.snapshot_download("me/tiny", local_dir=tmp_path / "fetched"))
    assert fmopt.verify(fetched) == []
    assert fmopt.load(fetched)("a text")["label"] in ("negative", "neutral", "positive")


def test_a_repository_in_use_is_replaced_only_when_asked(judged: Path, exported: Path, hub: Hub) -> None:
    hub.add("me/tiny", {"mine.txt": b"mine"})
    first = release_of(judged, licence="mit")
    with pytest.raises(ConfigError, match=r"me/tiny holds 1 files at main, such as mine\.txt; --replace"):
        pushing.push_to_hub(first, "me/tiny")
    assert hub.commits == []
    pushing.push_to_hub(first, "me/tiny", replace=True)
    stale = json.loads(hub.files("me/tiny")["fmopt.json"])
    stale["files"]["old.bin"] = {"bytes": 3, "sha256": "0" * 64}
    hub.files("me/tiny").update({"fmopt.json": json.dumps(stale).encode(), "old.bin": b"old"})
    pushing.push_to_hub(release_of(exported, licence="mit"), "me/tiny", replace=True)
    assert hub.files("me/tiny")["mine.txt"] == b"mine"
    assert "old.bin" not in hub.files("me/tiny")
    changed = {line["value"]["path"] for line in hub.commits[-1]["lines"]}
    assert changed == {"README.md", "fmopt.json", "sbom.json", "old.bin"}  # what is the same is not sent again
    assert len(hub.uploads) == 1
    with pytest.raises(ConfigError, match="there already and public"):
        pushing.push_to_hub(first, "me/tiny", private=True, replace=True)


def test_a_branch_is_made_and_pushing_twice_is_pushing_once(judged: Path, hub: Hub) -> None:
    release = release_of(judged, licence="mit")
    assert pushing.push_to_hub(release, "me/tiny", revision="v2") == pushing.push_to_hub(
        release, "me/tiny", revision="v2"
    )
    assert len(hub.commits) == 1
    assert set(hub.files("me/tiny", "main")) == {".gitattributes"}


def test_a_hub_that_does_not_answer_is_asked_again(judged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "PAUSES_S", (0.0, 0.0, 0.0))
    told, release = Told(), release_of(judged, licence="mit")
    hub.faults += [503, 502]
    pushing.push_to_hub(release, "me/tiny", progress=told)
    assert told.lines == [f"the hub did not take it ({status}); trying again in 0 s" for status in (503, 502)]
    assert len(hub.uploads) == 1
    hub.faults += [503] * 4
    with pytest.raises(StoreError, match=r"me/other could not be pushed .*run the same command again"):
        pushing.push_to_hub(release, "me/other", progress=told)
    hub.faults = [403]
    with pytest.raises(StoreError, match="the hub does not let you write to me/third"):
        pushing.push_to_hub(release, "me/third", progress=told)


def test_who_may_not_write_is_told_in_a_line(
    judged: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "PAUSES_S", (0.0,))
    release = release_of(judged, licence="mit")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(StoreError, match="the hub does not accept the token for me/tiny"):
        pushing.push_to_hub(release, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(ConfigError, match="run `hf auth login`, or set HF_TOKEN"):
        pushing.push_to_hub(release, "me/tiny")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"me/tiny could not be pushed \(.*run the same command again"):
        pushing.push_to_hub(release, "me/tiny")


def test_the_command(judged: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(judged), "--to", "hub", "--repo", "me/tiny", "--license", "mit", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["to"], said["license"]) == ("hub", "mit")
    assert said["commit"].startswith(hub.address)
    for arguments, reported in (
        (["--to", "hub", "--repo", "me/tiny"], "states no licence"),
        (["--to", "hub", "--repo", "tiny", "--license", "mit"], "--repo 'tiny' is no name of a hub"),
        (["--to", "hub"], "--to hub needs to know where; add --repo owner/name"),
        (["--to", "folder", "--repo", "me/tiny"], "--repo goes with --to hub; leave it out"),
        (["--to", "hubb"], "--to 'hubb' is none of hub, folder, mlflow; did you mean 'hub'?"),
    ):
        assert main(["push", str(judged), *arguments]) == 2, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert reported in line
