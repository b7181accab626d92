"""Speech synthesis of a bundle: a text in letters, noise by a seed, a sound; and how far two sounds are apart.

The graph takes letters and noise (`duration_noise` for how long each letter lasts, `noise` for how it sounds) and gives
`waveform` [rows, samples] with `sequence_lengths`, how many of a row's samples are its sound. Noise is drawn here, so that
the same text and seed give the same sound on every runtime. A pipeline's "speech" says
    rate, channels                      samples a second; channels of the noise
    noise_scale, noise_scale_duration   as the model was tuned; 0 takes the mean of what it may say
    add_blank, normalize, romanize      how letters become ids, as VitsTokenizer does
    pad, unknown, special, least        ids, texts of special tokens; how many ids there are at least, the rest padding
"""

from __future__ import annotations

import re
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError
from .files import parsed

Pipeline = Mapping[str, Any]
SEED = 0  # of noise, when the caller names none
BLANK = 0  # the id between letters
NOISE_FRAMES = 1024  # drawn for each `LETTERS_OF_NOISE` ids or part of them: more than are spoken in any usual time
LETTERS_OF_NOISE = 128
WINDOW_S, MELS, FLOOR = (
    0.064,
    80,
    1e-10,
)  # of the frames by which sounds are compared; the floor is 100 dB below full scale


# -------------------------------------------------------------------------------- texts → ids and noise


@dataclass
class Batch:
    """Encoded texts, one row each; `mask` is 1 where an id is one of the text's, and `least` how many ids a row needs."""

    inputs: dict[str, np.ndarray]
    mask: np.ndarray
    owner: list[int]
    least: int


