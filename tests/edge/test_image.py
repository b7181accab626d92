"""Pictures become what the checkpoint's own image processor makes of them; what is no image is said in one line."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from fmopt.edge import image as edge_image
from fmopt.edge import parts, text
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.image import read_image_processor
from tests.vision_models import PROCESSORS, image


class Config:
    """As much of a configuration as a processor is checked against."""

    model_type, num_channels = "swin", 3


def steps_of(folder, reported):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(reported))
    return read_image_processor(CheckpointFiles.of(folder), Config)["image"]


MORE = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 30, "width": 44}},
    "large convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "plain": {"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 50}, "do_normalize": False},
    "bytes": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
    "a crop larger than the picture": {"image_processor_type": "BitImageProcessor", "do_resize": False,
                                       "crop_size": {"height": 61, "width": 50}},
}  # fmt: skip


@pytest.mark.parametrize("name", [*PROCESSORS, *MORE])
@pytest.mark.parametrize("size", [(48, 36), (31, 77), (32, 32)])
def test_pixels_are_those_of_transformers(tmp_path, name, size):
    steps = steps_of(tmp_path, {**PROCESSORS, **MORE}[name])
    sample = image(size=size)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    wanted = theirs(Image.open(io.BytesIO(sample)), return_tensors="np")["pixel_values"][0]
    got = edge_image.pixel_values(edge_image.open_image(sample), steps)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"),
                                            ("L", "JPEG"), ("RGB", "BMP"), ("RGB", "GIF"), ("RGB", "WEBP")])  # fmt: skip
def test_every_kind_of_file_becomes_red_green_and_blue(mode, kind):
    opened = edge_image.open_image(image(mode=mode, kind=kind))
    assert (opened.mode, opened.size) == ("RGB", (48, 36))


def test_what_lies_on_its_side_is_turned():
    turned = io.BytesIO()
    upright = Image.new("RGB", (8, 4))
    exif = upright.getexif()
    exif[0x0112] = 6  # as a camera held upright writes it
    upright.save(turned, "JPEG", exif=exif)
    assert edge_image.open_image(turned.getvalue()).size == (4, 8)


@pytest.mark.parametrize(
    ("sample", "reported"),
    [
        (b"no picture", "10 bytes that begin with b'no pictu' are no image"),
        (b"", "0 bytes"),
        (image()[:200], "are no image that can be read"),  # cut off on the way
        ("a text", "'a text' is not an image; give the bytes of an image file"),
    ],
)
def test_what_is_no_image_is_said_in_one_line_that_names_the_item(tmp_path, sample, reported):
    pipeline = {"task": "image-classification", "image": steps_of(tmp_path, PROCESSORS["vit"])}
    ours = text.open_preprocessor(tmp_path, pipeline)
    with pytest.raises(parts.EdgeError) as error:
        ours.encode([sample])
    assert reported in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(parts.EdgeError, match=r"^item 2: "):
        ours.encode([image(), sample])


def test_a_file_is_read_by_its_name_and_its_answer_has_all_labels(tmp_path):
    (tmp_path / "a.png").write_bytes(image())
    assert text.read_sample({"task": "image-classification"}, str(tmp_path / "a.png")) == image()
    with pytest.raises(parts.EdgeError, match=r"b\.png cannot be read: No such file"):
        text.read_sample({"task": "image-classification"}, str(tmp_path / "b.png"))
    shown = text.present({"task": "image-classification", "labels": ["a", "b"]}, np.array([0.0, np.log(3.0)]), b"")
    assert shown == {
        "label": "b",
        "score": pytest.approx(0.75),
        "scores": {"a": pytest.approx(0.25), "b": pytest.approx(0.75)},
    }
