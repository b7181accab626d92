"""A checkpoint's feature extractor and vocabulary: what it does to audio, in the words that edge/audio.py works by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.edge import audio
from fmopt.edge.audio import read_vocabulary
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.left_out import tell, tell_unknown

PROCESSOR, VOCABULARY = "preprocessor_config.json", "vocab.json"
TRIED_SECONDS = (0.4, 0.05, 1.7)  # of sounds that an extractor is tried on, and one a little longer than its window
SAME_MEAN, SAME_LARGEST = 2e-3, 0.1  # of features: sums in single precision differ where there is hardly any energy
# What is read here or follows from it, and what is of other calls.
KNOWN = frozenset((
    "feature_extractor_type", "processor_class", "feature_size", "sampling_rate", "padding_value", "padding_side",
    "return_attention_mask", "do_normalize", "num_mel_bins", "max_length", "mean", "std", "hop_length", "chunk_length",
    "n_fft", "n_samples", "nb_max_frames", "dither", "mel_filters", "do_ceptral_normalize", "return_tensors", "backend",
))  # fmt: skip
EXTRACTORS = ("Wav2Vec2FeatureExtractor", "ASTFeatureExtractor", "WhisperFeatureExtractor")


def read_audio_processor(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes: inputs, their axes, and how audio becomes one.

    See edge/audio.py for "audio". CheckpointError when there is no feature extractor, or none that fmopt knows.
    """
    path = files.folder / PROCESSOR
    if not path.is_file():
        raise CheckpointError(f"{files.folder} has no feature extractor (no {PROCESSOR}); copy the file there")
    settings = _extractor(path)
    found = _read(settings, config, path)
    _require_same_features(settings, found, path)
    tell_unknown(path, files.read(path), KNOWN)
    return found


def _read(settings: Any, config: Any, path: Path) -> dict[str, Any]:
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


def read_spelling(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says how a network trained by CTC spells; CheckpointError when its vocabulary does not fit."""
    settings = files.read(files.folder / "tokenizer_config.json") or {}
    language = settings.get("target_lang")
    try:
        tokens = read_vocabulary(files.folder, language)
    except ValueError as error:
        hint = " (target_lang in tokenizer_config.json)" if "languages" in str(error) else ""
        raise CheckpointError(f"{error}{hint}") from error
    if len(tokens) != config.vocab_size:
        raise CheckpointError(
            f"{files.folder / VOCABULARY} has {len(tokens)} tokens and the network writes {config.vocab_size}; copy the file "
            "that this checkpoint was trained with"
        )
    pad = settings.get("pad_token", "<pad>")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return {
        "blank": tokens.index(pad) if pad in tokens else int(config.pad_token_id or 0),
        "delimiter": settings.get("word_delimiter_token", "|"),
        "replace_word_delimiter_char": str(settings.get("replace_word_delimiter_char", " ")),
        "clean_up_tokenization_spaces": settings.get("clean_up_tokenization_spaces") is True,
        "lower": bool(settings.get("do_lower_case", False)),
        **({"language": str(language)} if language else {}),
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


def _require_same_features(settings: Any, found: Mapping[str, Any], path: Path) -> None:
    """CheckpointError unless a bundle makes of sounds what the feature extractor itself makes of them."""
    if getattr(settings, "dither", 0.0):
        tell(str(path), "dither", "noise of chance, which would give a sound another answer every time")
        settings.dither = 0.0
    steps = found["audio"]
    ours = audio.Preprocessor(path.parent, {**found, "task": "audio-classification"})
    window = steps.get("frames", 0) * steps.get("hop", audio.FBANK_HOP) / steps["rate"]
    draw = np.random.default_rng(0)
    for seconds in (*TRIED_SECONDS, *([window + 0.3] if window else [])):
        time = np.arange(int(seconds * steps["rate"])) / steps["rate"]
        sound = (0.4 * np.sin(2 * np.pi * 440 * time) + 0.1 * draw.standard_normal(len(time))).astype(np.float32)
        got = ours.arrays([sound]).inputs[found["inputs"][0]][0]
        try:
            made = settings(sound, sampling_rate=steps["rate"], return_tensors="np")
        except Exception:  # a length that the extractor itself cannot take; each class says so in its own way
            continue
        wanted = np.asarray(made[found["inputs"][0]][0], dtype=np.float32)
        if got.shape != wanted.shape and got.ndim == 1 and len(got) > len(wanted):
            continue  # shorter than what the network makes one frame of: filled up with silence
        gaps = np.abs(got - wanted) if got.shape == wanted.shape else np.array([np.inf])
        if not (gaps.mean() <= SAME_MEAN and gaps.max() <= SAME_LARGEST):
            raise CheckpointError(
                f"{path}: fmopt does not make of sounds what a {type(settings).__name__} with these settings makes: of one of "
                f"{seconds:g} s {list(wanted.shape)} with a mean of {wanted.mean():.3g}, where fmopt makes {list(got.shape)} "
                f"with {got.mean():.3g}; a bundle would answer otherwise than the checkpoint"
            )


def _same_size(path: Path, made: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    if made != wanted:
        shown = [", ".join(f"{count} {name}" for name, count in sizes.items()) for sizes in (made, wanted)]
        raise CheckpointError(
            f"{path} makes {shown[0]} and the network takes {shown[1]}; copy the file that this checkpoint was trained with"
        )
