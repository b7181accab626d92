"""What generation_config.json says is done as `generate` of transformers does it, or told to the user as left out."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fmopt.core.errors import CheckpointError
from fmopt.edge.decoding import NAMES, Speller, Spelling
from fmopt.edge.generation import continuations, likeliest, usual
from fmopt.edge.manifest import with_current_names
from fmopt.edge.seq2seq import answers
from fmopt.models import checkpoint
from fmopt.models.preprocessors.generation import HONOURED, IRRELEVANT, REASONS, SAMPLING, left_out
from fmopt.models.source import resolve
from fmopt.models.wrappers.seq2seq import EncoderDecoder
from fmopt.runtimes.torch import TorchRunner
from tests.conftest import SENTENCES, TinyCheckpoint

NEW = 10
BEAMS: list[dict[str, Any]] = [
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": 0.5, "early_stopping": "never"},
    {"num_beams": 2, "repetition_penalty": 1.4, "renormalize_logits": True},
    {"num_beams": 2, "bad_words_ids": "said", "no_repeat_ngram_size": 2},
]
SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": "said"},
    {"sequence_bias": "said"},
    {"suppress_tokens": "said"},
    {"begin_suppress_tokens": "said"},
    {"min_length": 14},
    {"min_new_tokens": 6},
    {"min_new_tokens": 3, "min_length": 40},
    {"eos_token_id": "said"},
    {"eos_token_id": "said", "min_new_tokens": 5},
    {"forced_bos_token_id": 7},
    {"forced_bos_token_id": 7, "begin_suppress_tokens": "said"},
    {"forced_eos_token_id": 5},
    {"forced_eos_token_id": [5, 6]},
    {"exponential_decay_length_penalty": [2, 1.8]},
    {"remove_invalid_values": True},
    {"max_length": 20, "max_new_tokens": None},
    {"max_new_tokens": 4},
    *BEAMS,
]


def copied(source: Path, out: Path, settings: dict[str, Any]) -> Path:
    """A checkpoint with another generation_config.json."""
    shutil.copytree(source, out)
    (out / "generation_config.json").write_text(json.dumps(settings))
    return out


def filled(settings: dict[str, Any], said: list[int]) -> dict[str, Any]:
    """Settings whose ids are among those that the network says without them."""
    ids = {"bad_words_ids": [said[1:3], [said[4]]], "sequence_bias": [[[said[0], said[1]], -9.0], [[3], 2.5]],
           "suppress_tokens": said[1:2], "begin_suppress_tokens": said[:1], "eos_token_id": [said[3], 9]}  # fmt: skip
    return {name: ids[name] if value == "said" else value for name, value in settings.items() if value is not None}


def wanted(folder: Path, auto: Any, inputs: dict[str, np.ndarray], **options: Any) -> list[int]:
    """What `generate` says after a prompt, or to a text; without the token that ends it, unless that is a plain word."""
    net = auto.from_pretrained(folder, local_files_only=True).eval()
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    with torch.inference_mode():
        made = net.generate(**tensors, **options)[0].tolist()
    begun = 1 if net.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = net.generation_config.eos_token_id
    made, ends = made[begun:], ends if isinstance(ends, list) else [ends]
    special = transformers.AutoTokenizer.from_pretrained(folder).all_special_ids
    return made[:-1] if made and made[-1] in ends and made[-1] in special else made


@pytest.fixture(scope="module")
def gpt2(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("gpt2", "text-generation")


@pytest.fixture(scope="module")
def bart(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint("bart", "translation")


def own_way(folder: Path, text: str, asked: dict[str, Any]) -> tuple[list[int], dict[str, np.ndarray]]:
    """What fmopt says after a prompt, and the prompt as arrays."""
    metadata = checkpoint.inspect(resolve(str(folder)))
    pipeline = dict(metadata.pipeline)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    runner = opened(folder)
    config = usual(pipeline, **asked)
    if config.beams > 1:
        made = likeliest(runner, ids, pipeline, config)
    else:
        made = [int(token) for (token,) in continuations(runner, [ids], pipeline, config) if token is not None]
    return made, {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}


def opened(folder: Path) -> Any:
    from fmopt.core.model import Artifact

    return TorchRunner(Artifact("torch", folder, {"auto_class": "AutoModelForCausalLM"}), 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: "+".join(f"{name}={one[name]}" for name in one))
def test_a_text_goes_on_as_generate_has_it(settings: dict[str, Any], gpt2: Path, tmp_path: Path) -> None:
    plain, inputs = own_way(gpt2, SENTENCES[0], {"max_new_tokens": NEW})
    ends = json.loads((gpt2 / "generation_config.json").read_text())["eos_token_id"]
    asked = {} if {"max_length", "max_new_tokens"} & set(settings) else {"max_new_tokens": NEW}
    written = {"eos_token_id": ends, "pad_token_id": 0} | filled(settings, plain)
    if "max_length" in written:
        written["max_length"] = inputs["input_ids"].shape[1] + 5
    folder = copied(gpt2, tmp_path / "net", written)
    made, inputs = own_way(folder, SENTENCES[0], asked)
    assert made == wanted(folder, transformers.AutoModelForCausalLM, inputs, do_sample=False, **asked)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: "+".join(f"{name}={one[name]}" for name in one))
def test_an_answer_is_as_generate_has_it(settings: dict[str, Any], bart: Path, tmp_path: Path) -> None:
    ids = transformers.AutoTokenizer.from_pretrained(bart)(SENTENCES[0])["input_ids"]
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    plain = own_answer(bart, inputs, {"max_new_tokens": NEW})
    asked = {} if {"max_length", "max_new_tokens"} & set(settings) else {"max_new_tokens": NEW}
    base = json.loads((bart / "generation_config.json").read_text())
    folder = copied(bart, tmp_path / "net", base | filled(settings, plain))
    made = own_answer(folder, inputs, asked)
    assert made == wanted(folder, transformers.AutoModelForSeq2SeqLM, inputs, do_sample=False, **asked)


def own_answer(folder: Path, inputs: dict[str, np.ndarray], asked: dict[str, Any]) -> list[int]:
    pipeline = dict(checkpoint.inspect(resolve(str(folder)), "translation").pipeline)
    net = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()
    return answers(pipeline, EncoderDecoder(net), inputs, usual(pipeline, **asked))[0]


def test_every_rule_is_tried() -> None:
    assert {name for settings in SETTINGS for name in settings} >= set(NAMES)


def test_answers_end_where_the_network_has_no_more_positions(bart: Path, tmp_path: Path) -> None:
    ids = {"input_ids": np.array([[5, 6, 7, 2]]), "attention_mask": np.ones((1, 4), dtype=np.int64)}
    base = json.loads((bart / "generation_config.json").read_text())
    folder = copied(bart, tmp_path / "net", base | {"eos_token_id": None, "max_length": 500})
    assert len(own_answer(folder, ids, {})) == 63  # of 64 positions one has the token that begins it
    assert len(own_answer(folder, ids, {"max_new_tokens": 100, "beams": 2})) == 63


def test_what_is_not_done_is_reported(gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = {"eos_token_id": 3, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "guidance_scale": 2.0, "use_cache": True,
               "stop_strings": ["END"], "from_nowhere": 3, "num_return_sequences": 1, "token_healing": False}  # fmt: skip
    with caplog.at_level(logging.WARNING):
        checkpoint.inspect(resolve(str(copied(gpt2, tmp_path / "net", written))))
    said = "\n".join(record.getMessage() for record in caplog.records)
    for name in ("guidance_scale", "stop_strings", "from_nowhere"):
        assert f"{name} is left out" in said
    assert "do_sample is left out: a bundle takes the likeliest token" in said
    assert "--temperature 0.6 --top-p 0.9" in said
    assert "use_cache" not in said
    assert "num_return_sequences" not in said


def test_every_key_of_transformers_is_honoured_irrelevant_or_reported() -> None:
    every = set(transformers.GenerationConfig().to_dict())
    told = left_out(dict.fromkeys(every - {"do_sample", *SAMPLING}, "set"), HONOURED)
    assert not every - HONOURED - IRRELEVANT - set(told) - {"do_sample", *SAMPLING}
    assert set(REASONS) <= set(told)
    assert "do_sample" in left_out({"do_sample": True}, HONOURED)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"repetition_penalty": 0}, None),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0; it is a number above 0"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size is 1.5; it is a whole number"),
        ({"bad_words_ids": [5]}, "bad_words_ids is"),
        ({"bad_words_ids": [[99999]]}, "bad_words_ids names the id 99999, and the network has"),
        ({"forced_bos_token_id": "a"}, "forced_bos_token_id is 'a'"),
        ({"exponential_decay_length_penalty": 3}, "it is [begin, factor]"),
        ({"sequence_bias": {"a": 1}}, "sequence_bias is no list of"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"num_beams": "4"}, "num_beams is '4'"),
    ],
)
def test_a_broken_setting_is_one_line(broken: dict[str, Any], said: str | None, gpt2: Path, tmp_path: Path) -> None:
    folder = copied(gpt2, tmp_path / "net", {"eos_token_id": 3, **broken})
    if said is None:
        checkpoint.inspect(resolve(str(folder)))
        return
    with pytest.raises(CheckpointError) as error:
        checkpoint.inspect(resolve(str(folder)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipeline_of_an_earlier_version_is_read() -> None:
    old = {"task": "translation", "start": [2], "stop_ids": [1], "beams": 4, "early": 1, "first": 7, "last": 1, "fewest": 3,
           "no_repeat": 2, "suppress": [0], "suppress_first": [9], "max_new_tokens": 8}  # fmt: skip
    assert with_current_names(old) == {
        "task": "translation", "decoder_start_token_ids": [2], "eos_token_id": [1], "num_beams": 4, "early_stopping": True,
        "forced_bos_token_id": 7, "forced_eos_token_id": [1], "min_new_tokens": 3, "no_repeat_ngram_size": 2,
        "suppress_tokens": [0], "begin_suppress_tokens": [9], "max_new_tokens": 8,
    }  # fmt: skip


def test_pieces_of_a_stream_are_the_text_whatever_its_bytes(subtests: pytest.Subtests) -> None:
    from tokenizers import Tokenizer, decoders, models

    pieces = [
        ("<unk>", 0.0),
        *((f"<0x{byte:02X}>", -8.0) for byte in range(256)),
        ("▁", -2.0),
        ("a", -3.0),
        (".", -3.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"
    texts = {
        "whole": [258, *(byte + 1 for byte in f"\N{GRINNING FACE}{family}".encode()), 257, 258],
        "broken": [258, *(byte + 1 for byte in family.encode()[:6]), 258],
        "cut": [258, *(byte + 1 for byte in family.encode()[:6])],
        "blanks": [257, 258, 257, 257, 258, 257],
        "marks": [258, 257, 259, 257, 258, 257, 259],
    }
    for name, ids in texts.items():
        for clean in (False, True):
            with subtests.test(name, clean=clean):
                spelling = Spelling(tokenizer, clean)
                speller = Speller(spelling, [], [], trim=True)
                assert "".join([*map(speller.take, ids), speller.rest()]) == spelling.decode(ids).strip()
