"""What a student learns from its teacher: losses between two views of one batch.

Shapes: B rows, n tokens, C classes, w features. `mask` is bool [B, n], True on tokens that are no padding, or None where
nothing is padded. Every loss is a
scalar in float32, about 1 for a student that knows nothing, so that weights mean the same for every network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fmopt.training.examples import IGNORED

FAR_BELOW = -1e4  # a logit that softmax makes 0 in bfloat16 too, without the NaN of infinities
SIMILARITY_TEMPERATURE = 0.05  # of cosines, as in SimCSE (Gao et al., 2021)


def task_loss(outputs: Sequence[torch.Tensor], labels: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Distance to the labels of those rows or tokens that have one; 0 when none has.

    Cross entropy for class numbers (of texts, of tokens, of first and last tokens), for numbers [B] the squared error,
    for yes or no of several classes [B, C] the binary cross entropy.
    """
    targets = list(labels.values())
    if targets[0].is_floating_point():
        target, known = targets[0], ~targets[0].isnan()
        got, wanted = outputs[0].reshape(target.shape)[known], target[known]
        several = target.ndim == 2
        total = (F.binary_cross_entropy_with_logits if several else F.mse_loss)(got, wanted, reduction="sum")
        return total / known.sum().clamp(min=1)
    parts = [_cross_entropy(logits, target) for logits, target in zip(outputs, targets, strict=True)]
    return torch.stack(parts).mean()


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over targets that are not IGNORED; `logits` [..., C] or [B, n], `target` without the last axis."""
    logits, target = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
    total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp(min=1)


def spelled_loss(logits: torch.Tensor, letters: torch.Tensor, mask: torch.Tensor | None, blank: int) -> torch.Tensor:
    """Minus the log-likelihood of transcripts (CTC, Graves et al., 2006), per letter, for those recordings that have one.

    `logits` [B, n, C] of frames, `letters` [B, L] padded by IGNORED, `mask` bool [B, n] where frames are no padding.
    """
    frames = mask.sum(1) if mask is not None else torch.full((len(logits),), logits.shape[1])
    known = letters != IGNORED
    count = known.sum(1)
    logs = logits.log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(
        logs, letters.clamp(min=0), frames, count, blank=blank, reduction="none", zero_infinity=True
    )  # fmt: skip
    return each[count > 0].sum() / count.sum().clamp(min=1)


def logit_loss(
    got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], temperature: float, kind: str
) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of distributions softened by temperature T (Hinton et al., 2015).

    `kind` is "classes" (last axis), "several" (each logit a yes or no) or "number" (squared error).
    """
    if kind == "number":
        return F.mse_loss(got[0], wanted[0])
    if kind == "several":  # a yes or no is a distribution over two classes
        got, wanted = ([torch.stack([torch.zeros_like(x), x], dim=-1) for x in part] for part in (got, wanted))
    parts = [_soft_divergence(a, b, temperature) for a, b in zip(got, wanted, strict=True)]
    return torch.stack(parts).mean()


