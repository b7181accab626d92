"""The tokenizer in a GGUF file gives the tokens of the checkpoint that it was made of."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import transformers

from fmopt.core.errors import CheckpointError
from fmopt.models.gguf.header import read_header
from fmopt.models.gguf.tokenizer import end_ids, token_id, tokenizer_of
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.gguf_files import TEMPLATE, changed, gguf_of, renamed

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")
TEXTS = (
    *SENTENCES,
    "",
    "It's 3.14 or 12,345?  Two  blanks\n\n\tok",
    "naïve café 日本語 🙂",
    "<|endoftext|>a<|think|>b",
)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template, a plain added token and three rows that no token has."""
    folder = tmp_path_factory.mktemp("with-template") / "tiny-llama"
    shutil.copytree(tiny_checkpoint("llama", "text-generation"), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|think|>"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    net = transformers.AutoModelForCausalLM.from_pretrained(folder)
    net.resize_token_embeddings(len(tokenizer) + 3)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its GGUF file."""
    return gguf_of(checkpoint, tmp_path_factory.mktemp("gguf"))


def read(path: Path):
    header = read_header(path)
    return tokenizer_of(header, header.tensors["token_embd.weight"].shape[0])


def test_the_same_tokens_special_tokens_and_chat(checkpoint, file):
    ours, theirs = read(file), transformers.AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])
    assert ours.chat_template == TEMPLATE
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs)  # rows that no token has are no tokens


def test_ids(file):
    header = read_header(file)
    end = token_id(header, "eos")
    assert end_ids(header) == [end]
    assert token_id(header, "eot") is None
    assert header.metadata["tokenizer.ggml.tokens"][end] == "<|endoftext|>"


def test_a_special_token_of_the_kind_unused_keeps_its_id(file, tmp_path):
    padding = read(file).pad_token_id
    number = len(read_header(file).metadata["tokenizer.ggml.tokens"]) - 2  # of a row that no token has
    found = read(changed(file, tmp_path / "unused.gguf", "tokenizer.ggml.padding_token_id", number))
    assert padding != number
    assert (found.pad_token, found.pad_token_id) == (f"[PAD{number}]", number)


def test_the_way_a_text_begins(file, tmp_path):
    ours = read(file)
    begins = [ours.bos_token_id]
    assert ours("a cat")["input_ids"][:1] == begins
    plain = read(changed(file, tmp_path / "plain.gguf", "tokenizer.ggml.add_bos_token", False))
    assert plain("a cat")["input_ids"] == ours("a cat")["input_ids"][1:]


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [
        ("tokenizer.ggml.model", "tokenizer.ggml.mode1", "has no tokenizer; get a GGUF file with one"),
        ("tokenizer.ggml.tokens", "tokenizer.ggml.t0kens", "has no tokenizer"),
        ("tokenizer.ggml.pre", "tokenizer.ggml.prf", r"by the rules 'default', which are unknown here \(known are gpt-2,"),
        ("tokenizer.ggml.merges", "tokenizer.ggml.merge5", None),
    ],
)  # fmt: skip
def test_a_file_that_lacks_a_part_of_it(file, tmp_path, key, other, message):
    path = renamed(file, tmp_path / "lacking.gguf", key, other)
    if message is None:  # without merges every byte is a token
        assert len(read(path)("cat")["input_ids"]) == 4
        return
    with pytest.raises(CheckpointError, match=message):
        read(path)


def test_kinds_and_ids_that_are_refused(file, tmp_path):
    content = file.read_bytes()
    path = tmp_path / "changed.gguf"
    path.write_bytes(content.replace(struct.pack("<Q", 4) + b"gpt2", struct.pack("<Q", 4) + b"bert", 1))
    with pytest.raises(
        CheckpointError, match=r"a tokenizer of the kind 'bert'; byte-level BPE \('gpt2'\) is read here"
    ):
        read(path)
    changed(file, path, "tokenizer.ggml.eos_token_id", 100_000)
    with pytest.raises(CheckpointError, match="its eos token is 100000, and no token has that id"):
        read(path)
    with pytest.raises(CheckpointError, match="has 324 tokens, 324 kinds of them, and a network of 320"):
        tokenizer_of(read_header(file), 320)
    path.write_bytes(content.replace(b"[PAD323]", b"[PAD322]", 1))
    with pytest.raises(CheckpointError, match="has a token twice"):
        read(path)
