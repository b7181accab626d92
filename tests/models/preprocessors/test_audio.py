"""Feature extractors: a bundle's features are the extractor's own, or the checkpoint is refused in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fmopt.core.errors import CheckpointError
from fmopt.edge.loading import Model
from fmopt.edge.text import open_preprocessor
from fmopt.models import checkpoint
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.source import resolve
from tests.audio_models import CLASSIFICATION, RECOGNITION, audio, write_audio

FAMILIES = ("wav2vec2", "hubert", "audio-spectrogram-transformer")


class Network:
    """A network as a runner."""

    def __init__(self, net: Any):
        self.net = net

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {
                "logits": self.net(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
            }


def opened(folder: Path, kind: Any) -> Model:
    pipeline = dict(checkpoint.inspect(resolve(str(folder))).pipeline)
    net = kind.from_pretrained(folder).eval()
    return Model({"pipeline": pipeline}, open_preprocessor(folder, pipeline), Network(net))


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
@pytest.mark.parametrize("task", [CLASSIFICATION, RECOGNITION])
def test_a_recording_is_heard_alike_whatever_is_beside_it(tmp_path: Path, family: str, task: str) -> None:
    kind = transformers.AutoModelForCTC if task == RECOGNITION else transformers.AutoModelForAudioClassification
    model = opened(write_audio(tmp_path, family, task), kind)
    samples = [audio(1, 0.3, 300.0), audio(2, 0.9, 900.0), audio(3, 0.3, 500.0), audio(4, 0.11)]
    alone = [model.predict([sample])[0] for sample in samples]
    for together in (model.predict(samples, batch_size=4), model.predict(samples, batch_size=2)):
        for one, other in zip(alone, together, strict=True):
            if task == RECOGNITION:
                assert other["text"] == one["text"]
                assert other["score"] == pytest.approx(one["score"], abs=1e-5)
            else:
                np.testing.assert_allclose(other, one, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_extractor_does_is_done(tmp_path: Path, family: str) -> None:
    folder = write_audio(tmp_path, family, CLASSIFICATION)
    path = folder / "preprocessor_config.json"
    for change in ({}, {"do_normalize": False}):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert checkpoint.inspect(resolve(str(folder))).task == CLASSIFICATION


@pytest.mark.parametrize(
    ("family", "owner", "name"),
    [
        ("wav2vec2", transformers.Wav2Vec2FeatureExtractor, "zero_mean_unit_var_norm"),
        ("audio-spectrogram-transformer", transformers.ASTFeatureExtractor, "normalize"),
    ],
)
def test_a_step_that_is_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, owner: Any, name: str
) -> None:
    folder, own = write_audio(tmp_path, family, CLASSIFICATION), getattr(owner, name)

    def louder(self: Any, values: Any, **more: Any) -> Any:
        made = own(self, values, **more) if name == "normalize" else own(values, **more)
        return [2 * one for one in made] if isinstance(made, list) else 2 * made

    monkeypatch.setattr(
        owner, name, louder if name == "normalize" else lambda self, values, **more: louder(self, values, **more)
    )
    with pytest.raises(CheckpointError, match="fmopt does not make of sounds what a ") as error:
        checkpoint.inspect(resolve(str(folder)))
    assert "\n" not in str(error.value)


def test_noise_of_chance_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_audio(tmp_path, "wav2vec2", CLASSIFICATION)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 32, "chunk_length": 1, "dither": 0.1}
        )
    )
    from fmopt.models.preprocessors.audio import read_audio_processor

    config = transformers.WhisperConfig(num_mel_bins=32, max_source_positions=50)
    with caplog.at_level(logging.WARNING):
        read_audio_processor(CheckpointFiles.of(folder), config)
    assert "dither is left out" in caplog.text
