"""How much a network's answers depend on each head and neuron: the diagonal of the Fisher information of masks over them
(Kwon et al., 2022).

A mask of ones multiplies what reaches an output projection, one per unit. Answers are drawn from what the network itself
predicts, so that no labels are needed and the expectation is the Fisher information, not an empirical stand-in for it.
To second order, taking a unit out costs half of its entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fmopt.core.errors import PassError
from fmopt.core.model import Inputs
from fmopt.edge.seq2seq import NEW
from fmopt.models.loading import TorchModel
from fmopt.passes.distillation.losses import pooled
from fmopt.passes.pruning.obs_scores import Sublayer
from fmopt.tasks.base import Output, output_of


def mask_fisher(
    model: TorchModel, parts: Sequence[Sublayer], stream: Iterable[Inputs], seed: int = 0
) -> list[torch.Tensor]:
    """The entries [units] of every sublayer in `parts`, float64, the mean over the items of `stream`."""
    draw = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(part.units, dtype=torch.float64) for part in parts]
    names, count = list(model.metadata.pipeline["outputs"]), 0
    with _masked(model.net, parts) as masks:
        for item in stream:
            inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in item.items()}
            found = model.net(**inputs)
            outputs = [getattr(found, name).float() for name in names]
            surprise = _surprise(
                outputs, _answered(inputs, model.metadata.pipeline), dict(model.metadata.pipeline), draw
            )
            for total, gradient in zip(totals, torch.autograd.grad(surprise, masks), strict=True):
                total += gradient.double().square()
            count += 1
    if not all(bool(torch.isfinite(total).all()) for total in totals):
        raise PassError("scoring: gradients of the model are not finite; it overflows in fp32")
    return [total / max(count, 1) for total in totals]


def _answered(inputs: Mapping[str, torch.Tensor], pipeline: Mapping[str, Any]) -> torch.Tensor:
    """Bool [B, tokens], True where the network has something to say: on the masks, or on all that is no padding."""
    if "mask" in pipeline:
        return inputs["input_ids"] == pipeline["mask"]["id"]
    if NEW in inputs:
        return torch.ones_like(inputs[NEW], dtype=torch.bool)
    if "attention_mask" not in inputs:  # one answer for all of an item
        return torch.ones(len(next(iter(inputs.values()))), 1, dtype=torch.bool)
    return inputs["attention_mask"].bool()


def _surprise(
    outputs: Sequence[torch.Tensor], mask: torch.Tensor, pipeline: dict[str, Any], draw: torch.Generator
) -> torch.Tensor:
    """Minus the log-likelihood of answers drawn from the network's own prediction, summed."""
    output = output_of(pipeline)
    if output is Output.VECTOR:  # the mean of a normal distribution of unit variance
        vectors = outputs[0]
        if vectors.ndim == 3:
            vectors = pooled(vectors, mask, pipeline.get("pooling", "mean"))
        vectors = F.normalize(vectors, dim=-1)
        return (vectors * torch.randn(vectors.shape, generator=draw)).sum()
    if output is Output.NUMBER:
        return (outputs[0] * torch.randn(outputs[0].shape, generator=draw)).sum()
    if pipeline.get("multi_label"):
        chances = outputs[0].detach().sigmoid()
        return F.binary_cross_entropy_with_logits(outputs[0], torch.bernoulli(chances, generator=draw), reduction="sum")
    if output in (Output.TAGS, Output.MASKED_WORDS, Output.NEXT_WORDS, Output.ANSWER_WORDS):
        outputs = [logits[mask] for logits in outputs]
    elif output is Output.LETTERS:  # of one recording, without padding
        outputs = [logits.flatten(0, 1) for logits in outputs]
    elif output is Output.SPAN:
        outputs = [logits.masked_fill(~mask, -torch.inf) for logits in outputs]
    total = torch.zeros(())
    for logits in outputs:
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
        total = total + F.cross_entropy(logits, drawn, reduction="sum")
    return total


@contextmanager
def _masked(net: torch.nn.Module, parts: Sequence[Sublayer]) -> Iterator[list[torch.Tensor]]:
    """While entered, ones that gradients are taken of multiply what reaches every output projection; no weight gets any."""
    wanted = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    masks = [torch.ones(part.units, requires_grad=True) for part in parts]
    handles = []
    for part, ones in zip(parts, masks, strict=True):

        def hook(
            module: Any, given: tuple[Any, ...], ones: torch.Tensor = ones, size: int = part.size
        ) -> tuple[Any, ...]:
            return (given[0] * ones.repeat_interleave(size), *given[1:])

        handles.append(net.get_submodule(part.output).register_forward_pre_hook(hook))
    try:
        net.requires_grad_(False)
        yield masks
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in wanted:
            parameter.requires_grad_(before)