class Preprocessor:
    """Ids of a text's letters, exactly as VitsTokenizer makes them, and noise."""

    def __init__(self, folder: Path, pipeline: Pipeline):
        self.pipeline, self.speech = pipeline, pipeline["speech"]
        self.vocabulary = read_letters(folder)

    def encode(
        self, samples: Sequence[Any], length: int | None = None, seed: int = SEED, noise_scale: float | None = None
    ) -> Batch:
        """Arrays of the texts, padded to the longest; `length` means nothing here. ValueError on what cannot be spoken."""
        rows = []
        for index, sample in enumerate(samples):
            try:
                rows.append(self.ids(sample))
            except ValueError as error:
                raise ValueError(f"item {index + 1}: {error}") from error
        width = max(self.speech["least"], *map(len, rows))
        ids = np.full((len(rows), width), self.speech["pad"], dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        scale = self.speech["noise_scale"] if noise_scale is None else noise_scale
        frames = NOISE_FRAMES * -(-width // LETTERS_OF_NOISE)
        made = {
            "input_ids": ids,
            "attention_mask": mask,
            "duration_noise": drawn(2, width, seed, 0)[None] * np.float32(self.speech["noise_scale_duration"]),
            "noise": drawn(self.speech["channels"], frames, seed, 1)[None] * np.float32(scale),
        }
        made |= {name: np.repeat(made[name], len(rows), axis=0) for name in ("duration_noise", "noise")}
        return Batch(
            {name: made[name] for name in self.pipeline["inputs"]}, mask, list(range(len(rows))), self.speech["least"]
        )

    def ids(self, sample: Any) -> list[int]:
        """Ids of one text; ValueError when it has no letter that the model knows."""
        if not isinstance(sample, str):
            raise ValueError(f"{str(sample)[:60]!r} is not a text")
        letters = self._lowered(sample) if self.speech["normalize"] else sample
        if self.speech["romanize"] and not letters.isascii():
            raise ValueError(
                f"{sample[:60]!r} is not in Latin letters, which this model reads; romanize it first (uroman)"
            )
        if self.speech["normalize"]:
            letters = "".join(letter for letter in letters if letter in self.vocabulary).strip()
        if not letters:
            known = " ".join(sorted(letter for letter in self.vocabulary if len(letter) == 1 and not letter.isspace()))
            raise ValueError(f"{sample[:60]!r} has no letter that this model speaks; it speaks {known[:200]}")
        # Special tokens part a text, also where one of them is a letter (in MMS, the blank is).
        special = "|".join(map(re.escape, self.speech["special"]))
        found: list[int] = []
        for place, piece in enumerate(re.split(f"({special})", letters)):
            ids = [self.vocabulary.get(letter, self.speech["unknown"]) for letter in ([piece] if place % 2 else piece)]
            found += ids if place % 2 or not ids else self._spaced(ids)
        return found

    def _spaced(self, ids: Sequence[int]) -> list[int]:
        """The ids with blanks between and around them, where the model was trained so."""
        if not self.speech["add_blank"]:
            return list(ids)
        spaced = [BLANK] * (2 * len(ids) + 1)
        spaced[1::2] = ids
        return spaced

    def _lowered(self, text: str) -> str:
        """The text in small letters, but for what the vocabulary has in others."""
        made, at = "", 0
        while at < len(text):
            known = next((word for word in self.vocabulary if word and text.startswith(word, at)), None)
            made += known or text[at].lower()
            at += len(known or text[at])
        return made


@lru_cache(maxsize=16)
def drawn(channels: int, places: int, seed: int, what: int) -> np.ndarray:
    """Standard normal numbers float32 [channels, places]: of the same seed, the first places are the same however many
    there are. `what` tells draws for different purposes apart."""
    # The one generator of numpy whose numbers stay the same in every version.
    numbers = np.random.RandomState([seed, what]).standard_normal((places, channels))
    numbers = np.ascontiguousarray(numbers.T, dtype=np.float32)
    numbers.setflags(write=False)  # shared by all who ask
    return numbers


def read_letters(folder: Path) -> dict[str, int]:
    """A folder's vocab.json: letters with their ids. ValueError when there is none."""
    path = Path(folder) / "vocab.json"
    try:
        return {str(letter): int(number) for letter, number in parsed(path.read_bytes(), path.name).items()}
    except (OSError, EdgeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no vocabulary (letter to id): {error}; copy the model's own") from error


# -------------------------------------------------------------------------------- the graph → sounds


def run(pipeline: Pipeline, runner: Any, batch: Batch, most: int) -> dict[str, list[np.ndarray]]:
    """The sound of every row, each computed alone: beside a longer one, the end of a sound would be another."""
    waveforms = []
    for row, mask in enumerate(batch.mask):
        width = max(int(mask.sum()), batch.least)
        own = {
            name: value[row : row + 1] if name == "noise" else value[row : row + 1, ..., :width]
            for name, value in batch.inputs.items()
        }
        outputs = runner.run(own)
        samples = int(np.ravel(outputs["sequence_lengths"])[0])
        waveforms.append(np.asarray(outputs["waveform"][0, :samples], dtype=np.float32))
    return {"waveform": waveforms}


def postprocess(
    pipeline: Pipeline, outputs: Mapping[str, Any], batch: Batch, samples: Sequence[Any]
) -> list[np.ndarray]:
    """One sound per text: samples float32 (n,) in [-1, 1]."""
    return list(outputs["waveform"])


def present(pipeline: Pipeline, prediction: np.ndarray, sample: Any, preprocessor: Any = None) -> dict[str, Any]:
    """A sound as transformers' pipeline gives it: {"audio": samples float32 (n,), "sampling_rate"}."""
    return {"audio": np.asarray(prediction, dtype=np.float32), "sampling_rate": int(pipeline["speech"]["rate"])}


def answer(
    model: Any,
    samples: Sequence[Any],
    seed: int = SEED,
    noise_scale: float | None = None,
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Each text spoken: {"audio", "sampling_rate"}, or with `output` {"file", "seconds", "sampling_rate"}.

    `output` is a WAV file to be written, or a folder for one named after each text; no file is overwritten.
    """
    own, found = model.preprocessor.own, []
    for sample in samples:
        batch = own.encode([sample], seed=seed, noise_scale=noise_scale)
        (audio,) = postprocess(model.pipeline, run(model.pipeline, model.runner, batch, 1), batch, [sample])
        shown = present(model.pipeline, audio, sample)
        found.append(shown if output is None else _written(shown, Path(output), sample))
    return found


def _written(shown: Mapping[str, Any], output: Path, sample: str) -> dict[str, Any]:
    name = re.sub(r"\W+", "-", sample).strip("-")[:60] or "sound"
    path = output if output.suffix.lower() == ".wav" else output / f"{name}.wav"
    if path.exists():
        raise ValueError(f"{path} is there already; choose another name, and a folder for several texts")
    rate, audio = shown["sampling_rate"], shown["audio"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    return {"file": str(path), "seconds": round(len(audio) / rate, 3), "sampling_rate": rate}


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside texts."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT.wav|FOLDER", help="where the sound goes")
    parser.add_argument("--seed", type=int, default=SEED, help="of what varies from one speaking to the next (0)")
    parser.add_argument("--noise-scale", type=float, help="how much it varies; 0: not at all (the model's own)")


def options_of(asked: Any) -> dict[str, Any]:
    """What `answer` takes, of parsed arguments."""
    return {"output": asked.output, "seed": asked.seed, "noise_scale": asked.noise_scale}


# -------------------------------------------------------------------------------- two sounds


def difference(written: Any, got: Any) -> float:
    """Of golden predictions: `mel_distance`, by frames that do not depend on the rate; infinite for what is no sound."""
    before, now = (np.asarray(one, dtype=np.float64) for one in (written, got))
    gap = mel_distance(before, now, 16_000)
    return gap if np.isfinite(gap) else float("inf")


def mel_distance(before: np.ndarray, now: np.ndarray, rate: int) -> float:
    """Mean absolute difference of two sounds' log10 mel energies, in bels: 0.1 is 1 dB in every band of every frame.

    Sounds of different length are compared along the path of dynamic time warping that costs least (Sakoe and Chiba, 1978:
    symmetric, by the sum of both lengths), as mel-cepstral distortion is.
    """
    first, second = mel_frames(before, rate), mel_frames(now, rate)
    if len(first) == len(second):
        return float(np.abs(first - second).mean())
    costs = np.stack([np.abs(second - frame).mean(axis=1) for frame in first])
    return _least_path(costs) / (len(first) + len(second))


def _least_path(costs: np.ndarray) -> float:
    """The least sum along a path from the first to the last of both, a step along both at once counted twice."""
    rows, columns = costs.shape
    # Along a diagonal nothing depends on the rest of it: entry i of each holds place (i, diagonal - i).
    last, before = np.full(rows + 1, np.inf), np.full(rows + 1, np.inf)
    for diagonal in range(rows + columns - 1):
        at = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        cost = costs[at, diagonal - at]
        now = np.full(rows + 1, np.inf)  # entry i + 1, so that the one above the first is infinite
        now[at + 1] = np.minimum(np.minimum(last[at], last[at + 1]) + cost, before[at] + 2 * cost)
        if not diagonal:
            now[1] = 2 * cost[0]
        last, before = now, last
    return float(last[rows])


def mel_frames(audio: np.ndarray, rate: int) -> np.ndarray:
    """Log10 mel energies [frames, MELS] of a sound, frames a quarter of their length apart; a full sine is about 0."""
    size = 2 ** round(np.log2(WINDOW_S * rate))
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(np.asarray(audio, dtype=np.float64), size // 2)
    padded = np.pad(padded, (0, max(0, size - len(padded))))
    rows = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 4]
    power = np.abs(np.fft.rfft(rows * window)) ** 2 / (window.sum() / 2) ** 2
    return np.asarray(np.log10(np.maximum(power @ _bands(rate, size), FLOOR)))


@lru_cache(maxsize=4)
def _bands(rate: int, size: int) -> np.ndarray:
    """Weights [size / 2 + 1, MELS]: triangles of equal width on the mel scale (O'Shaughnessy, 1987), up to half the rate."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    gaps = np.diff(corners)
    rising, falling = (bins - corners[:-2]) / gaps[:-1], (corners[2:] - bins) / gaps[1:]
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))
