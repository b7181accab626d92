"""Networks that find masks by queries go the road of segmentation: a map for every image, as transformers makes it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fmopt
from fmopt.core.media.images import UNKNOWN
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.workflow import export, finetune
from tests.vision_models import NAMES, image, write_maskformer, write_squares
from tests.without_torch import run_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_maskformer(tmp_path_factory.mktemp("maskformer") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"))


def told_by_transformers(folder, sample):
    """The map that transformers' own processor makes of its own network's queries, and how far ahead each pixel's class is."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = transformers.AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    image = Image.open(io.BytesIO(sample)).convert("RGB")
    with torch.inference_mode():
        out = net(pixel_values=processor(image, return_tensors="pt")["pixel_values"])
    sizes = [(image.height, image.width)]
    (found,) = processor.post_process_semantic_segmentation(out, target_sizes=sizes, return_segmentation_scores=True)
    first, second = found.segmentation_scores.topk(2, dim=0).values
    return found.segmentation.numpy(), (first - second).numpy()


def test_maskformer_works_end_to_end(tiny, tmp_path, data):
    """Exported and compared with torch, bundled; what run.py says without torch is the map of transformers."""
    metadata = checkpoint.inspect(resolve(str(tiny)))
    assert (metadata.task, metadata.modality, metadata.pipeline["labels"]) == ("image-segmentation", "image", NAMES)
    out = export.export(tiny, tmp_path / "out", data=data)
    shown = image(7, size=(50, 40))
    (tmp_path / "seen.png").write_bytes(shown)
    wanted, ahead = told_by_transformers(tiny, shown)
    (got,) = fmopt.load(out).predict([shown])
    clear = ahead > 2e-3  # the graph's scores are within 1e-3
    assert clear.mean() > 0.8
    assert len(np.unique(wanted[clear])) > 1
    np.testing.assert_array_equal(got[clear], wanted[clear])
    said = run_bundle(out, "predict", "--json", str(tmp_path / "seen.png"))
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout)
    assert answer["size"] == [40, 50]
    shares = {segment["label"]: segment["share"] for segment in answer["segments"]}
    assert shares == {NAMES[n]: pytest.approx((got == n).mean()) for n in np.unique(got)}


def test_finetuning_learns_masks_from_maps(tiny, tmp_path, data):
    record = finetune.finetune(
        tiny, data, tmp_path / "ckpt", task="image-segmentation", epochs=4, batch=4, learning_rate=1e-3
    )
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert record["metric"] == "Dice"
    assert losses[-1] < 0.8 * losses[0]
    metadata = checkpoint.inspect(resolve(str(tmp_path / "ckpt")))
    assert (metadata.architecture, metadata.pipeline["labels"]) == (
        "MaskFormerForInstanceSegmentation",
        ["LABEL_0", "LABEL_1"],
    )


def test_pixels_that_are_not_judged_teach_nothing(tiny):
    net = checkpoint.load(checkpoint.inspect(resolve(str(tiny)))).net
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, :8] = 2
    unknown = torch.where(labels == 2, UNKNOWN, labels)
    alone = net(pixels, labels=unknown).loss
    assert torch.isfinite(alone)
    assert alone != net(pixels, labels=labels).loss
