"""How byte-level BPE tokenizers cut a text before they merge bytes, by the names that GGUF files have for it.

A GGUF file names its rules (`tokenizer.ggml.pre`), and a tokenizer.json holds them. They are the same rules only for what stands
here; another name would give other tokens, so it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Splitting:
    """The rules of one name; `steps` as a tokenizer.json writes them."""

    steps: tuple[Mapping[str, Any], ...]
    whole_words: bool = False  # a word that is a token is one, whatever the merges make of it (ignore_merges)
    adds_bos: bool = False  # where a file does not say it
    normalizers: tuple[str | None, ...] = (
        None,
    )  # the first is what a tokenizer gets; llama.cpp itself normalizes nothing


def _byte_level(*, cuts: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}


def _cut_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": Splitting((_byte_level(cuts=True),)),
    "smollm": Splitting(({"type": "Digits", "individual_digits": True}, _byte_level(cuts=True))),
    "llama-bpe": Splitting(
        (_cut_by(_WORDS + r"\p{N}{1,3}" + _REST), _byte_level(cuts=False)), whole_words=True, adds_bos=True
    ),
    "qwen2": Splitting((_cut_by(_WORDS + r"\p{N}" + _REST), _byte_level(cuts=False)), normalizers=("NFC", None)),
}


def splitting_of(tokenizer: Mapping[str, Any]) -> str | None:
    """The name of the rules in a tokenizer.json; None for rules that have none here."""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", ()) if steps.get("type") == "Sequence" else (steps,)
    plain = tuple({key: value for key, value in step.items() if key != "trim_offsets"} for step in steps)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    whole_words = bool(tokenizer.get("model", {}).get("ignore_merges"))
    for name, splitting in SPLITTINGS.items():
        same = plain == splitting.steps and normalizer in splitting.normalizers
        if same and whole_words == splitting.whole_words:
            return name
    return None


def cutting(splitting: Splitting) -> dict[str, Any]:
    """The part of a tokenizer.json that these rules are: pre_tokenizer and normalizer."""
    steps = [{**step, "trim_offsets": False} if step["type"] == "ByteLevel" else dict(step) for step in splitting.steps]
    whole = {"type": "Sequence", "pretokenizers": steps}
    normalizer = splitting.normalizers[0]
    return json.loads(json.dumps({"pre_tokenizer": whole, "normalizer": normalizer and {"type": normalizer}}))
