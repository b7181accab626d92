"""A tokenizer's rules for where texts are cut have the name that GGUF files give them, or none."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models

from fmopt.models.gguf.splitting import SPLITTINGS, cutting, splitting_of

TEXT = "It's 12345 naïve  cats,\n\nok? 3.14"
DIGITS = ["1", "2", "3", "4", "5"]
PIECES = {  # by llama.cpp's own rules for that name (src/unicode.cpp, llama-vocab.cpp); Ġ is a blank, Ċ a line feed
    "gpt-2": ["It", "'s", "Ġ12345", "ĠnaÃ¯ve", "Ġ", "Ġcats", ",", "Ċ", "Ċ", "ok", "?", "Ġ3", ".", "14"],
    "smollm": ["It", "'s", "Ġ", *DIGITS, "ĠnaÃ¯ve", "Ġ", "Ġcats", ",", "Ċ", "Ċ", "ok", "?", "Ġ", "3", ".", "1", "4"],
    "llama-bpe": ["It", "'s", "Ġ", "123", "45", "ĠnaÃ¯ve", "Ġ", "Ġcats", ",ĊĊ", "ok", "?", "Ġ", "3", ".", "14"],
    "qwen2": ["It", "'s", "Ġ", *DIGITS, "ĠnaÃ¯ve", "Ġ", "Ġcats", ",ĊĊ", "ok", "?", "Ġ", "3", ".", "1", "4"],
}  # fmt: skip


def tokenizer_json(name: str, **model: object) -> dict:
    """A tokenizer.json with these rules, as the library writes it."""
    empty = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": SPLITTINGS[name].whole_words, **model}
    return json.loads(Tokenizer.from_str(json.dumps({**blank(), **cutting(SPLITTINGS[name]), "model": empty})).to_str())


def blank() -> dict:
    return json.loads(Tokenizer(models.BPE()).to_str())


@pytest.mark.parametrize("name", SPLITTINGS)
def test_rules_are_known_by_their_name_and_cut_as_it_says(name):
    written = tokenizer_json(name)
    assert splitting_of(written) == name
    pieces = Tokenizer.from_str(json.dumps(written)).pre_tokenizer.pre_tokenize_str(TEXT)
    assert [piece for piece, _ in pieces] == PIECES[name]


def test_other_rules_have_no_name():
    assert splitting_of(blank()) is None
    assert splitting_of(tokenizer_json("llama-bpe", ignore_merges=False)) is None
    lower = {**tokenizer_json("gpt-2"), "normalizer": {"type": "Lowercase"}}
    assert splitting_of(lower) is None
