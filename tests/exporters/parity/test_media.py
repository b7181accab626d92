"""Images and sounds are compared with transformers' own pipelines, from the file to the answer."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmopt.core.errors import CheckpointError, ParityError
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity.inputs import Served, require_input_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.audio_models import CLASSIFICATION, LETTERS, RECOGNITION, write_audio
from tests.torch_models import InTorch
from tests.vision_models import write_detector, write_matcher, write_vision


def check(folder: Path, **changed: Any) -> None:
    """Compare a checkpoint with what is served by its pipeline, changed so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata = checkpoint.inspect(resolve(str(folder)))
    pipeline = {**metadata.pipeline, **changed}
    net: Any = checkpoint.load(metadata).net
    served = Served(
        replace(metadata, pipeline=pipeline),
        open_preprocessor(metadata.folder, pipeline),
        InTorch(net, pipeline["outputs"]),
    )
    require_input_parity(served, net, [])


def test_images_answer_as_the_pipeline_does(tmp_path: Path) -> None:
    folder = write_vision(tmp_path / "vit", "vit")
    check(folder)
    steps = json.loads(json.dumps(checkpoint.inspect(resolve(str(folder))).pipeline["image"]))
    for changed, reported in (
        ({"activation": "sigmoid"}, "a score of item 1 is off by"),
        ({"image": steps | {"rescale": 1 / 128}}, "a score of item 1 is off by"),
        ({"image": steps | {"flip": True}}, "a score of item"),
    ):
        with pytest.raises(ParityError, match=reported):
            check(folder, **changed)


@pytest.mark.parametrize(
    ("write", "family", "changed", "reported"),
    [
        (write_detector, "detr", {"rescale": 1 / 64}, "a box of item 1"),
        (write_detector, "rt_detr", {"rescale": 1 / 64}, "a box of item 1"),
        (write_vision, "segformer", {"rescale": 1 / 64}, "of the pixels of item 1 have another class"),
        (write_matcher, "clip", {"mean": [0.1, 0.1, 0.1]}, "the pixels of item 1 are off by"),
    ],
)
def test_boxes_maps_and_pixels_are_those_of_the_pipeline(
    tmp_path: Path, write: Callable[..., Path], family: str, changed: dict[str, Any], reported: str
) -> None:
    folder = write(tmp_path / family, family)
    check(folder)
    steps = json.loads(json.dumps(checkpoint.inspect(resolve(str(folder))).pipeline["image"]))
    with pytest.raises(ParityError, match=reported):
        check(folder, image=steps | changed)


@pytest.mark.parametrize(
    ("family", "task"), [("wav2vec2", CLASSIFICATION), ("audio-spectrogram-transformer", CLASSIFICATION)]
)
def test_recordings_answer_as_the_pipeline_does(tmp_path: Path, family: str, task: str) -> None:
    folder = write_audio(tmp_path / family, family, task)
    check(folder)
    with pytest.raises(ParityError, match="a score of item 1 is off by"):
        check(folder, activation="none")


def test_what_is_heard_is_what_the_pipeline_hears(tmp_path: Path) -> None:
    folder = write_audio(tmp_path / "wav2vec2", "wav2vec2", RECOGNITION)
    check(folder)
    spelling = dict(checkpoint.inspect(resolve(str(folder))).pipeline["ctc"])
    reported = []
    for letter in range(1, len(LETTERS)):  # one of them is in what a random network hears
        with contextlib.suppress(ParityError):
            check(folder, ctc=spelling | {"blank": letter})
            continue
        reported.append(letter)
    assert reported


def test_letters_are_those_of_the_language_that_a_checkpoint_names(tmp_path: Path) -> None:
    folder = write_audio(tmp_path / "mms", "wav2vec2", RECOGNITION)
    english = json.loads((folder / "vocab.json").read_text())
    greek = {(chr(ord(token) + 800) if token.isalpha() else token): number for token, number in english.items()}
    (folder / "vocab.json").write_text(json.dumps({"eng": english, "ell": greek}))
    with pytest.raises(CheckpointError, match="a vocabulary for each of 2 languages, and none for None"):
        check(folder)
    own = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(own | {"target_lang": "ell"}))
    check(folder)
    spelling = checkpoint.inspect(resolve(str(folder))).pipeline["ctc"]
    with pytest.raises(ParityError, match="is heard as"):
        check(folder, ctc=spelling | {"language": "eng"})
