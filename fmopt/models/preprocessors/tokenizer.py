"""A checkpoint's tokenizer: what it makes, and how one without a tokenizer.json is converted."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER
from fmopt.edge.recommendation import CATALOGUE

SLOW_FILES = ("vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", *SLOW_FILES)


PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # of images and audio


MASKS = ("[MASK]", "<mask>")  # what BERT's and RoBERTa's kin call it when the configuration does not say


NO_LIMIT = 1_000_000  # transformers writes 1e30 where a tokenizer knows no limit


@dataclass(frozen=True)
class TokenizerFacts:
    """What tokenizer.json and tokenizer_config.json say, as far as a pipeline needs it."""

    pad_id: int
    pad_token: str
    side: str  # where padding goes: "right" or "left"
    model_max_length: int | None
    type_ids: bool  # tells the second text of a pair apart, and the network listens
    byte_level: bool
    add_prefix_space: bool
    mask: tuple[int, str] | None  # id and text of the mask token, where there is one


def has_slow_tokenizer(folder: Path) -> bool:
    """Whether `folder` has vocabulary files that a tokenizer.json can be made of."""
    # A vocab.json alone is one of letters, which CTC spells with; byte-pair encoding has its merges beside it.
    pairs = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pairs or any((folder / name).is_file() for name in SLOW_FILES if name != "vocab.json")


def read_tokenizer(folder: Path, config: Any) -> TokenizerFacts:
    """Facts of the tokenizer in `folder` for a network of `config` (a transformers configuration)."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer (no {TOKENIZER}, no vocabulary); copy its files there")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} cannot be read ({first}); get the file again") from error
    rows, highest = config.vocab_size, max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"{path} makes ids up to {highest}, but the network's embedding has {rows} rows; copy the tokenizer that "
            "this checkpoint was trained with"
        )
    settings = _settings(folder)
    token = _content(settings.get("pad_token"))
    pad_id = tokenizer.token_to_id(token) if token else None
    if pad_id is None:
        pad_id = config.pad_token_id if config.pad_token_id is not None else 0
        token = tokenizer.id_to_token(pad_id) or ""
    limit = settings.get("model_max_length")
    return TokenizerFacts(
        pad_id=pad_id, pad_token=token or "", side=settings.get("padding_side", "right"),
        model_max_length=int(limit) if limit and limit < NO_LIMIT else None,
        # Networks with one row of token types, or none, get the same with and without them.
        type_ids=getattr(config, "type_vocab_size", 0) > 1 and max(tokenizer.encode("a", "b").type_ids, default=0) > 0,
        byte_level="ByteLevel" in str(json.loads(tokenizer.to_str()).get("pre_tokenizer")),
        add_prefix_space=bool(settings.get("add_prefix_space")),
        mask=_mask(tokenizer, _content(settings.get("mask_token"))),
    )  # fmt: skip


def convert_tokenizer(folder: Path, out: Path) -> None:
    """Write `out`/tokenizer.json from the vocabulary files of `folder`, by transformers' own conversion."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        made.backend_tokenizer.save(str(out / TOKENIZER))
    except Exception as error:  # each tokenizer class fails in its own way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} has no {TOKENIZER} and its vocabulary cannot be converted ({first}); "
            f"save a fast tokenizer there with AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        ) from error


def _settings(folder: Path) -> dict[str, Any]:
    """special_tokens_map.json, overridden by tokenizer_config.json."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                found |= json.loads(path.read_text("utf8"))
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"{path} cannot be read as JSON ({error}); get the file again") from error
    return found


def _mask(tokenizer: Any, settings: str | None) -> tuple[int, str] | None:
    """The mask token that the configuration names, else one of the usual names that is in the vocabulary."""
    for token in [settings] if settings else MASKS:
        number = tokenizer.token_to_id(token)
        if number is not None:
            return number, token
    return None


def _content(token: Any) -> str | None:
    """A token's text; tokenizer configurations write a string or {"content": …}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def copy_encoders(folder: Path, out: Path) -> None:
    """The files of what encodes samples, those that one checkpoint folder has, into another."""
    for name in (*FILES, *PROCESSORS, CATALOGUE):
        if (folder / name).is_file():
            shutil.copy(folder / name, out / name)
