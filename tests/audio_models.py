"""Tiny random checkpoints that read sounds, and sounds to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.media.audio import wav_file

CLASSIFICATION, RECOGNITION = "audio-classification", "automatic-speech-recognition"
RATE = 8000
NAMES = ["low", "middle", "high"]
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghilmow"]
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SAMPLES = {
    "conv_dim": [16, 16, 16], "conv_kernel": [10, 4, 4], "conv_stride": [5, 4, 4], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16, "apply_spec_augment": False, "layerdrop": 0.0,
    "ctc_zero_infinity": True, "ctc_loss_reduction": "mean", "vocab_size": len(LETTERS), "pad_token_id": 0,
}  # fmt: skip
MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
SPECTROGRAM = {"num_mel_bins": 32, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
SIZES: dict[str, dict[str, Any]] = {
    "wav2vec2": ENCODER | SAMPLES | MASKED,
    "hubert": ENCODER | SAMPLES,  # a group norm over time, and no mask, as wav2vec2-base and hubert-base have it
    "audio-spectrogram-transformer": ENCODER | SPECTROGRAM,
    "whisper": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 32,
        "max_source_positions": 50,
        "vocab_size": 60,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "classifier_proj_size": 16,
        "init_std": 0.3,
    },
}


def write_audio(folder: Path, family: str, task: str, seed: int = 0) -> Path:
    """A random checkpoint of `family` for three classes of sounds, or one that spells, in Hugging Face format."""
    import torch
    import transformers

    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    config = transformers.AutoConfig.for_model(family, initializer_range=0.3, **SIZES[family], **labels)
    torch.manual_seed(seed)
    loader = transformers.AutoModelForCTC if task == RECOGNITION else transformers.AutoModelForAudioClassification
    folder.mkdir(parents=True, exist_ok=True)
    loader.from_config(config).eval().save_pretrained(folder)
    if family in ("wav2vec2", "hubert"):
        reported = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": family == "wav2vec2"}
    elif family == "whisper":
        reported = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 32, "chunk_length": 1}
    else:
        reported = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 32, "max_length": 32}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"sampling_rate": 16000 if family == "whisper" else RATE, **reported})
    )
    if task == RECOGNITION:
        (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
        reported = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "word_delimiter_token": "|"}
        (folder / "tokenizer_config.json").write_text(json.dumps(reported))
    return folder


WORDS = ["low", "middle", "high low"]  # that a Whisper's tokenizer is made of


def write_whisper(folder: Path) -> Path:
    """A Whisper of random weights for sounds of a second at 8 kHz, as a checkpoint."""
    from fmopt.models.initialization import write_untrained

    sizes = {
        name: value
        for name, value in SIZES["whisper"].items()
        if not name.endswith("_token_id") and name != "vocab_size"
    }
    entry = {
        "task": RECOGNITION,
        "config": {"model_type": "whisper", **sizes, "encoder_layers": 1, "max_target_positions": 24},
        "processor": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 32, "chunk_length": 1,
                      "sampling_rate": 8000, "hop_length": 80, "n_fft": 256},
        "generation": {"max_length": 16, "begin_suppress_tokens": [1], "suppress_tokens": [0, 3]},
        "tokenizer": {"kind": "byte-bpe-answers", "size": 300},
    }  # fmt: skip
    texts = [f"{word} {'sound' * number}" for number, word in enumerate(WORDS * 3)]
    return write_untrained(entry, texts, folder, "tiny-whisper")


def audio(seed: int = 0, seconds: float = 0.4, pitch: float | None = None, rate: int = RATE) -> bytes:
    """The WAV file of a made sound: noise, and a tone where a pitch (Hz) is given."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = np.zeros(len(time)) if pitch is None else 0.4 * np.sin(2 * np.pi * (pitch * time + draw.random()))
    return wav_file(tone + 0.1 * draw.standard_normal(len(time)), {"sample_rate": rate})


def sound_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of sounds that can be told apart by their pitch, of different lengths."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % len(NAMES)
        pitch = float((300, 900, 2400)[label] * draw.uniform(0.9, 1.1))
        name = NAMES[label]
        rows.append({"audio": audio(seed * 1000 + number, float(draw.uniform(0.2, 0.5)), pitch), "label": name})
    return rows
