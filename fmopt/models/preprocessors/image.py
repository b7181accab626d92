"""A checkpoint's image processor: what it does to an image, in the words that edge/image.py works by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError

PROCESSOR = "preprocessor_config.json"
FIXED_SIZE = ("vit", "deit", "clip_vision_model", "siglip_vision_model")


def read_image_processor(folder: Path, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes: inputs, their axes, and how an image becomes one.

    "image" holds, each None where that step is left out: resize {"height", "width"} or {"shortest_edge"}, resample
    (Pillow's number), crop [height, width], rescale (a factor), mean and std. CheckpointError when there is no processor,
    or when it makes images of another size than the network takes.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        raise CheckpointError(f"{folder} has no image processor (no {PROCESSOR}); copy the file there")
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
        raise CheckpointError(f"{folder}: the network takes {channels} channels; fmopt makes images of 3 (RGB)")
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
    size = _sizes(getattr(settings, "size", None)) if settings.do_resize else None
    crop = _sizes(getattr(settings, "crop_size", None)) if getattr(settings, "do_center_crop", False) else None
    cropped = [crop["height"], crop["width"]] if crop else None
    share = getattr(settings, "crop_pct", None)
    if size and share and "shortest_edge" in size:  # ConvNeXT: enlarged and cut back below 384, squeezed from there on
        edge = size["shortest_edge"]
        size = {"shortest_edge": int(edge / share)} if edge < 384 else {"height": edge, "width": edge}
        cropped = [edge, edge] if edge < 384 else None
    return {
        "resize": size,
        "resample": None if size is None else int(getattr(settings, "resample", 2)),
        "crop": cropped,
        "rescale": float(settings.rescale_factor) if settings.do_rescale else None,
        "mean": [float(value) for value in settings.image_mean] if settings.do_normalize else None,
        "std": [float(value) for value in settings.image_std] if settings.do_normalize else None,
    }


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
