"""A tiny random checkpoint that speaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LETTERS = ["<pad>", "<unk>", " ", "'", *"abcdefghijklmnopqrstuvwxyz"]
TOKENIZER = {"tokenizer_class": "VitsTokenizer", "pad_token": "<pad>", "unk_token": "<unk>", "add_blank": True,
             "normalize": True, "phonemize": False, "is_uroman": False}  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": len(LETTERS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
    "flow_size": 16, "spectrogram_bins": 9, "upsample_initial_channel": 16, "upsample_rates": [8, 4],
    "upsample_kernel_sizes": [16, 8], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
    "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2, "posterior_encoder_num_wavenet_layers": 1,
    "duration_predictor_num_flows": 2, "duration_predictor_filter_channels": 16, "sampling_rate": 8000,
}  # fmt: skip


def write_voice(folder: Path, seed: int = 0, **reported: Any) -> Path:
    """A random VITS that reads letters, in Hugging Face format."""
    import torch
    from transformers import VitsConfig, VitsModel

    torch.manual_seed(seed)
    net = VitsModel(VitsConfig(**SIZES | reported)).eval()
    with torch.no_grad():  # so that letters differ in how long they last
        for name, weight in net.named_parameters():
            if name.startswith("duration_predictor") and name.endswith("bias"):
                weight.normal_(0, 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(folder)
    write_tokenizer(folder, LETTERS)
    return folder


def write_tokenizer(folder: Path, letters: list[str], **reported: Any) -> Path:
    """Vocabulary and settings of a VitsTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER | reported))
    return folder
