"""A checkpoint's feature extractor and vocabulary: what it does to audio, in the words that edge/audio.py works by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.edge.audio import read_vocabulary

PROCESSOR, VOCABULARY = "preprocessor_config.json", "vocab.json"
EXTRACTORS = ("Wav2Vec2FeatureExtractor", "ASTFeatureExtractor", "WhisperFeatureExtractor")


def read_audio_processor(folder: Path, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes: inputs, their axes, and how audio becomes one.

    See edge/audio.py for "audio". CheckpointError when there is no feature extractor, or none that fmopt knows.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        raise CheckpointError(f"{folder} has no feature extractor (no {PROCESSOR}); copy the file there")
    settings = _extractor(path)
    kind = type(settings).__name__
    if kind == "Wav2Vec2FeatureExtractor":
        return _waveform(settings, config, path)
    if kind == "ASTFeatureExtractor":
        mels, frames = int(settings.num_mel_bins), int(settings.max_length)
        _same_size(path, {"mels": mels, "frames": frames},
                   {"mels": getattr(config, "num_mel_bins", mels), "frames": getattr(config, "max_length", frames)})  # fmt: skip
        scale = (
            {"mean": float(settings.mean), "std": float(settings.std)}
            if settings.do_normalize
            else {"mean": None, "std": None}
        )
        steps = {"rate": int(settings.sampling_rate), "features": "fbank", "mels": mels, "frames": frames, **scale}
        return {"inputs": ["input_values"], "axes": {"input_values": ["batch", frames, mels]}, "audio": steps}
    if kind == "WhisperFeatureExtractor":
        mels, frames = int(settings.feature_size), int(settings.nb_max_frames)
        # One of its two convolutions halves the frames.
        taken = 2 * config.max_source_positions if hasattr(config, "max_source_positions") else frames
        _same_size(path, {"mels": mels, "frames": frames},
                   {"mels": getattr(config, "num_mel_bins", mels), "frames": taken})  # fmt: skip
        steps = {"rate": int(settings.sampling_rate), "features": "log-mel", "mels": mels, "frames": frames,
                 "window": int(settings.n_fft), "hop": int(settings.hop_length)}  # fmt: skip
        return {"inputs": ["input_features"], "axes": {"input_features": ["batch", mels, frames]}, "audio": steps}
    raise CheckpointError(f"{path}: fmopt does not make what a {kind} makes; it knows {', '.join(EXTRACTORS)}")


def read_spelling(folder: Path, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says how a network trained by CTC spells; CheckpointError when its vocabulary does not fit."""
    try:
        tokens = read_vocabulary(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if len(tokens) != config.vocab_size:
        raise CheckpointError(
            f"{folder / VOCABULARY} has {len(tokens)} tokens and the network writes {config.vocab_size}; copy the file that "
            "this checkpoint was trained with"
        )
    settings = _settings(folder)
    return {
        "blank": int(config.pad_token_id or 0),
        "delimiter": settings.get("word_delimiter_token", "|"),
        "lower": bool(settings.get("do_lower_case", False)),
    }


def _extractor(path: Path) -> Any:
    """The feature extractor as transformers makes it, its class's defaults filled in."""
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each class fails in its own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be used: {first[:200]}") from error


def _waveform(settings: Any, config: Any, path: Path) -> dict[str, Any]:
    kernels = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True))
    if not kernels:
        raise CheckpointError(
            f"{path} reads samples and {config.model_type} has no convolutions for them (conv_kernel)"
        )
    inputs = ["input_values", *(["attention_mask"] if settings.return_attention_mask else [])]
    steps = {"rate": int(settings.sampling_rate), "features": "waveform", "normalize": bool(settings.do_normalize),
             "kernels": [[int(size), int(stride)] for size, stride in kernels]}  # fmt: skip
    return {"inputs": inputs, "axes": {name: ["batch", "samples"] for name in inputs}, "audio": steps}


def _same_size(path: Path, made: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    if made != wanted:
        shown = [", ".join(f"{count} {name}" for name, count in sizes.items()) for sizes in (made, wanted)]
        raise CheckpointError(
            f"{path} makes {shown[0]} and the network takes {shown[1]}; copy the file that this checkpoint was trained with"
        )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); get the file again") from error
