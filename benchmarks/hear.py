"""What a recogniser hears when bundles speak: WER of each on the same texts, and how much is lost against the first.

    python benchmarks/hear.py RECOGNISER TEXTS.jsonl BUNDLE [BUNDLE...] [--seed N] [--json OUT]

RECOGNISER is a bundle of automatic-speech-recognition, such as fmopt optimize made of wav2vec2-mini on fsdd; the bundles are
of text-to-audio, the first one full precision. Sounds are resampled to what the recogniser reads. Of a network with random
weights nothing can be recognised; then this shows only that both say the same nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fmopt
from fmopt.core.errors import DataError, FmoptError
from fmopt.core.media.audio import wav_file
from fmopt.core.results import Scores
from fmopt.evaluation.bootstrap import paired_drop
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.automatic_speech_recognition import edits, words_of


def heard(recogniser: Any, speaker: Any, texts: Sequence[str], seed: int) -> list[str]:
    """What the recogniser makes of each text as it is spoken."""
    found = []
    for text in texts:
        said = speaker(text, seed=seed)
        found.append(recogniser(wav_file(said["audio"], {"sampling_rate": said["sampling_rate"]}))["text"])
    return found


def word_errors(texts: Sequence[str], found: Sequence[str]) -> Scores:
    """Errors and words of each text, as SpeechRecognition counts them."""
    pairs = [(words_of(text), words_of(got)) for text, got in zip(texts, found, strict=True)]
    values = [[float(edits(reported, got)), float(len(reported))] for reported, got in pairs]
    return Scores(name="WER", metric="error_rate", values=values)


def compare(recogniser: Path, texts: Sequence[str], bundles: Sequence[Path], seed: int = 0) -> list[dict[str, Any]]:
    """For each bundle {"bundle", "wer", "drop", "heard"}: its WER, and how much higher than the first's with its interval."""
    ears, rows, first = fmopt.load(recogniser), [], None
    if ears.pipeline["task"] != "automatic-speech-recognition":
        raise DataError(f"{recogniser} does {ears.pipeline['task']}; give a bundle that recognises speech")
    for folder in bundles:
        speaker = fmopt.load(folder)
        if "speech" not in speaker.pipeline:
            raise DataError(f"{folder} does {speaker.pipeline['task']}; give bundles that speak")
        found = heard(ears, speaker, texts, seed)
        errors = word_errors(texts, found)
        first = first or errors
        lost = paired_drop(first, errors).model_dump()
        wer = float(METRICS[errors.metric].of(errors.array()))
        rows.append({"bundle": folder.name, "wer": wer, "drop": lost, "heard": found})
        speaker.close()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recogniser", type=Path)
    parser.add_argument("texts", type=Path, help='JSON Lines with "text"')
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found there too")
    asked = parser.parse_args(argv)
    try:
        texts = [json.loads(line)["text"] for line in asked.texts.read_text("utf8").splitlines() if line.strip()]
        with warnings.catch_warnings():
            warnings.filterwarnings("once", message=".*resampled")
            rows = compare(asked.recogniser, texts, asked.bundles, asked.seed)
    except (FmoptError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        lost = row["drop"]
        print(
            f"{row['bundle']}: WER {row['wer']:.1%}, {lost['point']:+.1%} ({lost['low']:+.1%} to {lost['high']:+.1%})"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"texts": texts, "seed": asked.seed, "found": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
