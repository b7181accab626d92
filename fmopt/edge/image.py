"""Images of a bundle: files → arrays, outputs → predictions, predictions → people. Needs numpy and Pillow alone.

A raw is the bytes of an image file. A pipeline says under "image" what becomes of it, each None where that step is left
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import file_bytes
from .parts import CHANGE, EdgeError, cosine_distance, present_scores

Pipeline = Mapping[str, Any]
DETECTION, SEGMENTATION, FEATURES = "object-detection", "image-segmentation", "image-feature-extraction"
MOST_PIXELS = 50_000_000  # 24-bit: 150 MB; what any camera makes is smaller
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # others are read by code that few look after
MOST_BOXES, LEAST_SCORE = 100, 0.01  # of a image, as COCO judges; scores below it are of no use to anyone


@dataclass
class Batch:
    """Encoded images, one row each: `inputs` hold pixel_values float32 [images, 3, height, width]."""

    inputs: dict[str, np.ndarray]
    owner: list[int]  # row -> index of its raw
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
    """float32 [3, height, width] of a image, after the steps of a pipeline."""
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
    """(height, width) that a image of `height` × `width` is brought to."""
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
    """One prediction per sample: a classification gives logits float32 (classes,), image-segmentation a map of class numbers
    uint8 (uint16 where there are more than 256) (height, width) in the size of the image, object-detection boxes float32
    (n, 6), the best first: class, score, x1, y1, x2, y2 in pixels of the image; image-feature-extraction a vector float32
    (dim,) of length one."""
    if pipeline["task"] == FEATURES:
        vectors = np.asarray(outputs["pooler_output"], dtype=np.float32)
        return list(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
    logits = np.asarray(outputs["logits"], dtype=np.float32)
    if pipeline["task"] == DETECTION:
        boxes = np.asarray(outputs["pred_boxes"], dtype=np.float32)
        several = logits.shape[-1] == len(pipeline["labels"])
        return [detections(*each, several) for each in zip(logits, boxes, batch.sizes, strict=True)]
    if pipeline["task"] == SEGMENTATION:
        pairs = zip(logits, batch.sizes, strict=True)
        kind = np.uint8 if logits.shape[1] <= 256 else np.uint16
        return [upsampled(each, *size).argmax(axis=0).astype(kind) for each, size in pairs]
    return list(logits)


def detections(logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], several: bool) -> np.ndarray:
    """float32 (n, 6) of logits [queries, classes] and boxes [queries, 4] (middle, width and height as shares of the image).

    DETR and YOLOS give each query one class, the last of which is "nothing"; with `several`, each class of each query is a
    detection of its own, as in RT-DETR.
    """
    if several:
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        query, number = (part.ravel() for part in np.indices(scores.shape))
        score = scores.ravel()
    else:
        shares = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        shares = (shares / shares.sum(axis=-1, keepdims=True))[:, :-1]
        query, number, score = np.arange(len(shares)), shares.argmax(axis=-1), shares.max(axis=-1)
    best = np.argsort(-score, kind="stable")[:MOST_BOXES]
    best = best[score[best] >= LEAST_SCORE]
    middle, half = boxes[query[best], :2], boxes[query[best], 2:] / 2
    height, width = size
    corners = np.concatenate([middle - half, middle + half], axis=1) * np.array([width, height] * 2, dtype=np.float32)
    return np.column_stack([number[best], score[best], corners]).astype(np.float32)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), as x1, y1, x2, y2."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(part[:, 2:] - part[:, :2], 0, None).prod(axis=-1) for part in (first, second)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))


def upsampled(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [C, height, width] of maps [C, h, w] by linear interpolation between the middles of their pixels, as torch's
    interpolate does without align_corners."""
    return _stretched(_stretched(maps, 1, height), 2, width)


def _stretched(maps: np.ndarray, axis: int, size: int) -> np.ndarray:
    had = maps.shape[axis]
    at = np.maximum((np.arange(size, dtype=np.float32) + 0.5) * (had / size) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), had - 1)
    high = np.minimum(low + 1, had - 1)
    share = (at - low).astype(np.float32).reshape([-1 if place == axis else 1 for place in range(3)])
    return maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share


