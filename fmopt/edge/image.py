"""Images of a bundle: files → arrays; of image classification also outputs → predictions → people. Needs numpy and Pillow alone.

A sample is the bytes of an image file. A pipeline says under "image" what becomes of it, each None where that step is left
out, in this order:
    resize       {"height", "width"}, or {"shortest_edge"} with the other edge in proportion
    resample     how Pillow interpolates (2 bilinear, 3 bicubic)
    crop         [height, width], cut from the middle; filled up with black where the image is smaller
    rescale      a factor, by which bytes become numbers; offset, what is added to them then
    mean, std    of red, green and blue; divide, by which they are divided once more (EfficientNet)
    flip         true: blue, green and red, in this order (MobileViT)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError
from .files import file_bytes
from .parts import present_classes

Pipeline = Mapping[str, Any]
MOST_PIXELS = 50_000_000  # 24-bit: 150 MB; what any camera makes is smaller
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others are read by code that few look after


@dataclass
class Batch:
    """Encoded images, one row each: `inputs` hold pixel_values float32 [images, 3, height, width]."""

    inputs: dict[str, np.ndarray]
    owner: list[int]  # row -> index of its sample
    sizes: list[tuple[int, int]]  # (height, width) of the images as they came
    mask: np.ndarray | None = None  # nothing is padded


class Preprocessor:
    """Makes of image files what the checkpoint's own Hugging Face image processor makes of them."""

    def __init__(self, folder: Path, pipeline: Pipeline):
        self.pipeline = pipeline

    def encode(self, samples: Sequence[bytes], length: int | None = None) -> Batch:
        """Arrays of the samples; images have no `length`. ValueError on a sample that is no image."""
        images, sizes = [], []
        for index, sample in enumerate(samples):
            try:
                image = open_image(sample)
            except ValueError as error:
                raise ValueError(f"item {index + 1}: {error}" if len(samples) > 1 else str(error)) from error
            sizes.append((image.height, image.width))
            images.append(pixel_values(image, self.pipeline["image"]))
        return Batch({"pixel_values": np.stack(images)}, list(range(len(samples))), sizes)


def read_sample(text: str) -> bytes:
    """The file that an argument of the command names."""
    try:
        return file_bytes(Path(text))
    except EdgeError as error:
        raise ValueError(f"{error}; give the path of an image") from error


def open_image(sample: Any) -> Any:
    """An image as a Pillow image of red, green and blue, 8 bits each, upright; what is transparent has the colour that lies
    under it, as transformers reads it. ValueError when it is none."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError("Pillow is not installed here; pip install pillow") from error
    if not isinstance(sample, bytes | bytearray):
        raise ValueError(f"{str(sample)[:60]!r} is not an image; give the bytes of an image file")
    try:
        image: Any = Image.open(io.BytesIO(sample), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"an image of {image.width} × {image.height} pixels is too large; the most is {MOST_PIXELS:,}"
            )
        image = ImageOps.exif_transpose(image)
        image.load()
    except Exception as error:  # each of Pillow's readers raises others for bad files
        if str(error).startswith("an image of "):
            raise
        begins = bytes(sample[:8])
        raise ValueError(
            f"{len(sample)} bytes that begin with {begins!r} are no image that can be read; give a PNG or JPEG file"
        ) from error
    return in_bytes(image).convert("RGB")


def in_bytes(image: Any) -> Any:
    """A Pillow image whose greys may have 16 or 32 bits, or be floats, as one of 8 bits: Pillow itself cuts them off at 255.
    ValueError for greys that are no shares of one, and go beyond 16 bits."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    highest = float(values.max(initial=0.0)) if np.isfinite(values).all() else np.inf
    if highest > 65535:
        raise ValueError(f"its greys go up to {highest:g}; save it with 8 or 16 bits")
    if image.mode == "F" and highest <= 1:
        values *= 255
    elif image.mode.startswith("I;16") or highest > 255:
        values /= 257  # 65535 is white
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def pixel_values(image: Any, steps: Mapping[str, Any]) -> np.ndarray:
    """float32 [3, height, width] of an image, after the steps of a pipeline."""
    if steps["resize"]:
        height, width = _resized(image.height, image.width, steps["resize"])
        image = image.resize((width, height), resample=steps["resample"])
    pixels = np.asarray(image)
    if steps["crop"]:
        pixels = _cropped(pixels, *steps["crop"])
    values: Any = pixels.astype(np.float32)
    if steps["rescale"] is not None:
        values = (pixels.astype(np.float64) * steps["rescale"]).astype(np.float32)
    if steps.get("offset"):
        values = values + np.float32(steps["offset"])
    if steps["mean"] is not None:
        values = (values - np.array(steps["mean"], dtype=np.float32)) / np.array(steps["std"], dtype=np.float32)
    if steps.get("divide") is not None:
        values = values / np.array(steps["divide"], dtype=np.float32)
    if steps.get("flip"):
        values = values[:, :, ::-1]
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _resized(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) that an image of `height` × `width` is brought to."""
    if "height" in size:
        return size["height"], size["width"]
    short, long = min(height, width), max(height, width)
    edges = size["shortest_edge"], int(size["shortest_edge"] * long / short)
    return edges if height <= width else (edges[1], edges[0])


def _cropped(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle [height, width, 3] of [H, W, 3]; black around a smaller image."""
    missing = [max(0, wanted - had) for wanted, had in zip((height, width), pixels.shape, strict=False)]
    if any(missing):
        before = [-(-gap // 2) for gap in missing]
        pixels = np.pad(pixels, [*((lead, gap - lead) for lead, gap in zip(before, missing, strict=True)), (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[bytes]
) -> list[np.ndarray]:
    """One prediction per sample: logits float32 (classes,)."""
    return list(np.asarray(outputs["logits"], dtype=np.float32))


def present(pipeline: Pipeline, prediction: np.ndarray, sample: bytes, preprocessor: Any = None) -> Any:
    """A prediction as JSON for people: {"label", "score", "scores"}, with "labels" above one half when several may hold."""
    return present_classes(pipeline, prediction)
