"""What an attacker sends, through the whole command: it is refused in one line, and a tree of files beside it stays as it is.

What each room refuses has tests of its own (tests/edge/test_files.py, tests/models/test_received.py, tests/data); these go in by
the front door, and look at what lies outside.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fmopt import export
from fmopt.cli.app import main
from tests.conftest import TinyCheckpoint
from tests.fuzzing import SECRET, seal, state

ROWS = "text,label\n" + "".join(f"the cat sat on mat {n},{('negative', 'positive')[n % 2]}\n" for n in range(12))


class Scene:
    """A bundle, a checkpoint and data that were received, and what the user has beside them."""

    def __init__(self, folder: Path, bundle: Path, checkpoint: Path) -> None:
        self.folder, self.own = folder, folder / "own"
        self.own.mkdir(parents=True)
        (self.own / "secret.txt").write_text(SECRET)
        (self.own / "notes").mkdir()
        (self.own / "notes" / "a.md").write_text("mine")
        self.bundle, self.checkpoint = folder / "bundle", folder / "checkpoint"
        shutil.copytree(bundle, self.bundle)
        shutil.copytree(checkpoint, self.checkpoint)
        self.data = folder / "rows.csv"
        self.data.write_text(ROWS)
        self.out = folder / "out"

    def manifest(self, **changes: Any) -> None:
        """Change the manifest and seal it, as who makes bundles can."""
        path = self.bundle / "fmopt.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        seal(self.bundle)

    def pipeline(self, **changes: Any) -> None:
        self.manifest(pipeline=json.loads((self.bundle / "fmopt.json").read_text())["pipeline"] | changes)


@pytest.fixture(scope="module")
def received(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    checkpoint = tiny_checkpoint("bert", "text-classification")
    return export(checkpoint, tmp_path_factory.mktemp("received") / "bundle"), checkpoint


def weights_from(scene: Scene, place: str) -> None:
    """The graph's largest weights lie at `place`, outside the bundle."""
    graph = onnx.load(scene.bundle / "model.onnx")
    tensor = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (scene.bundle / "model.onnx").write_bytes(graph.SerializeToString())
    seal(scene.bundle)


def linked(path: Path, to: Path) -> None:
    path.unlink()
    path.symlink_to(to)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def written(path: Path, text: str) -> None:
    path.write_text(text)


def configured(scene: Scene, **changes: Any) -> None:
    path = scene.checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BUNDLES: dict[str, Callable[[Scene], None]] = {
    "model file outside": lambda scene: scene.manifest(model_file="../own/secret.txt"),
    "lists a file outside": lambda scene: scene.manifest(
        files=json.loads((scene.bundle / "fmopt.json").read_text())["files"]
        | {"../own/secret.txt": {"bytes": len(SECRET), "sha256": "0" * 64}}
    ),
    "weights outside": lambda scene: weights_from(scene, "../own/secret.txt"),
    "weights at an absolute path": lambda scene: weights_from(scene, str(scene.own / "secret.txt")),
    "graph is a link": lambda scene: linked(scene.bundle / "model.onnx", scene.own / "secret.txt"),
    "tokenizer is a link": lambda scene: linked(scene.bundle / "tokenizer.json", scene.own / "secret.txt"),
    "part is a module of the program": lambda scene: scene.pipeline(part="__main__"),
    "part is a path": lambda scene: scene.pipeline(part="../../own/notes/a"),
    "runtime is a path": lambda scene: scene.manifest(runtime="../../own/notes/a"),
    "manifest nested deep": lambda scene: written(scene.bundle / "fmopt.json", '{"a":' * 10**5 + "1" + "}" * 10**5),
    "manifest is a device": lambda scene: linked(scene.bundle / "fmopt.json", Path("/dev/zero")),
    "manifest is a FIFO": lambda scene: piped(scene.bundle / "fmopt.json"),
    "a changed program": lambda scene: written(scene.bundle / "edge" / "text.py", "import os\nos.abort()\n"),
}
CHECKPOINTS: dict[str, Callable[[Scene], None]] = {
    "code of its own": lambda scene: configured(scene, custom_pipelines={"x": {"impl": "evil.Evil"}}),
    "a kernel of the hub": lambda scene: configured(scene, attn_implementation="someone/kernel"),
    "a billion labels": lambda scene: configured(scene, num_labels=10**9, id2label=None, label2id=None),
    "a billion layers": lambda scene: configured(scene, num_hidden_layers=10**9),
    "weights are a link": lambda scene: linked(scene.checkpoint / "model.safetensors", scene.own / "secret.txt"),
    "configuration is a link": lambda scene: linked(scene.checkpoint / "config.json", scene.own / "secret.txt"),
}


def refused(capfd: pytest.CaptureFixture[str], scene: Scene, *argv: object) -> None:
    """The command ends with 2 and one line, which shows nothing of the user's, and leaves all as it was."""
    before = state(scene.folder)
    assert main([str(word) for word in argv]) == 2
    said = capfd.readouterr()
    assert said.err.strip()
    assert "Traceback" not in said.err
    assert SECRET not in said.out + said.err
    assert state(scene.folder, scene.out) == before


@pytest.mark.parametrize("attack", BUNDLES)
def test_a_bundle_that_leads_elsewhere_is_refused(
    received: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], attack: str
) -> None:
    scene = Scene(tmp_path / "scene", *received)
    BUNDLES[attack](scene)
    refused(capfd, scene, "verify", scene.bundle)
    refused(capfd, scene, "predict", scene.bundle, "the cat sat")
    refused(capfd, scene, "eval", scene.bundle, "--data", scene.data)


@pytest.mark.parametrize("attack", CHECKPOINTS)
def test_a_checkpoint_that_leads_elsewhere_is_refused(
    received: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], attack: str
) -> None:
    scene = Scene(tmp_path / "scene", *received)
    CHECKPOINTS[attack](scene)
    refused(capfd, scene, "inspect", scene.checkpoint)
    refused(capfd, scene, "export", scene.checkpoint, "-o", scene.out)


def test_a_folder_to_write_to_names_nothing_outside_it(
    received: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What an interrupted run left says what is to be removed; here somebody else wrote it, and put links in the way."""
    scene = Scene(tmp_path / "scene", *received)
    scene.out.mkdir()
    (scene.out / ".fmopt").touch()
    (scene.out / ".fmopt-writing").write_text(json.dumps(["../own/secret.txt", str(scene.own / "notes"), "../own"]))
    for name in ("model.onnx", "README.md", ".fmopt.lock"):
        (scene.out / name).symlink_to(scene.own / "secret.txt")
    (scene.out / "stages").symlink_to(scene.own / "notes")
    before = state(scene.folder, scene.out)
    main(["export", str(scene.checkpoint), "-o", str(scene.out)])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert SECRET not in said.out + said.err
    assert state(scene.folder, scene.out) == before
    assert (scene.own / "secret.txt").read_text() == SECRET
