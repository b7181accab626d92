"""Speech recognition by an encoder and a decoder (Whisper) of a bundle: sounds as audio.py reads them, texts as seq2seq.py
makes them. A raw is the bytes of an audio file; a prediction is {"text", "tokens"}. The model's tokenizer.json
spells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import audio, seq2seq

read_sample, run, work, timed = audio.read_sample, seq2seq.run, seq2seq.work, seq2seq.timed
add_arguments, options_of = seq2seq.add_arguments, seq2seq.options_of


class Preprocessor(audio.Preprocessor):
    """Encodes sounds, and spells what is made of them."""

    def __init__(self, folder: Path, pipeline: Mapping[str, Any]):
        super().__init__(folder, pipeline)
        try:
            import tokenizers

            self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        except ImportError as error:
            raise ValueError("tokenizers is not installed here; pip install tokenizers") from error
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{folder} has no tokenizer.json that can be read: {str(error)[:100]}") from error

    def encode(self, samples: Sequence[bytes], length: int | None = None) -> Any:
        """Arrays of the samples, and how an answer is spelled."""
        batch = super().encode(samples, length)
        batch.decode = self.tokenizer.decode
        return batch

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of what is said in a sound."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)


def postprocess(
    pipeline: Mapping[str, Any], outputs: Mapping[str, np.ndarray], batch: Any, samples: Sequence[Any]
) -> list[dict[str, Any]]:
    """What is said in every sound: {"text", "tokens"}."""
    found = seq2seq.postprocess(pipeline, outputs, batch, samples)
    return [{"text": batch.decode(ids.tolist()).strip(), "tokens": len(ids)} for ids in found]


def difference(written: Mapping[str, Any], got: Mapping[str, Any]) -> float:
    """The share of words that are not the same, place by place."""
    before, now = written["text"].split(), got["text"].split()
    longest = max(len(before), len(now))
    return 1 - sum(map(str.__eq__, before, now)) / longest if longest else 0.0


def present(
    pipeline: Mapping[str, Any], prediction: Mapping[str, Any], sample: Any, preprocessor: Any
) -> dict[str, Any]:
    """A prediction for people."""
    return dict(prediction)


def answer(model: Any, samples: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
    """What is said in sounds, for people: {"text", "tokens"}. `wishes` are fields of `generation.Wish`."""
    return seq2seq.decoded_answers(model, samples, model.preprocessor.own.encode(samples).inputs, **options)


def stream(model: Any, sample: Any, **options: Any) -> Iterator[str]:
    """What is said in one sound, piece by piece; no beams."""
    return seq2seq.pieces(model, model.preprocessor.own.encode([sample]).inputs, **options)
