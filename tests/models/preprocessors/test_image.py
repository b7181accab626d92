"""Image processors of many kinds: a bundle's pixels are the processor's own, or the checkpoint is refused in one line."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from fmopt.core.errors import CheckpointError
from fmopt.edge.image import open_image, pixel_values
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.image import KNOWN, read_image_processor

SQUARE = {"height": 40, "width": 40}
KINDS: dict[str, dict[str, Any]] = {
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 44}, "crop_size": SQUARE},
    "mobilevit rgb": {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 44}, "crop_size": SQUARE,
                      "do_flip_channel_order": False},
    "levit": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": {"height": 48, "width": 48}, "crop_size": SQUARE,
             "do_center_crop": True},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 40}, "crop_size": SQUARE,
                   "crop_pct": 0.8},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 40}, "crop_pct": 0.8},
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE, "rescale_offset": True,
                     "rescale_factor": 1 / 127.5, "image_std": [0.4, 0.5, 0.6]},
    "efficientnet bare": {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE, "include_top": False},
    "mobilenet v2": {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 44}, "crop_size": SQUARE},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "nearest": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 0},
    "lanczos": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 1},
    "box": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 4},
    "other scale": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "rescale_factor": 1 / 128},
    "dpt": {"image_processor_type": "DPTImageProcessor", "size": SQUARE, "keep_aspect_ratio": False},
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "perceiver": {"image_processor_type": "PerceiverImageProcessor", "size": {"height": 32, "width": 40}, "crop_size": SQUARE},
    "dpt in proportion": {"image_processor_type": "DPTImageProcessor", "size": SQUARE, "keep_aspect_ratio": True,
                          "ensure_multiple_of": 8},
}  # fmt: skip


class Config:
    """As much of a configuration as a processor is checked against."""

    model_type, num_channels = "swin", 3


def steps_of(folder: Path, written: dict[str, Any]) -> dict[str, Any]:
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return dict(read_image_processor(CheckpointFiles.of(folder), Config)["image"])


def file_of(array: np.ndarray, kind: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, kind)
    return written.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_the_processor_s_own(name: str, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, KINDS[name])
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    draw = np.random.default_rng(1)
    for height, width in ((70, 51), (33, 120), (16, 16)):
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3)).astype(np.uint8))
        wanted = theirs(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values(image, steps), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"fmopt does not make of images what a |makes images of different"
    ) as error:
        steps_of(tmp_path, REFUSED[name])
    assert "\n" not in str(error.value)


def test_a_step_that_is_not_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = transformers.ViTImageProcessorPil
    monkeypatch.setattr(kind, "rescale", lambda self, image, scale, **more: image.astype(np.float32) * scale * 0.9)
    with pytest.raises(CheckpointError, match=r"its values differ by up to 0\.\d+, with a mean of"):
        steps_of(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": SQUARE})


def test_pictures_of_more_bits_are_the_same_pictures() -> None:
    grey = np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)
    plain = np.asarray(open_image(file_of(grey)))
    assert (np.asarray(open_image(file_of(grey.astype(np.uint16) * 257))) == plain).all()
    assert (np.asarray(open_image(file_of(grey.astype(np.float32) / 255, "TIFF"))) == plain).all()
    assert (np.asarray(open_image(file_of(grey.astype(np.float32), "TIFF"))) == plain).all()
    assert (np.asarray(open_image(file_of(grey.astype(np.int32) * 257, "TIFF"))) == plain).all()
    with pytest.raises(ValueError, match=r"its greys go up to 1e\+09; save it with 8 or 16 bits"):
        open_image(file_of(np.full((4, 4), 1e9, np.float32), "TIFF"))


def test_what_is_transparent_is_read_as_transformers_reads_it() -> None:
    clear = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    sample = file_of(clear)
    wanted = transformers.image_utils.load_image(Image.open(io.BytesIO(sample))).convert("RGB")
    assert (np.asarray(open_image(sample)) == np.asarray(wanted)).all()


@pytest.mark.parametrize("name", KINDS)
def test_no_key_of_a_processor_is_dropped_without_a_word(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers saves it, with all that its class knows."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(KINDS[name]))
    transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    with caplog.at_level(logging.WARNING):
        steps_of(tmp_path, {**written, "from_nowhere": 3})
    told = {key for key in written if f"{key} is left out" in caplog.text}
    assert set(written) - KNOWN == told
    assert "from_nowhere is left out" in caplog.text
