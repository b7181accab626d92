"""A checkpoint's image processor: what it does to an image, in the words that edge/image.py works by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.edge.image import pixel_values
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.left_out import tell_unknown

PROCESSOR = "preprocessor_config.json"
# What is read here, what decides nothing about a picture's values, and what is of training or of other calls.
KNOWN = frozenset((
    "image_processor_type", "feature_extractor_type", "processor_class", "do_resize", "size", "resample", "do_center_crop",
    "crop_size", "crop_pct", "do_rescale", "rescale_factor", "rescale_offset", "include_top", "do_normalize", "image_mean",
    "image_std", "do_flip_channel_order", "do_convert_rgb", "do_reduce_labels", "reduce_labels", "do_convert_annotations",
    "format", "data_format", "input_data_format", "default_to_square", "return_tensors", "device", "disable_grouping",
    "_valid_processor_keys", "do_pad", "pad_size", "ignore_index", "num_labels", "keep_aspect_ratio", "ensure_multiple_of",
    "size_divisor", "size_divisibility", "pad_val", "image_seq_length", "backend", "use_fast", "max_size",
))  # fmt: skip
# (width, height) of what a processor is tried on: both ways round, smaller and larger than what networks take, very wide.
TRIED = ((140, 90), (37, 53), (9, 7), (300, 20), (260, 400))
SAME_PIXEL = 1e-4  # of values around one; a byte that is rounded otherwise is 1 / 255 over a deviation
FIXED_SIZE = ("vit", "deit", "clip_vision_model", "siglip_vision_model")


def read_image_processor(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes: inputs, their axes, and how an image becomes one.

    "image" holds the steps, see edge/image.py. They are tried: CheckpointError when there is no processor, when it does something
    else than these steps, or when it makes images of another size than the network takes.
    """
    path = files.folder / PROCESSOR
    if not path.is_file():
        raise CheckpointError(f"{files.folder} has no image processor (no {PROCESSOR}); copy the file there")
    settings = _processor(path)
    steps = _steps(settings)
    channels = int(getattr(config, "num_channels", 3))
    height, width = _made_size(steps) or (None, None)
    wanted = _network_size(config)
    if wanted and height and (height, width) != wanted:
        raise CheckpointError(
            f"{path} makes images of {height} × {width} and the network takes {wanted[0]} × {wanted[1]}; copy the file "
            "that this checkpoint was trained with"
        )
    if height is None:
        raise CheckpointError(
            f"{path} makes images of different sizes (size {steps['resize']}); write a size with a height and a width there"
        )
    if channels != 3:
        raise CheckpointError(f"{files.folder}: the network takes {channels} channels; fmopt makes images of 3 (RGB)")
    _require_same_pixels(settings, steps, path)
    tell_unknown(path, files.read(path), KNOWN)
    axes = ["batch", channels, height, width]
    return {"inputs": ["pixel_values"], "axes": {"pixel_values": axes}, "image": steps}


def _processor(path: Path) -> Any:
    """The processor as transformers makes it, its class's defaults filled in; the one that works by Pillow and numpy."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # each processor class fails in its own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be used: {first[:200]}") from error


def _steps(settings: Any) -> dict[str, Any]:
    """What the processor does, in order."""
    kind = type(settings).__name__
    size = _sizes(getattr(settings, "size", None)) if settings.do_resize else None
    crop = _sizes(getattr(settings, "crop_size", None)) if getattr(settings, "do_center_crop", False) else None
    cropped = [crop["height"], crop["width"]] if crop else None
    if size and "shortest_edge" in size:
        edge, share = size["shortest_edge"], getattr(settings, "crop_pct", None)
        if kind.startswith("Levit"):
            size = {"shortest_edge": int(256 / 224 * edge)}
        elif share and kind.startswith("PoolFormer"):
            size = {"shortest_edge": int(edge / share)}
        elif share:  # ConvNeXT: enlarged and cut back below 384, squeezed from there on
            size = {"shortest_edge": int(edge / share)} if edge < 384 else {"height": edge, "width": edge}
            cropped = [edge, edge] if edge < 384 else None
    rescale = float(settings.rescale_factor) if settings.do_rescale else None
    steps: dict[str, Any] = {
        "resize": size,
        "resample": None if size is None else int(getattr(settings, "resample", 2)),
        "crop": cropped,
        "rescale": rescale,
        "mean": [float(value) for value in settings.image_mean] if settings.do_normalize else None,
        "std": [float(value) for value in settings.image_std] if settings.do_normalize else None,
    }
    if getattr(settings, "do_flip_channel_order", False):
        steps["flip"] = True
    if rescale is not None and getattr(settings, "rescale_offset", False):
        steps["offset"] = -1.0
    if kind.startswith("EfficientNet") and getattr(settings, "include_top", False):
        steps["divide"] = [float(value) for value in settings.image_std]
    return steps


def _require_same_pixels(settings: Any, steps: dict[str, Any], path: Path) -> None:
    """CheckpointError unless the steps make of images what the processor itself makes of them."""
    from PIL import Image

    draw = np.random.default_rng(0)
    tried = 0
    for width, height in TRIED:
        y, x = np.mgrid[:height, :width]
        smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
        pixels = np.clip(smooth + draw.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        try:
            wanted = np.asarray(settings(image, return_tensors="np")["pixel_values"][0], dtype=np.float64)
        except Exception:  # a size that the processor itself cannot take; each class says so in its own way
            continue
        got = pixel_values(image, steps).astype(np.float64)
        gap = np.abs(got - wanted).max() if got.shape == wanted.shape else np.inf
        if not gap <= SAME_PIXEL * max(1.0, float(np.abs(wanted).max())):
            shown = (
                f"its values differ by up to {gap:.3g}, with a mean of {wanted.mean():.3g} where fmopt's is {got.mean():.3g}"
                if got.shape == wanted.shape else f"it makes {list(wanted.shape)} where fmopt makes {list(got.shape)}"
            )  # fmt: skip
            raise CheckpointError(
                f"{path}: fmopt does not make of images what a {type(settings).__name__} with these settings makes: of one of "
                f"{width} × {height} {shown}; a bundle would answer otherwise than the checkpoint"
            )
        tried += 1
    if not tried:
        raise CheckpointError(
            f"{path}: its {type(settings).__name__} makes nothing of plain images; correct its settings"
        )


def _sizes(settings: Any) -> dict[str, int] | None:
    """A size as the keys it has; transformers keeps all of them, most of them None."""
    items = dict(settings or {})
    return {key: int(value) for key, value in items.items() if value} or None


def _made_size(steps: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of what every image becomes; None where that depends on the image."""
    if steps["crop"]:
        return steps["crop"][0], steps["crop"][1]
    size = steps["resize"] or {}
    return (size["height"], size["width"]) if "height" in size else None


def _network_size(config: Any) -> tuple[int, int] | None:
    """(height, width) that the position table of a network was made for; None where it takes any."""
    if config.model_type not in FIXED_SIZE:  # others interpolate their positions, or have none
        return None
    size = config.image_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
