"""Vectors of images: each architecture's are transformers' own, run.py says them without torch, and neighbours judge them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fmopt
from fmopt.core.errors import CheckpointError, ConfigError
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import Item
from fmopt.tasks.image_feature_extraction import TASK
from fmopt.workflow import evaluate, export, finetune
from tests.vision_models import MATCHERS, image, write_matcher, write_pictures, write_vision
from tests.without_torch import run_bundle

ENCODERS = ("vit", "dinov2", "swin", "convnext")


def written(folder: Path, family: str) -> Path:
    return write_matcher(folder, family) if family in MATCHERS else write_vision(folder, family)


def by_transformers(folder: Path, sample: bytes) -> np.ndarray:
    """The vector of a image by transformers alone, of length one."""
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        Image.open(io.BytesIO(sample)).convert("RGB"), return_tensors="pt"
    )
    net = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if hasattr(net, "get_image_features"):
            reported = net.get_image_features(**pixels)
            vector = getattr(reported, "pooler_output", reported)
        else:
            reported = net(**pixels)
            # ViT's pooler is not in a classifier's checkpoint
            vector = reported.last_hidden_state[:, 0] if net.config.model_type == "vit" else reported.pooler_output
    vector = vector.flatten().numpy()
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("family", [*MATCHERS, *ENCODERS])
def test_each_architecture_gives_the_vector_that_transformers_gives(family: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "checkpoint", family)
    out = export.export(folder, tmp_path / "out", task=TASK.name)
    shown = image(7)
    (tmp_path / "seen.png").write_bytes(shown)
    got = run_bundle(out, "predict", "--json", str(tmp_path / "seen.png"))
    assert got.returncode == 0, got.stderr
    (vector,) = json.loads(got.stdout)
    wanted = by_transformers(folder, shown)
    np.testing.assert_allclose(vector, wanted, atol=1e-4)
    assert np.abs(np.array(fmopt.load(out)(image(8))) - wanted).max() > 1e-2


def test_a_network_of_pictures_and_texts_is_asked_for_labels_first(tmp_path: Path) -> None:
    """What has no other task is asked for vectors; a network of texts has none of images."""
    clip = resolve(str(write_matcher(tmp_path / "clip", "clip")))
    assert checkpoint.inspect(clip).task == "zero-shot-image-classification"
    assert checkpoint.inspect(clip, TASK.name).pipeline["labels"] == []
    plain = write_vision(tmp_path / "vit", "dinov2")
    transformers.AutoModel.from_pretrained(plain).save_pretrained(plain)
    assert checkpoint.inspect(resolve(str(plain))).task == TASK.name


def test_a_network_of_texts_has_no_vectors_of_pictures(tiny_checkpoint: Any) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "text-classification"))), TASK.name)


def test_int8_is_made_and_judged_by_neighbours(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "pictures", train=36, validation=12, test=12)
    folder = write_vision(tmp_path / "vit", "vit")
    out = export.export(folder, tmp_path / "int8", task=TASK.name, precision="int8", data=data)
    names = list(evaluate.evaluate(out, data))
    assert names[0] == "label of the nearest"
    with pytest.raises(ConfigError, match=TASK.name):
        finetune.finetune(folder, data, tmp_path / "trained", task=TASK.name)


def test_neighbours_are_counted_without_the_image_itself() -> None:
    """Three of one kind near each other, one of another kind beside them, one far away."""
    angles, labels = np.deg2rad([0, 10, 20, 24, 180]), ["a", "a", "a", "b", "b"]
    vectors = [np.array([np.cos(one), np.sin(one)]) for one in angles]
    items = [Item(n, b"", label) for n, label in enumerate(labels)]
    metadata = SimpleNamespace(pipeline={})
    first, near, cosine = TASK.scores(vectors, items, vectors, metadata)  # type: ignore[arg-type]
    assert [row[0] for row in first.values] == [1, 1, 0, 0, 1]
    assert [row[0] for row in near.values] == [0.5, 0.5, 0.5, 0.25, 0.25]
    assert (first.primary, near.primary, cosine.primary) == (True, False, False)
    unlabelled = [Item(n, b"") for n in range(5)]
    (only,) = TASK.scores(vectors, unlabelled, vectors, metadata)  # type: ignore[arg-type]
    assert (only.name, only.primary) == ("cosine to baseline", True)
