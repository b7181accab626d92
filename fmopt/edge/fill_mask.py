"""A text with masks to the tokens that belong there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import EdgeError, shorten
from .parts import Pipeline, Sample, moved_probability
from .text import Batch, named_outputs

FILLS = 5  # tokens shown for a mask, as transformers' pipeline does


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[Sample]
) -> list[np.ndarray]:
    """Log-probabilities float32 (masks, vocabulary) per sample. EdgeError for a text without any mask."""
    logits = named_outputs(pipeline, outputs)[0]
    return [_fills(*row, pipeline) for row in zip(logits, batch.inputs["input_ids"], samples, strict=True)]


def _fills(logits: np.ndarray, ids: np.ndarray, sample: Sample, pipeline: Pipeline) -> np.ndarray:
    """Log-probabilities (masks, vocabulary) at the masks of one row of ids."""
    mask = pipeline["mask"]
    at = ids == mask["id"]
    if not at.any():
        raise EdgeError(
            f"{shorten(sample)!r} has no {mask['token']} among the {pipeline['max_length']} tokens that are read; write "
            f"{mask['token']} where a word is wanted"
        )
    shifted = logits[at] - logits[at].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden log-probabilities are compared by."""
    return "probability moved", moved_probability


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Sample, preprocessor: Any = None) -> Any:
    """A list of {"score", "token", "token_str", "sequence"}, or one such list for each of several masks, as transformers'
    fill-mask pipeline gives; spelled by the `preprocessor` that encoded the sample."""
    ids = preprocessor.encode([sample]).inputs["input_ids"][0]
    places = np.flatnonzero(ids == preprocessor.pipeline["mask"]["id"])
    decode, single = preprocessor.tokenizer.decode, len(places) == 1  # other masks stay to be seen

    def fill(place: int, token: int, score: float) -> dict[str, Any]:
        filled = [*ids[:place].tolist(), token, *ids[place + 1 :].tolist()]
        word, text = decode([token], skip_special_tokens=False), decode(filled, skip_special_tokens=single)
        return {"score": score, "token": token, "token_str": word, "sequence": text}

    found = []
    for place, row in zip(places, prediction, strict=True):
        best = np.argsort(-row, kind="stable")[:FILLS]
        found.append([fill(int(place), int(token), float(np.exp(row[token]))) for token in best])
    return found[0] if single else found
