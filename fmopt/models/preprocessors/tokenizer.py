"""A checkpoint's tokenizer: what it makes, and how one without a tokenizer.json is converted."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER
from fmopt.edge.errors import EdgeError
from fmopt.edge.recommendation import CATALOGUE
from fmopt.edge.tokenizer_file import open_tokenizer, require_tokenizer
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.loading import quiet

log = logging.getLogger(__name__)

SPECIAL_TOKENS, TOKENIZER_CONFIG = "special_tokens_map.json", "tokenizer_config.json"
SLOW_FILES = ("vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
FILES = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, "added_tokens.json", "merges.txt", *SLOW_FILES)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # of images and audio
MASKS = ("[MASK]", "<mask>")  # what BERT's and RoBERTa's families call it when the configuration does not say
NO_LIMIT = 1_000_000  # transformers writes 1e30 where a tokenizer knows no limit


@dataclass(frozen=True)
class TokenizerSettings:
    """What a checkpoint's tokenizer does, as far as a pipeline needs it."""

    pad_id: int
    pad_token: str
    side: str  # where padding goes: "right" or "left"
    truncation_side: str | None  # where texts are cut; None: as tokenizer.json says
    model_max_length: int | None
    added: int  # tokens that it puts around a text
    type_ids: bool  # tells the second text of a pair apart, and the network listens
    byte_level: bool
    add_prefix_space: bool
    split_special_tokens: bool  # special tokens in a text are plain characters
    mask: tuple[int, str] | None  # id and text of the mask token, where there is one


def has_slow_tokenizer(folder: Path) -> bool:
    """Whether `folder` has vocabulary files that a tokenizer.json can be made of."""
    # A vocab.json alone is one of letters, which CTC spells with; byte-pair encoding has its merges beside it.
    pairs = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pairs or any((folder / name).is_file() for name in SLOW_FILES if name != "vocab.json")


def read_tokenizer(files: CheckpointFiles, config: Any) -> TokenizerSettings:
    """What matters of a checkpoint's tokenizer for a network of `config` (a transformers configuration)."""
    path = files.folder / TOKENIZER
    tokenizer = _from_file(path)
    rows, highest = config.vocab_size, max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= rows:
        raise CheckpointError(
            f"{path} makes ids up to {highest}, but the network's embedding has {rows} rows; copy the tokenizer that "
            "this checkpoint was trained with"
        )
    settings, own = _settings(files), own_tokenizer(files.folder)
    token = _content(settings.get("pad_token"))
    pad_id = tokenizer.token_to_id(token) if token else None
    if pad_id is None:
        pad_id = config.pad_token_id if config.pad_token_id is not None else 0
        token = tokenizer.id_to_token(pad_id) or ""
    limit = settings.get("model_max_length") if own is None else own.model_max_length
    cut, names = (None, None) if own is None else (own.truncation_side, own.model_input_names)
    by_file = str((tokenizer.truncation or {}).get("direction", "right")).lower()
    return TokenizerSettings(
        pad_id=pad_id, pad_token=token or "", side=settings.get("padding_side", "right") if own is None else own.padding_side,
        truncation_side=None if cut == by_file else cut,
        model_max_length=int(limit) if limit and limit < NO_LIMIT else None,
        added=tokenizer.num_special_tokens_to_add(False),
        # Networks with one row of token types, or none, get the same with and without them; some tokenizers make none.
        type_ids=getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in (names or ["token_type_ids"])
        and max(tokenizer.encode("a", "b").type_ids, default=0) > 0,
        byte_level="ByteLevel" in str(json.loads(tokenizer.to_str()).get("pre_tokenizer")),
        add_prefix_space=own is None and bool(settings.get("add_prefix_space")),  # else in tokenizer.json, where it is meant
        split_special_tokens=bool(settings.get("split_special_tokens")),
        mask=_mask(tokenizer, _content(settings.get("mask_token"))),
    )  # fmt: skip


def own_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers makes of a folder, with all of its settings; None where it makes none (of a class that
    it does not know, or without a file of its own).

    It is what everybody else reads texts by, and may differ from tokenizer.json: most classes build theirs anew.
    """
    names = (*FILES, "config.json")
    stamps = tuple(
        (n, (folder / n).stat().st_mtime_ns, (folder / n).stat().st_size) for n in names if (folder / n).is_file()
    )
    return _own_tokenizer(folder, stamps)


@lru_cache(maxsize=2)
def _own_tokenizer(folder: Path, stamps: tuple[Any, ...]) -> Any:
    import transformers

    if (folder / TOKENIZER).is_file():
        require_tokenizer(folder / TOKENIZER)
    try:
        with warnings.catch_warnings(), quiet(transformers.utils.logging):
            warnings.simplefilter("ignore")
            made = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each tokenizer class fails in its own way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning(
            "%s: transformers makes no tokenizer of its settings (%s); %s alone is used", folder, first[:160], TOKENIZER
        )
        return None
    return made if hasattr(made, "backend_tokenizer") else None


def as_served(folder: Path, config: Any, origin: Path, *, lower_case: bool = False) -> str | None:
    """The tokenizer.json that reads texts as transformers does with all settings of `origin`; None where that of `folder`,
    the same or a converted copy of it, does.

    With `lower_case` texts are lower-cased first, as sentence-transformers does when asked. Added tokens that the embedding
    has no row for (those of images in Gemma 3) are left out: they would end in an error.
    """
    own = own_tokenizer(origin)
    by_file = json.loads(_from_file(folder / TOKENIZER).to_str())
    content = by_file if own is None else json.loads(own.backend_tokenizer.to_str())
    content = {**content, "truncation": by_file.get("truncation"), "padding": by_file.get("padding")}
    rows = int(config.vocab_size)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows or not token["special"]]
    if lower_case and '"Lowercase"' not in json.dumps(content["normalizer"]) and not _lowers(content["normalizer"]):
        following = [content["normalizer"]] if content["normalizer"] else []
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *following]}
    return None if _rounded(content) == _rounded(by_file) else json.dumps(content, ensure_ascii=False)


def prompt_tokens(folder: Path, prompt: str) -> int:
    """Tokens at the beginning of a text that are of the prompt before it, special ones among them; as sentence-transformers
    counts them: all of the prompt's own but for the end of it."""
    own = own_tokenizer(folder)
    if not prompt or own is None:
        return 0
    ids = own(prompt)["input_ids"]
    return len(ids) - int(bool(ids) and ids[-1] in own.all_special_ids)


def _lowers(normalizer: Any) -> bool:
    """Whether a normalizer, or one in it, makes lower case."""
    if not isinstance(normalizer, dict):
        return False
    return bool(normalizer.get("lowercase")) or any(_lowers(one) for one in normalizer.get("normalizers") or ())


def _rounded(content: dict[str, Any]) -> dict[str, Any]:
    """Without the last bits of scores: writing a file and reading it again changes them."""
    vocabulary = content["model"].get("vocab")
    if not isinstance(vocabulary, list):
        return content
    return {
        **content,
        "model": {**content["model"], "vocab": [(piece, round(score, 9)) for piece, score in vocabulary]},
    }


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no tokenizer (no {TOKENIZER}, no vocabulary); copy its files there")
    try:
        return open_tokenizer(path)
    except EdgeError as error:
        said = str(error).removeprefix(f"{path} ")
        raise CheckpointError(f"{path} cannot be read: it {said}; get the file again") from error


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


def _settings(files: CheckpointFiles) -> dict[str, Any]:
    """special_tokens_map.json, overridden by tokenizer_config.json."""
    tokens, settings = (files.read(files.folder / name) or {} for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG))
    return {**tokens, **settings}


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
