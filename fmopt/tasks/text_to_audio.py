"""Speech synthesis: a text spoken, judged by how far its audio is from the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.speech import mel_distance
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column

HEARD = 0.1  # bels: a decibel, about what is heard as a difference of loudness


class TextToAudio(Task):
    """Waveforms. There is no right one, so that the baseline's, of the same text and noise, is what they are measured by."""

    name = "text-to-audio"
    auto_class = "AutoModelForTextToWaveform"
    architectures = ("VitsModel",)
    columns: Mapping[str, tuple[str, ...]] = {
        "text": ("text", "sentence", "transcript", "transcription", "normalized_text")
    }
    needed = (("text",),)
    output = Output.AUDIO
    usage = Usage('"a text"', "its audio; --seed for another one")

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row."""
        return [Item(number, row["text"]) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Mel distance to the baseline in bels, so that a drop of 10 points is a decibel; and by which share of the
        baseline's length one is longer or shorter, which the distance forgives."""
        if baseline is None:
            return []
        rate = int(metadata.pipeline["speech"]["rate"])
        pairs = list(zip(baseline, predictions, strict=True))
        apart = [mel_distance(before, now, rate) for before, now in pairs]
        stretched = [abs(len(now) - len(before)) / len(before) for before, now in pairs]
        return [
            Scores(name="mel distance", metric="lower_mean", values=column(apart), primary=True, against_baseline=True),
            Scores(name="change of length", metric="lower_mean", values=column(stretched), against_baseline=True),
        ]

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts whose audio differs by more than a decibel, or in length; the furthest first."""
        rate, found = int(metadata.pipeline["speech"]["rate"]), []
        for index, (before, now) in enumerate(zip(baseline, predictions, strict=True)):
            apart = mel_distance(before, now, rate)
            if apart > HEARD or len(before) != len(now):
                found.append(
                    Change(
                        index,
                        f"{len(before) / rate:.2f} s",
                        f"{len(now) / rate:.2f} s, {10 * apart:.1f} dB away",
                        apart,
                    )
                )
        return found


TASK = TextToAudio()
