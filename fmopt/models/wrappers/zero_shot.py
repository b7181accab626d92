"""Networks of images and texts (CLIP, SigLIP) as classifiers of images whose labels are given in words.

What the labels say is encoded once, by the text tower; an image is compared with those vectors alone. So the deployed network
is the image's tower with one linear layer whose weights the text tower gave (Radford et al., Learning Transferable Visual
Models From Natural Language Supervision, 2021, section 3.1.2). Other labels make another bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER

AUTO_CLASS = "AutoModelForZeroShotImageClassification"
PROMPT = "This is a photo of {}."  # as transformers' pipeline has it
TEXTS = "label_texts_"  # begins the names of the buffers with what the labels say


def classifier(net: Any, folder: Path, labels: Sequence[str], *, frozen: bool = True) -> Any:
    """`net`, called by pixel_values [batch, 3, H, W] alone: logits [batch, labels], and a loss where labels are given.

    `frozen`: what the labels say is encoded here, once, and the text tower is gone; else it is part of every call, to train.
    """
    import torch

    kind = type(net)
    net.__class__ = type(kind.__name__, (_Labelled, kind), {"__module__": kind.__module__})
    for name, value in _encoded(net, folder, labels).items():
        net.register_buffer(TEXTS + name, value, persistent=False)
    if frozen:
        with torch.no_grad():
            net.register_buffer("label_vectors", net.vectors_of_labels(), persistent=False)
        for name in [name for name, _ in net.named_children() if name.startswith("text_")]:
            delattr(net, name)
    return net


class _Labelled:
    """The forward of a network of images and texts whose texts are known."""

    def forward(self: Any, pixel_values: Any, labels: Any = None, **options: Any) -> Any:
        """Logits of every label, as `logits_per_image` of the network with all prompts. `options` are transformers' own, of
        how outputs are given."""
        import torch
        from transformers.modeling_outputs import ImageClassifierOutput

        vectors = self.label_vectors if hasattr(self, "label_vectors") else self.vectors_of_labels()
        seen = _pooled(self.get_image_features(pixel_values=pixel_values))
        seen = seen / seen.norm(p=2, dim=-1, keepdim=True)
        logits = seen @ vectors.t()
        if hasattr(self, "logit_bias"):
            logits = logits + self.logit_bias
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def vectors_of_labels(self: Any) -> Any:
        """[labels, features]: the direction of what each label says, times the temperature."""
        buffers = dict(self.named_buffers(recurse=False))
        texts = {name.removeprefix(TEXTS): value for name, value in buffers.items() if name.startswith(TEXTS)}
        settings = _pooled(self.get_text_features(**texts))
        return settings / settings.norm(p=2, dim=-1, keepdim=True) * self.logit_scale.exp()


def _pooled(output: Any) -> Any:
    return getattr(output, "pooler_output", output)


def _encoded(net: Any, folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    """What each label says, as the text tower reads it: int64 [labels, tokens]."""
    from transformers import AutoTokenizer

    texts, most = net.config.text_config, int(net.config.text_config.max_position_embeddings)
    # SigLIP was trained on rows that are full of padding, which it attends to.
    filled = "siglip" in net.config.model_type
    if not (folder / TOKENIZER).is_file():  # transformers would make one that knows no word
        raise CheckpointError(f"{folder} has no tokenizer (no {TOKENIZER}), and labels are texts; copy its files there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each tokenizer class fails in its own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: labels are texts, and its tokenizer cannot be used: {first[:200]}") from error
    found = tokenizer(
        [PROMPT.format(label) for label in labels], padding="max_length" if filled else True, max_length=most,
        truncation=True, return_tensors="pt",
    )  # fmt: skip
    if int(found["input_ids"].max()) >= texts.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer makes ids up to {int(found['input_ids'].max())}, but the text tower has "
            f"{texts.vocab_size}; copy the tokenizer that this checkpoint was trained with"
        )
    wanted = ("input_ids",) if filled else ("input_ids", "attention_mask")
    return {name: found[name] for name in wanted}
