"""The tokenizer in a GGUF file, as transformers reads one: byte-level BPE, with its special tokens and its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fmopt.core.errors import CheckpointError, reading
from fmopt.edge.errors import shorten
from fmopt.edge.files import printable
from fmopt.models.gguf.header import GgufHeader
from fmopt.models.gguf.splitting import SPLITTINGS, Splitting, cutting

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # TokenType of gguf
NAMED = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}  # in transformers -> in GGUF
ENDS = ("eos", "eot", "eom")  # tokens that end an answer


def token_id(header: GgufHeader, name: str) -> int | None:
    """The id of a special token, such as "eos"; None where the file names none. CheckpointError for one that no token has."""
    found = header.number(f"tokenizer.ggml.{name}_token_id")
    if found is not None and found >= len(header.metadata["tokenizer.ggml.tokens"]):
        raise CheckpointError(
            f"{header.path}: its {name} token is {found}, and no token has that id; get the file again"
        )
    return found


def end_ids(header: GgufHeader) -> list[int]:
    """The ids that end an answer."""
    found = (token_id(header, name) for name in ENDS)
    return list(dict.fromkeys(one for one in found if one is not None))


def tokenizer_of(header: GgufHeader, vocabulary: int) -> Any:
    """The tokenizer of a GGUF file, a `PreTrainedTokenizerFast`; `vocabulary` is how many tokens the network knows.

    CheckpointError for a file without one, for one of another kind than byte-level BPE or with unknown rules for where texts are
    cut, and for one whose lists do not fit each other.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    splitting = _splitting(header)
    tokens, kinds = _tokens(header, vocabulary)
    named = {role: tokens[number] for role, name in NAMED.items() if (number := token_id(header, name)) is not None}
    with reading(f"{header.path}: its tokenizer", CheckpointError, "get the file again"):
        made = Tokenizer.from_str(json.dumps(_as_json(header, splitting, tokens, kinds), ensure_ascii=False))
        return PreTrainedTokenizerFast(
            tokenizer_object=made, clean_up_tokenization_spaces=False, chat_template=header.text("tokenizer.chat_template"),
            model_max_length=header.number(f"{header.architecture}.context_length"), **named,
        )  # fmt: skip


def _splitting(header: GgufHeader) -> Splitting:
    """The rules by which texts are cut."""
    path, kind = header.path, header.text("tokenizer.ggml.model")
    if kind is None or "tokenizer.ggml.tokens" not in header.metadata:
        raise CheckpointError(
            f"{path} has no tokenizer; get a GGUF file with one, or the checkpoint's folder in Hugging Face format"
        )
    if kind != "gpt2":
        raise CheckpointError(
            f"{path} has a tokenizer of the kind {shorten(printable(kind))!r}; byte-level BPE ('gpt2') is read here: give the "
            "checkpoint's folder in Hugging Face format instead"
        )
    rules = header.text("tokenizer.ggml.pre") or "default"
    if rules not in SPLITTINGS:
        raise CheckpointError(
            f"{path}: its tokenizer cuts texts by the rules {shorten(printable(rules))!r}, which are unknown here (known are "
            f"{', '.join(SPLITTINGS)}); give the checkpoint's folder in Hugging Face format instead"
        )
    return SPLITTINGS[rules]


def _tokens(header: GgufHeader, vocabulary: int) -> tuple[list[str], list[int]]:
    """The tokens in the order of their ids, and the kind of each."""
    tokens = header.items("tokenizer.ggml.tokens", str)
    kinds = header.items("tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
    if not len(tokens) == len(kinds) == vocabulary:
        raise CheckpointError(
            f"{header.path} has {len(tokens):,} tokens, {len(kinds):,} kinds of them, and a network of {vocabulary:,}; get the "
            "file again"
        )
    if len(set(tokens)) < len(tokens):
        raise CheckpointError(f"{header.path} has a token twice; get the file again")
    special = [token_id(header, name) for name in {*NAMED.values(), *ENDS}]
    for number in special:  # one that is called unused would get another id
        if number is not None and kinds[number] == UNUSED:
            kinds[number] = CONTROL
    return tokens, kinds


def _as_json(header: GgufHeader, splitting: Splitting, tokens: list[str], kinds: list[int]) -> Mapping[str, Any]:
    """What a tokenizer.json would hold."""
    merges = [merge.split(" ") for merge in header.items("tokenizer.ggml.merges", str)]
    if not all(len(merge) == 2 for merge in merges):
        raise CheckpointError(f"{header.path}: a merge of its tokenizer is no pair of tokens; get the file again")
    added = [
        {
            "id": number, "content": token, "special": kind != USER_DEFINED, "normalized": False, "single_word": False,
            "lstrip": False, "rstrip": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": splitting.whole_words, "merges": merges,
        "vocab": {token: number for number, token in enumerate(tokens) if kinds[number] != UNUSED},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "post_processor": _around(header, splitting, tokens), **cutting(splitting),
    }  # fmt: skip


def _around(header: GgufHeader, splitting: Splitting, tokens: list[str]) -> dict[str, Any] | None:
    """What is put before and after every text."""
    first = token_id(header, "bos") if header.flag("tokenizer.ggml.add_bos_token", splitting.adds_bos) else None
    last = token_id(header, "eos") if header.flag("tokenizer.ggml.add_eos_token", False) else None
    if first is None and last is None:
        return None
    ids = {tokens[number]: number for number in (first, last) if number is not None}

    def around(part: str, kind: int) -> list[dict[str, Any]]:
        special = [
            [] if number is None else [{"SpecialToken": {"id": tokens[number], "type_id": kind}}]
            for number in (first, last)
        ]
        return [*special[0], {"Sequence": {"id": part, "type_id": kind}}, *special[1]]

    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()},
    }  # fmt: skip
