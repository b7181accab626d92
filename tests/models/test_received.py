"""A checkpoint's folder is looked through before a library reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fmopt.core.errors import CheckpointError
from fmopt.models import received


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


def test_links_within_the_hubs_cache_are_followed_and_no_others(folder, tmp_path):
    received.look_through(folder)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/x"))
    received.look_through(snapshot)
    (folder / "tokenizer.json").symlink_to(blobs / "x")
    with pytest.raises(CheckpointError, match="a link that leads out of the folder"):
        received.look_through(folder)


def test_devices_and_fifos_are_refused(folder):
    os.mkfifo(folder / "generation_config.json")
    with pytest.raises(CheckpointError, match="no plain file"):
        received.look_through(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"custom_pipelines": {"x": {"impl": "evil.P"}}}, "custom_pipelines"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "names a kernel to fetch and run"),
        ({"vision_config": {"_attn_implementation": "a/b"}}, "names a kernel"),
        ({"attn_implementation": {"text_config": "a/b"}}, "names a kernel"),
    ],
)
def test_configurations_that_name_code_are_refused(config, words, folder):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        received.look_through(folder)


@pytest.mark.parametrize(
    "key", ["num_labels", "num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings"]
)
def test_numbers_that_the_weights_do_not_have_are_refused(key, folder):
    shapes = {"a": (100, 8), "b": (8,)}
    received.require_possible(folder / "config.json", {key: 8, "rope_theta": 10**9}, shapes)
    for value in (10**9, -5, float("inf")):
        with pytest.raises(CheckpointError, match=f"says {key} "):
            received.require_possible(folder / "config.json", {"text_config": {key: value}}, shapes)


def test_folders_that_a_checkpoint_names_lie_inside_it(folder):
    assert received.inner_folder(folder, "1_Pooling") == folder / "1_Pooling"
    for name in ("../x", "/etc", "a/../../x", 5):
        with pytest.raises(CheckpointError, match="no folder inside it"):
            received.inner_folder(folder, name)
