"""The tokenizer of a checkpoint as a GGUF file holds one: byte-level BPE by rules that llama.cpp has a name for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError, ConfigError, reading
from fmopt.core.model import TOKENIZER, CheckpointMetadata
from fmopt.edge.text import open_preprocessor
from fmopt.models.gguf.splitting import SPLITTINGS, splitting_of
from fmopt.models.gguf.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from fmopt.models.received import read_config

FILLER = "[PAD{number}]"  # what llama.cpp's own converter calls a row of the token table that no token has


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    splitting: str
    tokens: tuple[str, ...]  # by id, as many as the network's token table has rows
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]  # "bos", "eos", "unk", "pad", "eot", "eom" -> id
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None

    def write(self, writer: Any) -> None:
        """Add it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.splitting)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(metadata: CheckpointMetadata, rows: int) -> Vocabulary:
    """The tokenizer of a checkpoint whose token table has so many rows; ConfigError for a kind that is not written."""
    import transformers

    folder = metadata.folder
    written = read_config(folder / TOKENIZER)
    splitting = _splitting(folder, written)
    tokens, kinds = _tokens(folder, written, rows)
    with reading(f"{folder}: its tokenizer files", CheckpointError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    special = _special(tokenizer, metadata.pipeline["eos_token_id"])
    adds_bos, adds_eos = _around(metadata, special)
    return Vocabulary(
        splitting,
        tokens,
        kinds,
        tuple(_merge(merge) for merge in written["model"]["merges"]),
        special,
        adds_bos,
        adds_eos,
        template,
    )


def _splitting(folder: Path, written: Mapping[str, Any]) -> str:
    """The name of its rules."""
    model = written.get("model") or {}
    plain = not any(
        model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    found = splitting_of(written) if model.get("type") == "BPE" and plain else None
    if found is None:
        raise ConfigError(
            f"{folder / TOKENIZER}: into GGUF files goes byte-level BPE that cuts texts by the rules {', '.join(SPLITTINGS)}; "
            f"this is {model.get('type')} with {_named(written.get('pre_tokenizer'))} (WordPiece, Unigram, SentencePiece's BPE "
            "and other rules are refused); use --format onnx or openvino"
        )
    return found


def _named(step: Mapping[str, Any] | None) -> str:
    steps = (step or {}).get("pretokenizers") or ([step] if step else [])
    return " and ".join(str(one.get("type")) for one in steps) or "no rules"


def _merge(merge: str | Sequence[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _tokens(folder: Path, written: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The tokens by id and the kind of each; rows that no token has get a filler."""
    named = {number: token for token, number in written["model"]["vocab"].items()}
    kinds = dict.fromkeys(named, NORMAL)
    for token in written.get("added_tokens", ()):
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ConfigError(
                f"{folder / TOKENIZER}: the token {token['content']!r} takes blanks around it, which a GGUF file cannot say; use "
                "--format onnx or openvino"
            )
        named[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if max(named, default=0) >= rows:
        raise ConfigError(
            f"{folder / TOKENIZER} has the id {max(named)}, and the network {rows} tokens; correct the file"
        )
    ids = range(rows)
    return (
        tuple(named.get(number, FILLER.format(number=number)) for number in ids),
        tuple(kinds.get(number, UNUSED) for number in ids),
    )


def _special(tokenizer: Any, ends: Sequence[int]) -> dict[str, int]:
    """Ids of special tokens by GGUF's names. Of the ids that end an answer there is room for three."""
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "unk", "pad")}
    own = tokenizer.eos_token_id
    ends = sorted(ends, key=lambda number: number != own) or ([] if own is None else [own])
    if len(ends) > 3:
        raise ConfigError(
            f"answers of this model end with any of {len(ends)} tokens, and a GGUF file names at most three"
        )
    found |= dict(zip(("eos", "eot", "eom"), ends, strict=False))
    return {name: int(number) for name, number in found.items() if number is not None}


def _around(metadata: CheckpointMetadata, special: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether the first special token begins, and the last ends, every text; ConfigError where others are put around it."""
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    own, all_ids = (preprocessor.ids("a", special=kind) for kind in (False, True))
    bos, eos = ([special[name]] if name in special else [] for name in ("bos", "eos"))
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            if [*(bos if adds_bos else ()), *own, *(eos if adds_eos else ())] == all_ids:
                return adds_bos, adds_eos
    raise ConfigError(
        f"{metadata.folder / TOKENIZER} puts other tokens around a text than its bos and eos, which a GGUF file cannot say; use "
        "--format onnx or openvino"
    )
