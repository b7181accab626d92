"""What is made token by token is compared with `generate` of transformers, from the raw input to the text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fmopt
from fmopt.core.errors import ParityError
from fmopt.edge.loading import load as edge_load
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity.inputs import Served, require_input_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.audio_models import audio, write_whisper
from tests.conftest import SENTENCES, TinyCheckpoint

SOUNDS = [audio(seed, 0.4) for seed in range(2)]


def comparison(folder: Path, out: Path, samples: list[Any]) -> Callable[..., None]:
    """Compares a checkpoint with its bundle, whose pipeline is changed as the arguments say; None takes a key out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = edge_load(fmopt.export(folder, out), 1)
        metadata = checkpoint.inspect(resolve(str(folder)))
    net: Any = checkpoint.load(metadata).net

    def check(**changed: Any) -> None:
        kept = {name: value for name, value in {**bundle.pipeline, **changed}.items() if value is not None}
        served = Served(replace(metadata, pipeline=kept), open_preprocessor(metadata.folder, kept), bundle.runner)
        require_input_parity(served, net, samples)

    return check


@pytest.mark.parametrize(
    ("family", "task", "rules"),
    [
        ("gpt2", "text-generation", {"repetition_penalty": 1.7}),
        ("marian", "translation", {"num_beams": 3, "no_repeat_ngram_size": 1}),
    ],
)
def test_a_setting_that_is_left_out_is_noticed(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, family: str, task: str, rules: dict[str, Any]
) -> None:
    import shutil

    import transformers

    folder = Path(shutil.copytree(tiny_checkpoint(family, task), tmp_path / family))
    settings = transformers.GenerationConfig.from_pretrained(folder)
    settings.update(**rules)
    settings.save_pretrained(folder)
    check = comparison(folder, tmp_path / "out", SENTENCES[:2])
    check()
    with pytest.raises(ParityError, match=r"token \d+ of the answer is .*, by its own generate\(\) "):
        check(**dict.fromkeys(rules))


def test_what_is_heard_is_what_generate_hears(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path)
    check = comparison(folder, tmp_path / "out", SOUNDS)
    check()
    with pytest.raises(ParityError, match=r"item 1 is heard as .*, by its own generate\(\) as "):
        check(repetition_penalty=4.0)
    steps = checkpoint.inspect(resolve(str(folder))).pipeline["audio"]
    with pytest.raises(ParityError, match="the features of item 1 are off by"):
        check(audio=steps | {"window": 128})
