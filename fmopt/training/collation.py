"""Items to padded batches of tensors, with the augmentations of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from fmopt.core.media import images
from fmopt.training.examples import IGNORED, Example, Masking

LEAST_SEEN = 0.3  # of a box, for it to be asked for in an image that was shifted


AUGMENTATIONS = ("shift", "mirror")  # what `augmented` does


@dataclass(frozen=True)
class Collator:
    """Examples → one padded batch; what the loss must not see is IGNORED."""

    padding: Mapping[str, Any]  # that of a tokenizer; empty for images and audio
    masking: Masking | None = None  # for examples that are whole texts
    augment: tuple[str, ...] = ()  # what is done to images: see `augmented`

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tensors of [B] or [B, tokens] by name; labels that are boxes as a list of dicts."""
        if self.masking is not None or self.augment:
            # torch's generator, because the Trainer saves and restores it: a resumed run draws as an undisturbed one
            draw = np.random.default_rng(int(torch.randint(2**31, (1,))))
            if self.masking is not None:
                examples = [self.masking.masked(example, draw) for example in examples]
            if self.augment:
                examples = [augmented(example, self.augment, draw) for example in examples]
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        return {name: self._joined(name, parts) for name, parts in columns.items()}

    def _joined(self, name: str, values: list[Any]) -> Any:
        if isinstance(values[0], dict):  # boxes: each image has its own number of them
            return [{key: torch.as_tensor(value) for key, value in given.items()} for given in values]
        parts = [torch.as_tensor(value) for value in values]
        if all(part.shape == parts[0].shape for part in parts):
            return torch.stack(parts)
        fills: dict[str, Any] = {
            "input_ids": self.padding.get("id"), "token_type_ids": self.padding.get("type_id"), "attention_mask": 0,
            "labels": IGNORED, "input_values": 0.0, "position_ids": 0,
        }  # fmt: skip
        side = self.padding.get("side", "right")
        return pad_sequence(parts, batch_first=True, padding_value=fills[name], padding_side=side)


def augmented(example: Example, ways: Sequence[str], draw: np.random.Generator) -> Example:
    """The example of an image as one of another image of the same: "mirror" every second one, "shift" by up to an eighth
    of its size (He et al., 2016, for CIFAR-10). Where nothing is, pixels are 0 and classes of pixels are not known; boxes
    go along, and one of which less than LEAST_SEEN is left is not asked for."""
    changed = {"pixel_values": example["pixel_values"]}
    given = example.get("labels", 0)
    if not isinstance(given, dict) and np.ndim(given) == 2:
        changed["labels"] = example["labels"]
    mirror = "mirror" in ways and draw.random() < 0.5
    height, width = example["pixel_values"].shape[1:]
    room = (height // 8, width // 8) if "shift" in ways else (0, 0)
    top, left = (int(draw.integers(0, 2 * most + 1)) for most in room)
    for name, values in changed.items():
        sides = [(0, 0)] * (values.ndim - 2) + [(most, most) for most in room]
        padded = np.pad(values, sides, constant_values=0 if name == "pixel_values" else images.UNKNOWN)
        moved = padded[..., top : top + height, left : left + width]
        changed[name] = np.ascontiguousarray(moved[..., ::-1] if mirror else moved)
    if isinstance(given, dict):
        away = np.array([(left - room[1]) / width, (top - room[0]) / height], dtype=np.float32)
        changed["labels"] = _moved_boxes(given, away, mirror)
    return {**example, **changed}


def _moved_boxes(given: Mapping[str, np.ndarray], away: np.ndarray, mirror: bool) -> dict[str, np.ndarray]:
    """Boxes (n, 4) of middle and size, in shares of an image whose pixels moved by `away` (x, y) to the left and up."""
    middle, half = given["boxes"][:, :2] - away, given["boxes"][:, 2:] / 2
    low, high = (np.clip(side, 0, 1) for side in (middle - half, middle + half))
    if mirror:
        low, high = (np.stack([1 - a[:, 0], b[:, 1]], axis=1) for a, b in ((high, low), (low, high)))
    left = (high - low).prod(axis=1) >= LEAST_SEEN * given["boxes"][:, 2:].prod(axis=1)
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1)[left].astype(np.float32)
    return {"class_labels": given["class_labels"][left], "boxes": boxes}


@contextmanager
def only_to_find(net: Any, inputs: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """While entered, a masked language model makes logits [K, V] only for the K tokens that `inputs` label; yields the inputs
    with labels [K]. The loss is the same, and its largest product and its memory a seventh."""
    wanted = inputs["labels"] != IGNORED
    handle = net.get_output_embeddings().register_forward_pre_hook(lambda module, given: (given[0][wanted],))
    try:
        yield {**inputs, "labels": inputs["labels"][wanted]}
    finally:
        handle.remove()
