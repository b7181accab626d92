"""Audio files: made of arrays, made up, and checked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmopt.edge.audio import PCM, read_audio

PLAIN_RATE = 16_000


def wav_file(array: np.ndarray, row: Mapping[str, Any] | None = None) -> bytes:
    """A WAV file of samples (n,), int16 or float in [-1, 1], 16 bits each; the row says how many a second ("sample_rate" or
    "sampling_rate"). ValueError for any other array, and for a row that does not say it."""
    given = row or {}
    rate = given.get("sample_rate", given.get("sampling_rate"))
    if not isinstance(rate, int) or rate < 1:
        raise ValueError("is an array, and the row has no sample_rate that says how many of its samples are a second")
    if array.ndim != 1 or not (array.dtype == np.int16 or array.dtype.kind == "f"):
        raise ValueError(f"is an array {array.dtype}{list(array.shape)}; audio is int16 or float [samples]")
    if array.dtype.kind == "f":
        array = np.round(np.clip(array, -1, 1) * 32767).astype(np.int16)
    data = array.astype("<i2").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, PCM, 1, rate, 2 * rate, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def problem(value: Any) -> str | None:
    """What is wrong with an audio file; None when nothing is."""
    if not isinstance(value, bytes):
        return f"is {str(value)[:40]!r}, no audio; give files, their bytes or their paths"
    try:
        read_audio(value)
    except ValueError as error:
        return f"cannot be used: {error}"
    return None


def plain_sound(seed: str) -> bytes:
    """A made-up file of a second: some tones that swell and fade, others for every seed, where no data is needed."""
    draw = np.random.default_rng(zlib.crc32(seed.encode()))
    time = np.arange(PLAIN_RATE) / PLAIN_RATE
    turns = draw.uniform(100, 3000, 6)[:, None] * time + draw.random(6)[:, None]
    swell = np.sin(np.pi * time * draw.integers(1, 6)) ** 2
    return wav_file(0.1 * swell * np.sin(2 * np.pi * turns).sum(axis=0), {"sample_rate": PLAIN_RATE})
