"""How far a network's outputs are from what they were, on real items: what a change inside it costs, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fmopt.core.model import Inputs, generates
from fmopt.edge.decoding import log_softmax
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.calibration.generated_answers import answering

TOKENS = 32


def distance_from_now(model: TorchModel, ctx: Context, count: int) -> Callable[[], float]:
    """A function that measures how far `model` is, when called, from what it is now: on the first `count` calibration
    items, the mean over outputs of ‖got − wanted‖² / ‖wanted‖²; for a network that generates, the Kullback-Leibler
    divergence of the next token's distribution, the mean over tokens, at most `TOKENS` of an item, for one that answers of the
    answers that it gives now."""
    items = list(islice(answering(model, ctx, count).calibration(), count))
    if generates(model.metadata.pipeline):
        return _divergence_from_now(model, items)
    wanted = _outputs(model, items)

    def now() -> float:
        got = _outputs(model, items)
        return sum(_error(a, b) for a, b in zip(got, wanted, strict=True)) / len(wanted)

    return now


def _divergence_from_now(model: TorchModel, items: Sequence[Inputs]) -> Callable[[], float]:
    wanted = [_next_tokens(model, item) for item in items]

    def now() -> float:
        total, tokens = 0.0, 0
        for item, before in zip(items, wanted, strict=True):
            before = before.astype(np.float32)
            total += float((np.exp(before) * (before - _next_tokens(model, item))).sum(dtype=np.float64))
            tokens += len(before)
        return total / tokens

    return now


def _next_tokens(model: TorchModel, item: Inputs) -> Any:
    """Log-probabilities float16 [tokens, vocabulary] after up to `TOKENS` tokens of an item, evenly spread. A large
    vocabulary times all tokens would not fit in memory."""
    from fmopt.exporters.parity.graph import torch_outputs

    logits = torch_outputs(model.net, item, model.metadata.pipeline["outputs"])["logits"][0]
    places = np.unique(np.linspace(0, len(logits) - 1, min(TOKENS, len(logits))).astype(int))
    return log_softmax(logits[places]).astype(np.float16)


def _outputs(model: TorchModel, items: Sequence[Inputs]) -> list[Any]:
    from fmopt.exporters.parity.graph import torch_outputs

    names = model.metadata.pipeline["outputs"]
    return [value for item in items for value in torch_outputs(model.net, item, names).values()]


def _error(got: Any, wanted: Any) -> float:
    """‖got − wanted‖² / ‖wanted‖²; a difference of cosines this small would drown in the rounding of float32."""
    difference, wanted = np.subtract(got, wanted, dtype=np.float64), np.asarray(wanted, np.float64)
    return float(np.vdot(difference, difference) / max(float(np.vdot(wanted, wanted)), 1e-24))