def difference(written: Any, got: np.ndarray) -> float:
    """Largest absolute difference of logits; of class maps the share of pixels that have another class; of boxes the largest
    change of a score, a box that moved counting as its score times the part that is not shared."""
    before = np.asarray(written, dtype=np.float64)
    if got.ndim == 2 and got.dtype.kind == "f":
        sides = before.reshape(-1, 6), got.astype(np.float64).reshape(-1, 6)
        return max(_moved(*sides), _moved(*sides[::-1]))
    if before.shape != got.shape:
        return float("inf")
    gap = np.abs(before - got)
    if got.ndim == 2:
        return float((gap > 0).mean())
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def _moved(boxes: np.ndarray, others: np.ndarray) -> float:
    """The largest gap of a box to the other that is most like it; one alone counts as much as its score."""
    gaps = boxes[:, 1].copy()
    if len(boxes) and len(others):
        scores = np.abs(boxes[:, None, 1] - others[None, :, 1])
        away = boxes[:, None, 1] * (1 - overlaps(boxes[:, 2:], others[:, 2:]))
        alike = boxes[:, None, 0] == others[None, :, 0]
        gaps = np.minimum(gaps, np.where(alike, np.maximum(scores, away), np.inf).min(axis=1))
    return float("inf") if np.isnan(gaps).any() else float(gaps.max(initial=0.0))


def answer(model: Any, samples: Sequence[bytes], threshold: float | None = None) -> list[Any]:
    """What people read for each image. `threshold` is the least score of a box that is told, by default the pipeline's.
    ValueError where nothing is told by boxes, or when it is no share."""
    pipeline = model.pipeline
    if threshold is not None:
        if pipeline["task"] != DETECTION:
            raise ValueError(f"{pipeline['task']} has no threshold; leave it out")
        if not 0 <= threshold <= 1:
            raise ValueError(f"a threshold of {threshold:g} is no share; give one from 0 to 1")
        pipeline = {**pipeline, "threshold": threshold}
    return [present(pipeline, got, sample) for got, sample in zip(model.predict(samples), samples, strict=True)]


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside images."""
    parser.add_argument("--threshold", type=float, help="of object detection: the least score of a box to tell (0.5)")


def options_of(asked: Any) -> dict[str, Any]:
    """The wishes in parsed arguments."""
    return {} if asked.threshold is None else {"threshold": asked.threshold}


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden predictions are compared by: vectors, maps of classes and boxes, or logits."""
    if pipeline["task"] == "image-feature-extraction":
        return "cosine distance", cosine_distance
    maps = pipeline["task"] in ("image-segmentation", "object-detection")
    return ("difference", difference) if maps else CHANGE


def present(pipeline: Pipeline, prediction: np.ndarray, sample: bytes, preprocessor: Any = None) -> Any:
    """A prediction as JSON for people: {"label", "score", "scores"}, or of a map {"size": [height, width], "segments"} with
    the "label", the "share" of the image and the "mask" of every class that is there. A mask is written as COCO does: how
    many pixels are out, in, out … going down its columns. Of boxes a list of {"label", "score", "box"}, the box as {"xmin",
    "ymin", "xmax", "ymax"} in pixels, as transformers' pipeline gives them. Of a vector a list."""
    if pipeline["task"] == FEATURES:
        return [float(value) for value in prediction]
    if pipeline["task"] == DETECTION:
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {"label": pipeline["labels"][int(row[0])], "score": row[1], "box": dict(zip(corners, row[2:], strict=True))}
            for row in prediction.tolist()
            if row[1] >= pipeline["threshold"]
        ]
    if pipeline["task"] == SEGMENTATION:
        segments = [
            {"label": pipeline["labels"][number], "share": float((prediction == number).mean()),
             "mask": _run_lengths(prediction == number)}
            for number in np.unique(prediction).tolist()
        ]  # fmt: skip
        return {"size": list(prediction.shape), "segments": segments}
    if pipeline.get("independent"):  # SigLIP: how well each label fits, whatever the others do
        shares = 1 / (1 + np.exp(-prediction.astype(np.float64)))
    else:
        shares = np.exp(prediction.astype(np.float64) - prediction.max())
        shares /= shares.sum()
    return present_scores(pipeline["labels"], shares.tolist())


def _run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs
