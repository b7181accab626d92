"""Sounds of a bundle: files → arrays, outputs → predictions, predictions → people. Needs numpy alone for WAV; else soundfile.

A sample is the bytes of an audio file. A pipeline says under "audio" what becomes of it, after its channels are mixed:
    rate       samples a second, to which every sound is brought
    features   what the network reads, with settings of its own:
      "waveform"  the samples (wav2vec 2.0, HuBERT): normalize, to mean 0 and variance 1; kernels, [[size, stride], …] of
                  the convolutions that make frames of them
      "fbank"     logarithms of energies in Kaldi's mel bands (AST): mels, frames (longer sounds are cut), mean and std, or None
      "log-mel"   the same in Slaney's bands, as Whisper reads it: mels, frames, window and hop in samples; longer sounds
                  are cut, but where the network makes tokens, which reads them window by window (see whisper.py)
For automatic-speech-recognition "ctc" says how a network spells: blank (an id), delimiter (the token between words), and
lower (whether what it spells is made lower case); vocab.json beside the model has its tokens, those of "language" where it has
vocabularies of several.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError
from .files import file_bytes, parsed
from .parts import CHANGE, LARGEST_NUMBER, closer, present_classes

Pipeline = Mapping[str, Any]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # formats of samples in a WAV file
SHORTEST_WINDOW = 400  # samples of a frame of "fbank", at any rate, as AST has it
FBANK_HOP, FBANK_FFT, FBANK_LOWEST_HZ, PREEMPHASIS = 160, 512, 20, 0.97
FRAMES_AT_ONCE = 4096  # of spectra: a long sound takes no more memory for them than a short one
FBANK_FLOOR, LOG_MEL_FLOOR = 1.192092955078125e-07, 1e-10  # energies below count as this much
SINC_LOBES, KAISER_BETA = 10, 5.0  # of the resampling filter, as scipy.signal.resample_poly has them
LOWEST_RATE, HIGHEST_RATE, MOST_SAMPLES = 100, 1_000_000, 100_000_000  # an hour and more, at any usual rate
READABLE = "give a WAV file (PCM or float)"


@dataclass
class Batch:
    """Encoded sounds, one row each.

    `inputs`: input_values float32 [sounds, samples] or [sounds, frames, mels], or input_features [sounds, mels, frames];
    attention_mask int64 [sounds, samples] for a network that takes it. `mask`: which samples are no padding, None where
    every sound is made equally long. `frames`: how many of a network's frames are of each sound.
    """

    inputs: dict[str, np.ndarray]
    owner: list[int]  # row -> index of its sample
    mask: np.ndarray | None = None
    frames: list[int] | None = None
    tokens: Sequence[str] = ()  # by id, for a network that spells
    decode: Any = None  # ids -> text, for one that makes tokens (see whisper.py)
    features: Sequence[np.ndarray] = ()  # [mels, frames] of whole sounds, however long, for one that makes tokens


class Preprocessor:
    """Makes of audio files what the checkpoint's own Hugging Face feature extractor makes of their samples."""

    def __init__(self, folder: Path, pipeline: Pipeline):
        self.pipeline = pipeline
        self.tokens = read_vocabulary(folder, pipeline["ctc"].get("language")) if "ctc" in pipeline else ()
        self._resampled: set[int] = set()  # rates about which the user knows

    def encode(self, samples: Sequence[bytes], length: int | None = None) -> Batch:
        """Arrays of the samples, padded to the longest; `length` means nothing here. ValueError on a sample that is no sound."""
        waveforms = []
        for index, sample in enumerate(samples):
            try:
                waveforms.append(self._sound(sample))
            except ValueError as error:
                raise ValueError(f"item {index + 1}: {error}") from error
        return self.arrays(waveforms)

    def arrays(self, waveforms: list[np.ndarray]) -> Batch:
        """What the network reads of samples float32 (n,) each, at the rate that it is for."""
        steps = self.pipeline["audio"]
        owner = list(range(len(waveforms)))
        if steps["features"] == "fbank":
            return Batch({"input_values": np.stack([fbank(audio, steps) for audio in waveforms])}, owner)
        if steps["features"] == "log-mel":
            most = int(steps["frames"])
            whole = bool({"ctc", "decoder_start_token_ids"} & set(self.pipeline))  # speech goes on after a window
            features = [log_mel(audio if whole else audio[: most * steps["hop"]], steps) for audio in waveforms]
            return Batch({"input_features": np.stack([one[:, :most] for one in features])}, owner, features=features)
        return self._waveforms(waveforms, owner)

    def _sound(self, sample: bytes) -> np.ndarray:
        samples, rate = read_audio(sample)
        wanted = int(self.pipeline["audio"]["rate"])
        if rate != wanted and rate not in self._resampled:
            self._resampled.add(rate)
            warnings.warn(f"a sound has {rate} samples a second and the model reads {wanted}: resampled", stacklevel=2)
        return resample(samples, rate, wanted)

    def _waveforms(self, waveforms: list[np.ndarray], owner: list[int]) -> Batch:
        steps = self.pipeline["audio"]
        shortest = least_samples(steps["kernels"])
        rows = [np.pad(audio, (0, max(0, shortest - len(audio)))) for audio in waveforms]
        if steps["normalize"]:
            rows = [(row - row.mean()) / np.sqrt(row.var() + 1e-7) for row in rows]
        width = max(map(len, rows))
        values = np.zeros((len(rows), width), dtype=np.float32)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            values[index, : len(row)], mask[index, : len(row)] = row, 1
        made: dict[str, np.ndarray] = {"input_values": values, "attention_mask": mask}
        frames = [frames_of(len(row), steps["kernels"]) for row in rows]
        return Batch({name: made[name] for name in self.pipeline["inputs"]}, owner, mask, frames, self.tokens)


def read_sample(text: str) -> bytes:
    """The file that an argument of the command names."""
    try:
        return file_bytes(Path(text))
    except EdgeError as error:
        raise ValueError(f"{error}; give the path of a sound") from error


# -------------------------------------------------------------------------------- files → samples


def read_audio(sample: Any) -> tuple[np.ndarray, int]:
    """Samples float32 (n,) in [-1, 1], channels mixed, and how many there are a second. ValueError when there are none."""
    if not isinstance(sample, bytes | bytearray):
        raise ValueError(f"{str(sample)[:60]!r} is not a sound; give the bytes of an audio file")
    samples, rate = _read_wav(bytes(sample)) if sample[:4] in (b"RIFF", b"RF64") else _read_other(bytes(sample))
    if not samples.size:
        raise ValueError("the sound is empty: it has no samples; remove it, or record it again")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"the sound has {rate} samples a second; {READABLE}")
    if samples.size > MOST_SAMPLES:
        raise ValueError(f"the sound has {samples.size:,} samples; the most is {MOST_SAMPLES:,}: cut it into parts")
    mono = samples.mean(axis=1, dtype=np.float64).astype(np.float32) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise ValueError("the sound has samples that are no numbers (NaN or infinite); record it again")
    return mono, rate


def _read_wav(sample: bytes) -> tuple[np.ndarray, int]:
    """Samples float32 [n, channels] of a WAV file. The standard library's `wave` reads neither floats nor, before Python
    3.12, the form in which many programs write 24 bits."""
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(sample) and sample[8:12] == b"WAVE":
        name, size = struct.unpack_from("<4sI", sample, at)
        chunks.setdefault(name, sample[at + 8 : at + 8 + size])  # what a writer that was killed promised may be missing
        at += 8 + size + size % 2
    head = chunks.get(b"fmt ", b"")
    if len(head) < 16 or b"data" not in chunks:
        raise ValueError(f"{len(sample)} bytes begin like a WAV file and are none; {READABLE}")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head)
    if kind == EXTENSIBLE and len(head) >= 26:
        kind = struct.unpack_from("<H", head, 24)[0]
    if (kind, bits) not in SAMPLES or not channels:
        raise ValueError(
            f"a WAV file of format {kind} with {bits} bits and {channels} channels is not read; {READABLE}"
        )
    data = chunks[b"data"]
    samples = SAMPLES[kind, bits](data[: len(data) // (channels * bits // 8) * (channels * bits // 8)])
    return samples.astype(np.float32).reshape(-1, channels), rate


def _read_24_bits(data: bytes) -> np.ndarray:
    parts = np.frombuffer(data, np.uint8).reshape(-1, 3)
    wide = np.zeros((len(parts), 4), np.uint8)
    wide[:, 1:] = parts  # the highest three of four bytes, so that the sign is right
    return wide.view("<i4")[:, 0] / 2.0**31


SAMPLES = {
    (PCM, 8): lambda data: np.frombuffer(data, np.uint8) / 2.0**7 - 1,
    (PCM, 16): lambda data: np.frombuffer(data, "<i2") / 2.0**15,
    (PCM, 24): _read_24_bits,
    (PCM, 32): lambda data: np.frombuffer(data, "<i4") / 2.0**31,
    (FLOAT, 32): lambda data: np.frombuffer(data, "<f4"),
    (FLOAT, 64): lambda data: np.frombuffer(data, "<f8"),
}


def _read_other(sample: bytes) -> tuple[np.ndarray, int]:
    """Samples float32 [n, channels] of FLAC, Ogg, MP3, … by the package soundfile."""
    begins = f"{len(sample)} bytes that begin with {sample[:8]!r}"
    if not sample:
        raise ValueError(f"the sound is empty: the file has no bytes; {READABLE}")
    try:
        import io

        import soundfile
    except ImportError as error:
        raise ValueError(f"{begins} are no WAV file, and others need: pip install soundfile") from error
    try:
        with soundfile.SoundFile(io.BytesIO(sample)) as sound:
            if sound.frames * sound.channels > MOST_SAMPLES:
                raise ValueError(f"{sound.frames:,} frames are too many")
            samples, rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
    except Exception as error:  # LibsndfileError is a RuntimeError; others come of broken heads
        raise ValueError(f"{begins} are no sound that can be read; {READABLE}") from error
    return samples, int(rate)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The sound at `wanted` samples a second: float32, filtered by a Kaiser-windowed sinc, as scipy.signal.resample_poly.

    Sample i lies at i · down / up of the given ones, so `up` filters, each a slice of the whole one, serve in turn.
    """
    up, down = wanted // gcd(rate, wanted), rate // gcd(rate, wanted)
    if up == down:
        return np.asarray(samples, dtype=np.float32)
    reach = SINC_LOBES * max(up, down)
    count = -(-len(samples) * up // down)
    taps = -(-(2 * reach + 1) // up)
    kernel = np.zeros(taps * up)
    times = np.arange(-reach, reach + 1)
    kernel[: len(times)] = np.sinc(times / max(up, down)) * np.kaiser(2 * reach + 1, KAISER_BETA)
    kernel *= up / kernel.sum()
    found = np.zeros(count)
    padded = np.concatenate([np.zeros(taps), samples, np.zeros(taps + down)]).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    for first in range(min(up, count)):
        # Output i is at i · down in steps of 1 / up; the newest input within reach of it is floor((i · down + reach) / up).
        place = first * down + reach
        steps = len(range(first, count, up))
        last = place // up + taps  # in `padded`, of the newest sample within reach
        rows = windows[last - taps + 1 :: down][:steps]
        found[first::up] = rows @ kernel[place % up :: up][::-1]
    return found.astype(np.float32)


# -------------------------------------------------------------------------------- samples → features


def fbank(audio: np.ndarray, steps: Mapping[str, Any]) -> np.ndarray:
    """Kaldi's log mel energies float32 [frames, mels] of a sound, cut or filled up with zeros, as AST reads them."""
    audio = np.pad(audio, (0, max(0, SHORTEST_WINDOW - len(audio))))
    rows = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), SHORTEST_WINDOW)[::FBANK_HOP]
    rows = rows[: steps["frames"]] - rows[: steps["frames"]].mean(axis=1, keepdims=True)
    before = np.concatenate([rows[:, :1], rows[:, :-1]], axis=1)
    rows = (rows - PREEMPHASIS * before) * np.hanning(SHORTEST_WINDOW)
    power = np.abs(np.fft.rfft(rows, FBANK_FFT)) ** 2
    energies = np.log(np.maximum(power @ kaldi_bands(steps["rate"], steps["mels"]), FBANK_FLOOR))
    made = np.zeros((steps["frames"], steps["mels"]), dtype=np.float32)
    made[: len(energies)] = energies
    if steps["mean"] is not None:
        made = (made - np.float32(steps["mean"])) / np.float32(2 * steps["std"])
    return made


