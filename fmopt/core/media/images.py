"""Image files: made of arrays, made up, as thumbnails in a page, and checked."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmopt.edge.image import FORMATS, MOST_PIXELS

THUMBNAIL = 96  # pixels of the longer edge
UNKNOWN = 255  # a pixel of a map of classes that is not judged, as in Pascal VOC and Cityscapes; losses leave it out


def png_file(array: np.ndarray, row: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file of uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. ValueError for any other array."""
    from PIL import Image

    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if flat.dtype != np.uint8 or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))):
        raise ValueError(f"is an array {array.dtype}{list(array.shape)}; an image is uint8 [H, W] or [H, W, 3]")
    written = io.BytesIO()
    Image.fromarray(flat).save(written, "PNG", compress_level=1)
    return written.getvalue()


def problem(value: Any) -> str | None:
    """What is wrong with an image file, as far as its beginning tells; None when nothing is."""
    from PIL import Image

    if not isinstance(value, bytes):
        return f"is {str(value)[:40]!r}, no image; give files, their bytes or their paths"
    try:
        with Image.open(io.BytesIO(value), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                return f"has {image.width} × {image.height} pixels; the most is {MOST_PIXELS:,}: make it smaller"
    except Exception:  # each of Pillow's readers raises others
        return f"is no image that can be read ({len(value)} bytes that begin with {value[:8]!r}); remove or mend it"
    return None


def class_map(value: Any) -> np.ndarray:
    """uint8 [H, W] of class numbers: an image file of one channel (its palette is not looked at), as masks are kept.
    ValueError for any other."""
    from PIL import Image

    given = problem(value)
    if given:
        raise ValueError(given)
    image = Image.open(io.BytesIO(value))
    if image.mode not in ("L", "P", "1"):
        raise ValueError(f"is an image of mode {image.mode}; a mask has one channel, whose values are class numbers")
    return np.asarray(image if image.mode != "1" else image.convert("L").point(bool), dtype=np.uint8)


def resized_map(classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map of class numbers uint8 [H, W] brought to another size, each pixel that of its nearest one."""
    from PIL import Image

    return np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))


def thumbnail(sample: bytes) -> str:
    """A data URI of the image, as PNG, at most THUMBNAIL wide and high."""
    from fmopt.edge.image import open_image

    image = open_image(sample)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return "data:image/png;base64," + base64.b64encode(png_file(np.asarray(image))).decode("ascii")


def plain_picture(seed: str) -> bytes:
    """A made-up image with edges and gradients, another one for every seed, where no data is needed."""
    draw = np.random.default_rng(zlib.crc32(seed.encode()))
    coarse = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return png_file(np.kron(coarse, np.ones((28, 28, 1), dtype=np.uint8)))
