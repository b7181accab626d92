"""Networks that see as functions from an image to one vector: what search and clustering of images need of them."""

from __future__ import annotations

from typing import Any

OUTPUT = "pooler_output"  # as transformers calls it


def sees(net: Any) -> bool:
    """Whether a network without a head is one of images, or of images and texts."""
    return hasattr(net, "get_image_features") or net.main_input_name == "pixel_values"


def featuring(net: Any) -> Any:
    """`net`, called by pixel_values [batch, 3, H, W] alone, gives pooler_output [batch, features]: of CLIP and SigLIP what is
    compared with texts, of DINOv2 and ConvNeXt what their pooling makes of the last layer; of ViT and DeiT the state of the first
    token, which stands for the whole image (a pooler, which classifiers have none of, is left out), of Swin the mean of all."""
    kind = type(net)
    net.__class__ = type(kind.__name__, (_Featuring, kind), {"__module__": kind.__module__})
    for name in [name for name, _ in net.named_children() if name.startswith("text_")]:
        delattr(net, name)
    return net


class _Featuring:
    """The forward of a network of images that gives one vector."""

    def forward(self: Any, pixel_values: Any, **options: Any) -> Any:
        """The vector of every image. `options` are transformers' own, of how outputs are given."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if hasattr(self, "get_image_features"):
            seen = self.get_image_features(pixel_values=pixel_values)
            return BaseModelOutputWithPooling(pooler_output=getattr(seen, OUTPUT, seen))
        whole = super().forward(pixel_values=pixel_values, return_dict=True)  # type: ignore[misc]
        pooled = getattr(whole, OUTPUT, None)
        if pooled is None:
            states = whole.last_hidden_state
            pooled = states[:, 0] if hasattr(self.embeddings, "cls_token") else states.mean(dim=1)
        return BaseModelOutputWithPooling(pooler_output=pooled.flatten(1))