def _soft_divergence(got: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    got, wanted = (x.reshape(-1, x.shape[-1]) / temperature for x in (got, wanted))
    divergence = F.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum")
    return divergence / max(len(got), 1) * temperature**2  # of a batch that asks for nothing: 0


def hidden_loss(
    got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Mean over layers of ‖student − teacher‖² / ‖teacher‖² of the tokens' states [B, n, w] (layers as in CoFi, Xia et
    al., 2022; relative, because a pre-norm network's states grow with depth), each with its mask."""
    parts = [_relative_error(a, b, mask) for a, b, mask in zip(got, wanted, masks, strict=True)]
    return torch.stack(parts).mean()


def _relative_error(got: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    apart, whole = (got - wanted).square().sum(-1), wanted.square().sum(-1)  # [B, n]
    if mask is not None:  # picking tokens out would copy their states, and make a GPU wait for how many there are
        apart, whole = apart.masked_fill(~mask, 0.0), whole.masked_fill(~mask, 0.0)
    return apart.sum() / whole.sum().clamp(min=1e-12)


def relation_loss(
    got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], mask: torch.Tensor | None, heads: int
) -> torch.Tensor:
    """KL between attention-like relations of queries, of keys and of values [B, n, w] among themselves.

    MiniLM (Wang et al., 2020) with the relation heads of MiniLMv2 (Wang et al., 2021): widths and heads of student and
    teacher may differ, `heads` need only divide both widths.
    """
    parts = [_relation_divergence(a, b, mask, heads) for a, b in zip(got, wanted, strict=True)]
    return torch.stack(parts).mean()


def _relation_divergence(
    got: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor | None, heads: int
) -> torch.Tensor:
    got, wanted = (_relations(x, mask, heads) for x in (got, wanted))
    per_token = F.kl_div(got, wanted, log_target=True, reduction="none").sum(-1)  # [B, heads, n]
    return per_token.transpose(1, 2)[slice(None) if mask is None else mask].mean()


def _relations(states: torch.Tensor, mask: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Log of softmax(x·xᵀ/√d) per relation head, [B, heads, n, n]; padding is related to nothing."""
    parts = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], FAR_BELOW)
    return scores.log_softmax(-1)


def relation_heads(widths: Sequence[int], most: int) -> int:
    """The largest number of relation heads up to `most` that divides all widths."""
    return max(count for count in range(1, most + 1) if all(width % count == 0 for width in widths))


def cosine_loss(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 − cosine of the student's vector to the teacher's, [B, w] each, mean over the batch."""
    return (1 - F.cosine_similarity(got, wanted, dim=-1)).mean()


def similarity_loss(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL between how near the teacher and the student find each text of the batch to the others (SEED, Fang et al., 2021).

    Vectors [B, w], w may differ; 0 for a batch of fewer than three texts, where there is nothing to choose among.
    """
    if len(got) < 3:
        return got.sum() * 0.0
    got, wanted = (_others(F.normalize(x, dim=-1)) for x in (got, wanted))
    return F.kl_div(got, wanted, log_target=True, reduction="batchmean")


def _others(vectors: torch.Tensor) -> torch.Tensor:
    """Log distribution over the other rows by cosine, [B, B − 1]."""
    near = vectors @ vectors.T / SIMILARITY_TEMPERATURE
    other = ~torch.eye(len(near), dtype=torch.bool, device=near.device)
    return near[other].view(len(near), -1).log_softmax(-1)


def pooled(states: torch.Tensor, mask: torch.Tensor, how: str | Sequence[str]) -> torch.Tensor:
    """Text vectors [B, w] of token states [B, n, w], as `edge.pool` makes them; several ways side by side."""
    if not isinstance(how, str):
        return torch.cat([pooled(states, mask, one) for one in how], dim=1)
    rows, places = torch.arange(len(states), device=states.device), torch.arange(mask.shape[1], device=states.device)
    first = mask.int().argmax(dim=1)
    if how == "cls":
        return states[rows, first]
    if how == "lasttoken":
        return states[rows, (mask.int() * (places + 1)).argmax(dim=1)]
    if how == "max":
        return states.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
    weights = mask * (places[None] - first[:, None] + 1) if how == "weightedmean" else mask
    total = weights.sum(dim=1, keepdim=True)
    return (states * weights[..., None]).sum(dim=1) / (total.sqrt() if how == "mean_sqrt_len_tokens" else total)


def matched_layers(
    students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor], mask: torch.Tensor | None
) -> list[int]:
    """For every student layer the teacher layer whose states it should have: the nearest ones, in order, last to last.

    A student made by dropping layers finds those it kept. Where widths differ, or the student has no fewer layers, the
    match is even.
    """
    few, many = len(students), len(teachers)
    if few >= many or students[0].shape != teachers[0].shape:
        return [-(-(layer + 1) * many // few) - 1 for layer in range(few)]
    cost = np.array([[float(_relative_error(s, t, mask)) for t in teachers] for s in students])
    cost[-1, :-1] = np.inf
    best = np.full((few, many), np.inf)  # least total cost when student layer s takes teacher layer t
    best[0] = cost[0]
    for s in range(1, few):
        best[s, 1:] = cost[s, 1:] + np.minimum.accumulate(best[s - 1])[:-1]
    found = [many - 1]
    for s in range(few - 2, -1, -1):
        found.insert(0, int(best[s, : found[0]].argmin()))
    return found
