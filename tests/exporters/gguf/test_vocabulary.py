"""The tokenizer that goes into a GGUF file; kinds that a GGUF file would spell otherwise are refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmopt.core.errors import ConfigError
from fmopt.exporters.gguf.vocabulary import Vocabulary, read_vocabulary
from fmopt.models import checkpoint
from fmopt.models.gguf.tokenizer import CONTROL, NORMAL, UNUSED
from fmopt.models.source import resolve
from tests.conftest import TinyCheckpoint

END = "<|endoftext|>"


@pytest.fixture
def folder(tiny_checkpoint: TinyCheckpoint, tmp_path) -> Path:
    """A tiny Llama's folder, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint("llama", "text-generation"), tmp_path / "tiny"))


def changed(folder: Path, **parts: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def vocabulary_of(folder: Path, rows: int = 320) -> Vocabulary:
    return read_vocabulary(checkpoint.inspect(resolve(str(folder))), rows)


def test_tokens_their_kinds_and_what_is_put_around_texts(folder):
    found = vocabulary_of(folder, 323)
    written = json.loads((folder / "tokenizer.json").read_text())
    assert found.splitting == "gpt-2"
    assert found.tokens[:320] == tuple(sorted(written["model"]["vocab"], key=written["model"]["vocab"].get))
    assert found.tokens[320:] == ("[PAD320]", "[PAD321]", "[PAD322]")
    assert (found.kinds[found.tokens.index(END)], found.kinds[5], found.kinds[322]) == (CONTROL, NORMAL, UNUSED)
    assert found.merges[0] == " ".join(written["model"]["merges"][0])
    assert (found.adds_bos, found.adds_eos, found.chat_template) == (True, False, None)
    assert found.special == dict.fromkeys(("bos", "eos", "unk", "pad"), found.tokens.index(END))


def test_nothing_around_texts(folder):
    changed(folder, post_processor=None)
    assert vocabulary_of(folder).adds_bos is False


def test_several_ends(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0, 9]}))
    found = vocabulary_of(folder)
    assert [found.special[name] for name in ("eos", "eot", "eom")] == [0, 7, 9]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0, 9, 11]}))
    with pytest.raises(ConfigError, match="end with any of 4 tokens, and a GGUF file names at most three"):
        vocabulary_of(folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"smollm, llama-bpe, qwen2; this is BPE with Whitespace \(WordPiece"),
        ({"normalizer": {"type": "Lowercase"}}, "this is BPE with ByteLevel"),
    ],
)  # fmt: skip
def test_other_rules_are_refused(folder, parts, message):
    changed(folder, **parts)
    with pytest.raises(ConfigError, match=message) as caught:
        vocabulary_of(folder)
    assert "\n" not in str(caught.value)


def test_tokens_that_take_blanks_are_refused(folder):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    changed(folder, added_tokens=[{**one, "lstrip": True} for one in added])
    with pytest.raises(ConfigError, match=r"the token '<\|endoftext\|>' takes blanks around it"):
        vocabulary_of(folder)


def test_more_tokens_than_the_network_knows_are_refused(folder):
    with pytest.raises(ConfigError, match="has the id 319, and the network 300 tokens"):
        vocabulary_of(folder, 300)


def test_other_tokens_around_texts_are_refused(folder):
    token = {"SpecialToken": {"id": "!", "type_id": 0}}
    single = [token, {"Sequence": {"id": "A", "type_id": 0}}]
    changed(
        folder,
        post_processor={
            "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"!": {"id": "!", "ids": [1], "tokens": ["!"]}},
        },
    )  # fmt: skip
    with pytest.raises(ConfigError, match="puts other tokens around a text than its bos and eos"):
        vocabulary_of(folder)
