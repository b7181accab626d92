"""Audio classification: one label of several (or any number of them) for a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fmopt.core.model import CheckpointMetadata
from fmopt.tasks.base import Item, Usage, label_index
from fmopt.tasks.text_classification import TextClassification, several_labels

SEQUENCES = ("Wav2Vec2", "Wav2Vec2Bert", "Wav2Vec2Conformer", "Hubert", "WavLM", "UniSpeech", "UniSpeechSat", "Data2VecAudio",
             "SEW", "SEWD")  # fmt: skip


class AudioClassification(TextClassification):
    """Logits over labels, judged as those of a text are."""

    name = "audio-classification"
    modality = "audio"
    auto_class = "AutoModelForAudioClassification"
    # Networks that read samples call the head as those for texts do.
    architectures = ("ForAudioClassification", *(f"{name}ForSequenceClassification" for name in SEQUENCES))
    columns: Mapping[str, tuple[str, ...]] = {
        "audio": ("audio", "sound", "speech", "wav", "file", "file_name", "path", "filename"),
        "label": ("label", "labels", "target", "class", "category", "intent", "command", "keyword"),
    }
    needed = (("audio",),)
    usage = Usage("sound.wav", "its label with scores")
    regression = None
    head_tensors = ()

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; DataError on a label that the model does not have."""
        labels = metadata.pipeline.get("labels") or []
        read = several_labels if metadata.pipeline.get("multi_label") else label_index
        return [Item(number, row["audio"], read(row.get("label"), labels, number)) for number, row in enumerate(rows)]


TASK = AudioClassification()
