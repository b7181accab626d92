"""Networks that find masks by queries (MaskFormer) as networks that give a class for every pixel.

A query gives shares of classes and a mask; the score of a class at a pixel is the sum over queries of both (Cheng et al.,
Per-Pixel Classification is Not All You Need for Semantic Segmentation, 2021, section 3.4). That is part of the graph here, so
that what follows is what follows for SegFormer.
"""

from __future__ import annotations

from typing import Any

from fmopt.core.media.images import UNKNOWN

FAMILY = "maskformer"


def as_maps(net: Any) -> Any:
    """`net`, called by pixel_values [batch, 3, H, W] alone: logits [batch, classes, h, w], and a loss where `labels`, the class
    of every pixel int64 [batch, H, W], are given."""
    kind = type(net)
    net.__class__ = type(kind.__name__, (_Maps, kind), {"__module__": kind.__module__})
    return net


class _Maps:
    """The forward of a network of queries."""

    def forward(self: Any, pixel_values: Any, labels: Any = None, **options: Any) -> Any:
        """Scores of every class at every pixel. `options` are transformers' own, of how outputs are given."""
        import torch
        from transformers.modeling_outputs import SemanticSegmenterOutput

        known = {} if labels is None else _segments(labels)
        found = super().forward(pixel_values, **known)  # type: ignore[misc]  # of the class this is mixed into
        shares = found.class_queries_logits.softmax(dim=-1)[..., :-1]
        maps = torch.einsum("bqc,bqhw->bchw", shares, found.masks_queries_logits.sigmoid())
        return SemanticSegmenterOutput(loss=found.loss, logits=maps)


def _segments(labels: Any) -> dict[str, Any]:
    """The classes that are in each image, and where each is: of maps int64 [batch, H, W]."""
    classes = [row.unique() for row in labels]
    classes = [found[found != UNKNOWN] for found in classes]
    masks = [(row[None] == found[:, None, None]).float() for row, found in zip(labels, classes, strict=True)]
    return {"class_labels": classes, "mask_labels": masks}
