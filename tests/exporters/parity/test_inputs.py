"""What would be served is compared with the checkpoint's own pipeline, from the text to the answer."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmopt.core.errors import ParityError
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity.inputs import Served, require_input_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.torch_models import InTorch

ITEMS = ["the cat sat on the mat", "Paris is a LARGE city"]


@pytest.fixture
def checked(tiny_checkpoint, tmp_path, monkeypatch):
    """Compare a tiny checkpoint, its files changed by `files`, with what is served by its pipeline changed by `pipeline`."""
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))

    def check(
        family: str, task: str, *, files: dict[str, Any] | None = None, samples: Any = ITEMS, **pipeline: Any
    ) -> None:
        folder = Path(shutil.copytree(tiny_checkpoint(family, task), tmp_path / "ckpt"))
        for name, changes in (files or {}).items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            before = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps(before | changes if isinstance(changes, dict) else changes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metadata = checkpoint.inspect(resolve(str(folder)), task)
        net: Any = checkpoint.load(metadata).net
        changed = {key: value for key, value in {**metadata.pipeline, **pipeline}.items() if value is not None}
        metadata = replace(metadata, pipeline=changed)
        preprocessor = open_preprocessor(metadata.folder, changed)
        require_input_parity(Served(metadata, preprocessor, InTorch(net, changed["outputs"])), net, samples)

    return check


SENTENCE = {
    "modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""},
                     {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
                     {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}],
    "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    "config_sentence_transformers.json": {"prompts": {"query": "who is "}, "default_prompt_name": "query"},
    "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": True},
}  # fmt: skip
PAIRS = [("who wrote the book", "the captain wrote the book about the whale")]


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize(
    ("task", "samples"),
    [
        ("sentence-embedding", ITEMS),
        ("text-classification", [*ITEMS, *PAIRS]),
        ("text-regression", PAIRS),
        ("token-classification", [*ITEMS, ["the", "cat"]]),
        ("fill-mask", []),
        ("question-answering", PAIRS),
    ],
)
def test_what_is_served_is_what_the_checkpoint_says(checked, family, task, samples):
    checked(family, task, samples=samples)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_folder_of_sentence_transformers_is_served_as_encode_has_it(checked, family):
    checked(family, "sentence-embedding", files=SENTENCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": None}, "token 2 is 'the', by its own tokenizer 'wh'"),
        ({"pooling": "mean"}, "the vector has a cosine of"),
        ({"normalize": False}, "their lengths are"),
        ({"max_length": 8}, None),
        ({"truncation_side": "left"}, "token 2 is"),
        ({"dimensions": 8}, r"the vector has 8 numbers, by encode\(\) 32"),
        ({"split_special_tokens": True}, "by its own tokenizer"),
    ],
)
def test_a_setting_that_is_left_out_is_named(checked, changes, message):
    if message is None:  # a shorter length is the user's to choose
        checked("bert", "sentence-embedding", files=SENTENCE, **changes)
        return
    with pytest.raises(ParityError, match=message):
        checked("bert", "sentence-embedding", files=SENTENCE, **changes)


def test_token_types_and_scores_are_compared(checked):
    config = {"model_input_names": ["input_ids", "attention_mask"]}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    with pytest.raises(ParityError, match="the token types are others"):
        checked("bert", "text-classification", files={"tokenizer_config.json": config}, samples=PAIRS, inputs=inputs)


def test_a_number_without_its_sigmoid_is_named(checked):
    with pytest.raises(ParityError, match=r"the number is .*, by its own pipeline"):
        checked(
            "bert", "text-regression", files={"config.json": {"problem_type": None}}, samples=PAIRS, activation=None
        )
