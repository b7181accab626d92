"""ExecuTorch programs: made by the command, opened by their own script without fmopt, and the answers are the network's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

import fmopt
from fmopt.core import plugins
from fmopt.core.errors import ConfigError
from fmopt.core.model import Artifact
from fmopt.edge import host, loading
from fmopt.edge import text as edge_text
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.vision_models import write_pictures, write_vision

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("executorch", "torchao", "ruamel.yaml")  # beside what fmopt itself needs
MADE = """
import sys, fmopt
text, image, data, out = sys.argv[1:]
fmopt.export(text, out + "/fp32", format="executorch")
fmopt.export(text, out + "/int8", format="executorch", precision="int8", data=data)
fmopt.export(image, out + "/image", format="executorch")
"""
SAID = """
import json, sys
sys.modules["fmopt"] = None
import run
bundle = run.load(".", 1)
samples = [open(path, "rb").read() for path in sys.argv[2:]] if sys.argv[1] == "images" else sys.argv[2:]
print(json.dumps([one.tolist() for one in bundle.predict(samples, len(samples))]))
"""
TEXTS = [*SENTENCES[:10], " ".join(SENTENCES * 4)]  # more than a program's rows, and more tokens than it takes


@pytest.fixture(scope="session")
def packages() -> str:
    """A folder with ExecuTorch, installed once: torchao beside it writes to stderr wherever it is imported, so that the
    environment of all other tests does without."""
    versions = dict(re.findall(r"^([\w.]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    wanted = [f"{name}=={versions[name]}" for name in NEEDED]
    folder = host.cache_folder() / "-".join(one.replace("==", "-") for one in wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "finished").is_file():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted]
            subprocess.run(command, check=True)
            (folder / "finished").touch()
    return str(folder)


@pytest.fixture(scope="session")
def bundles(packages: str, tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders fp32 and int8 of a network that reads texts, and image of one that sees, with its checkpoint in seeing."""
    folder = tmp_path_factory.mktemp("executorch")
    write_vision(folder / "seeing", "vit")
    rows = [{"query": text, "positive": text} for text in SENTENCES]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tiny_checkpoint("bert", "sentence-embedding")
    made = subprocess.run(
        [sys.executable, "-c", MADE, str(text), str(folder / "seeing"), str(data), str(folder)],
        env={**os.environ, "PYTHONPATH": packages}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder


def said(packages: str, bundle: Path, *arguments: str) -> list[Any]:
    """What the bundle's own script says, in a process that has no fmopt."""
    got = subprocess.run(
        [sys.executable, "-c", SAID, *arguments],
        cwd=bundle, env={**os.environ, "PYTHONPATH": packages}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    return list(json.loads(got.stdout))


def by_torch(folder: Path, samples: list[Any]) -> np.ndarray:
    """What the checkpoint itself says, in PyTorch."""
    metadata = checkpoint.inspect(resolve(str(folder)))
    runner = plugins.find("runtimes", "torch").build(metadata, {}, metadata.folder)
    opened = plugins.find("runtimes", "torch").open(Artifact("torch", runner.path, runner.options), 1)
    preprocessor = edge_text.open_preprocessor(metadata.folder, dict(metadata.pipeline))
    return np.stack(loading.Model({"pipeline": dict(metadata.pipeline)}, preprocessor, opened).predict(samples))


def test_texts_in_batches_larger_than_the_programs(
    packages: str, bundles: Path, tiny_checkpoint: TinyCheckpoint
) -> None:
    wanted = by_torch(tiny_checkpoint("bert", "sentence-embedding"), TEXTS)
    got = np.array(said(packages, bundles / "fp32", "texts", *TEXTS))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.ptp(wanted, axis=0).max() > 0.1
    rounded = np.array(said(packages, bundles / "int8", "texts", *TEXTS))
    assert 1e-6 < np.abs(rounded - wanted).max() < 2e-2
    sizes = [(bundles / kind / "model.pte").stat().st_size for kind in ("fp32", "int8")]
    assert sizes[1] < 0.8 * sizes[0]


def test_pictures(packages: str, bundles: Path, tmp_path: Path) -> None:
    images = [str(path) for path in sorted(write_pictures(tmp_path, test=9).rglob("*.png"))]
    wanted = by_torch(bundles / "seeing", [Path(path).read_bytes() for path in images])
    np.testing.assert_allclose(np.array(said(packages, bundles / "image", "images", *images)), wanted, atol=1e-5)


def test_run_py_verifies_it_and_names_what_is_missing(packages: str, bundles: Path) -> None:
    def run(script: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(bundles / "fp32" / script), "verify"],
            env={**os.environ, **more}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    good = run("run.py", PYTHONPATH=packages)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("whole; golden predictions differ by")
    if importlib.util.find_spec("executorch") is None:
        without = run("run.py")
        assert (without.returncode, without.stderr) == (
            2, "error: executorch is not installed here; pip install executorch\n",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "task", "words", "reported"),
    [
        ("bert", "text-classification", {"precision": "fp16"}, "has fp32 and int8"),
        ("gpt2", "text-generation", {}, "text-generation is done in steps; use --format onnx"),
        ("bert", "text-classification", {"target": "nvidia-t4"}, "nvidia-t4 has no runtime 'executorch'"),
    ],
)
def test_what_cannot_be_a_program_is_refused(
    family: str, task: str, words: dict[str, Any], reported: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(type(plugins.find("runtimes", "executorch")), "missing", lambda self: None)
    options: dict[str, Any] = {"target": "raspberry-pi-5", **words}
    with pytest.raises(ConfigError, match=reported):
        fmopt.export(tiny_checkpoint(family, task), tmp_path / "out", format="executorch", **options)
    assert not (tmp_path / "out").exists()
