"""What a checkpoint for speech synthesis takes: its letters and its noise, in the words that edge/speech.py works by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.edge.speech import read_letters
from fmopt.models.checkpoint_files import CheckpointFiles

KNOWN = "vits"
DEFAULTS = {"add_blank": True, "normalize": True, "phonemize": True, "is_uroman": False,
            "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip  # VitsTokenizer's own


def speech_pipeline(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes: see edge/speech.py for "speech".

    CheckpointError for another network than VITS, or one whose tokenizer spells in phonemes.
    """
    folder = files.folder
    if config.model_type != KNOWN:
        raise CheckpointError(
            f"{folder} is a {config.model_type}; of the networks for speech synthesis fmopt knows {KNOWN} alone, such as "
            "facebook/mms-tts-eng"
        )
    settings = {**DEFAULTS, **_settings(files)}
    if settings["phonemize"]:
        raise CheckpointError(
            f"{folder}: its tokenizer turns texts into phonemes by another program (espeak), which a bundle cannot bring; "
            "give a checkpoint that reads letters (phonemize false), such as facebook/mms-tts-eng"
        )
    letters = _letters(folder, config.vocab_size)
    channels = int(config.flow_size)
    return {
        "inputs": ["input_ids", "attention_mask", "duration_noise", "noise"],
        "outputs": ["durations", "waveform", "sequence_lengths"],
        "axes": {
            "input_ids": ["batch", "letters"],
            "attention_mask": ["batch", "letters"],
            "duration_noise": ["batch", 2, "letters"],
            "noise": ["batch", channels, "drawn"],
        },
        "speech": {
            "rate": int(config.sampling_rate),
            "channels": channels,
            "noise_scale": float(config.noise_scale),
            "noise_scale_duration": float(config.noise_scale_duration),
            "add_blank": bool(settings["add_blank"]),
            "normalize": bool(settings["normalize"]),
            "romanize": bool(settings["is_uroman"]),
            "pad": int(config.pad_token_id or 0),
            "unknown": letters.get(str(settings["unk_token"]), 0),
            "special": [str(settings["pad_token"]), str(settings["unk_token"])],
            # Where the table of relative positions is padded: shorter texts would slice it, another graph.
            "least": int(config.window_size or 0) + 2,
        },
    }


def _letters(folder: Path, rows: int) -> dict[str, int]:
    try:
        letters = read_letters(folder)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    highest = max(letters.values(), default=-1)
    if not letters or highest >= rows:
        raise CheckpointError(
            f"{folder / 'vocab.json'} has ids up to {highest} and the network's embedding {rows} rows; copy the file that "
            "this checkpoint was trained with"
        )
    return letters


def _settings(files: CheckpointFiles) -> dict[str, Any]:
    settings = files.read(files.folder / "tokenizer_config.json") or {}
    return {
        name: value["content"] if isinstance(value, dict) and "content" in value else value
        for name, value in settings.items()
    }