def log_mel(audio: np.ndarray, steps: Mapping[str, Any]) -> np.ndarray:
    """Whisper's log mel energies float32 [mels, frames] of a sound, filled up with silence to `frames`, or more for a longer one
    (Radford et al., 2022)."""
    window, hop = steps["window"], steps["hop"]
    audio = np.pad(audio.astype(np.float32), (0, max(0, steps["frames"] * hop - len(audio))))
    frames = len(audio) // hop
    rows = np.lib.stride_tricks.sliding_window_view(np.pad(audio, window // 2, mode="reflect"), window)[::hop][:frames]
    bands, shape = slaney_bands(steps["rate"], steps["mels"], window), np.hanning(window + 1)[:-1]
    logs = np.empty((steps["mels"], frames), dtype=np.float32)
    for first in range(0, frames, FRAMES_AT_ONCE):
        power = np.abs(np.fft.rfft(rows[first : first + FRAMES_AT_ONCE].astype(np.float64) * shape)) ** 2
        logs[:, first : first + FRAMES_AT_ONCE] = np.log10(np.maximum(power @ bands, LOG_MEL_FLOOR)).T
    return (np.maximum(logs, logs.max() - np.float32(8.0)) + np.float32(4.0)) / np.float32(4.0)


@lru_cache(maxsize=4)
def kaldi_bands(rate: int, mels: int) -> np.ndarray:
    """Weights [FBANK_FFT / 2 + 1, mels]: triangles of equal width on Kaldi's mel scale, from 20 Hz up."""
    bins = _kaldi_mel(rate / FBANK_FFT * np.arange(FBANK_FFT // 2 + 1))
    lowest, highest = _kaldi_mel(np.array([FBANK_LOWEST_HZ, rate // 2]))
    return _triangles(bins, np.linspace(lowest, highest, mels + 2))


@lru_cache(maxsize=4)
def slaney_bands(rate: int, mels: int, window: int) -> np.ndarray:
    """Weights [window / 2 + 1, mels]: triangles up to 8 kHz of equal area, linear below 1 kHz, then logarithmic."""
    lowest, highest = 0.0, 15.0 + np.log(8.0) * 27.0 / np.log(6.4)
    mel = np.linspace(lowest, highest, mels + 2)
    corners = np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0)))
    bands = _triangles(np.linspace(0, rate // 2, window // 2 + 1), corners)
    return bands * (2.0 / (corners[2:] - corners[:-2]))


def _kaldi_mel(hertz: np.ndarray) -> np.ndarray:
    return np.asarray(1127.0 * np.log(1.0 + hertz / 700.0))


def _triangles(bins: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Weights [bins, corners - 2]: each rises from one corner to the next and falls to the one after."""
    gaps = np.diff(corners)
    rising = (bins[:, None] - corners[None, :-2]) / gaps[:-1]
    falling = (corners[None, 2:] - bins[:, None]) / gaps[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


def frames_of(samples: int, kernels: Sequence[Sequence[int]]) -> int:
    """How many frames convolutions without padding make of so many samples."""
    for size, stride in kernels:
        samples = (samples - size) // stride + 1
    return samples


def least_samples(kernels: Sequence[Sequence[int]]) -> int:
    """The fewest samples that make one frame."""
    samples = 1
    for size, stride in reversed(kernels):
        samples = (samples - 1) * stride + size
    return samples


# -------------------------------------------------------------------------------- outputs → predictions → people


def run(pipeline: Pipeline, runner: Any, batch: Batch, most: int) -> dict[str, np.ndarray]:
    """Outputs of the sounds of a batch, at most `most` together. A network that takes no mask hears padding as sound (its norms
    are over time): there sounds of different lengths go one length after the other, none of them padded."""
    rows = len(batch.owner)
    groups = [np.arange(rows)]
    if batch.mask is not None and "attention_mask" not in batch.inputs:
        lengths = batch.mask.sum(axis=1)
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    outputs: list[Mapping[str, np.ndarray]] = [{}] * rows
    for group in groups:
        for first in range(0, len(group), most):
            part = group[first : first + most]
            width = slice(None) if batch.mask is None else slice(0, int(batch.mask[part].sum(axis=1).max()))
            made = runner.run(
                {name: np.ascontiguousarray(value[part][:, width]) for name, value in batch.inputs.items()}
            )
            for place, row in enumerate(part):
                outputs[row] = {name: value[place] for name, value in made.items()}
    return {name: _stacked([one[name] for one in outputs]) for name in outputs[0]}


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays as rows of one, filled up with zeros along their first axis where they differ in it."""
    longest = max(array.shape[0] if array.ndim else 0 for array in arrays)
    if all(array.shape == arrays[0].shape for array in arrays):
        return np.stack(arrays)
    return np.stack([np.pad(array, [(0, longest - len(array)), *[(0, 0)] * (array.ndim - 1)]) for array in arrays])


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, np.ndarray], batch: Batch, samples: Sequence[bytes]
) -> list[Any]:
    """One prediction per sample: of audio-classification logits float32 (classes,); of automatic-speech-recognition
    {"text", "score"}, the score the geometric mean of what the network gives its choice in every frame."""
    logits = np.asarray(outputs["logits"], dtype=np.float32)
    if "ctc" not in pipeline:
        return list(logits)
    counts = batch.frames or [logits.shape[1]] * len(logits)
    return [_spelled(row[:count], batch.tokens, pipeline["ctc"]) for row, count in zip(logits, counts, strict=True)]


def _spelled(logits: np.ndarray, tokens: Sequence[str], how: Mapping[str, Any]) -> dict[str, Any]:
    """The likeliest path of frames [frames, tokens] as a text: repetitions are one, blanks are none (Graves et al., 2006)."""
    path = logits.argmax(axis=1)
    kept = path[np.concatenate([[True], path[1:] != path[:-1]])] if len(path) else path
    text = "".join(tokens[number] for number in kept if number != how["blank"])
    text = text.replace(how["delimiter"] or " ", how.get("replace_word_delimiter_char", " ")).strip()
    if how.get("clean_up_tokenization_spaces"):
        text = closer(text)
    best = logits.max(axis=1, initial=-np.inf).astype(np.float64)
    total = np.log(np.exp(logits.astype(np.float64) - best[:, None]).sum(axis=1))
    return {"text": text.lower() if how["lower"] else text, "score": float(np.exp(-total.mean())) if len(path) else 0.0}


def difference(written: Any, got: Any) -> float:
    """How far two predictions are apart: another text counts 1, a NaN infinity."""
    if isinstance(written, Mapping):
        gap = abs(written["score"] - got["score"]) if written["text"] == got["text"] else 1.0
        return gap if np.isfinite(gap) else float("inf")
    before, now = np.asarray(written, dtype=np.float64), np.asarray(got, dtype=np.float64)
    gap = float(np.abs(before - now).max(initial=0.0)) if before.shape == now.shape else float("inf")
    return gap if np.isfinite(gap) else float("inf")


def distance(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What golden predictions are compared by: texts, or logits."""
    return ("difference", difference) if "ctc" in pipeline else CHANGE


def present(pipeline: Pipeline, prediction: Any, sample: bytes, preprocessor: Any = None) -> dict[str, Any]:
    """A prediction as JSON for people: {"text", "score"}, or {"label", "score", "scores"}, with "labels" above one half
    when several may hold."""
    if isinstance(prediction, Mapping):
        return dict(prediction)
    return present_classes(pipeline, prediction)


def read_vocabulary(folder: Path, language: str | None = None) -> list[str]:
    """The tokens of a folder's vocab.json, by their ids: of one language where it has a vocabulary for each (MMS)."""
    path = Path(folder) / "vocab.json"
    try:
        given = parsed(path.read_bytes(), path.name)
        if given and all(isinstance(one, Mapping) for one in given.values()):
            if language not in given:
                raise ValueError(f"it has a vocabulary for each of {len(given)} languages, and none for {language!r}")
            given = given[language]
        tokens = {int(number): str(token) for token, number in given.items()}
        if tokens and not 0 <= min(tokens) <= max(tokens) <= LARGEST_NUMBER:
            raise ValueError("its ids are no places in a list")
    except (OSError, EdgeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no vocabulary (token to id): {error}; copy the model's own") from error
    return [tokens.get(number, "") for number in range(max(tokens, default=-1) + 1)]
