"""A smaller vocabulary for a checkpoint: tokens that given texts need, and what spells everything else.

Most rows of a multilingual model's token table serve languages that its task never sees (Abdaoui et al., 2020). Works on
files alone: tokenizer.json, config.json and the weights' rows; the network computes the same for the given texts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt.core.errors import CheckpointError, DataError
from fmopt.core.model import TOKENIZER
from fmopt.core.stages.store import whole_folder
from fmopt.models import checkpoint
from fmopt.models.pipeline import POSITIONS_AFTER_PADDING
from fmopt.models.preprocessors.tokenizer import SLOW_FILES
from fmopt.models.source import resolve
from fmopt.models.weights import INDEX, SINGLE, weight_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LOADS = 5
CHUNK = 1024  # texts encoded at a time
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # byte fall-back of sentencepiece models
# Tables and heads with one row per token, by the end of their names in the families that fmopt knows.
TABLES = re.compile(
    r"(?:^|\.)(?:word_embeddings|tok_embeddings)\.weight$|^(?:model\.embed_tokens|transformer\.wte|gpt_neox\.embed_in)\.weight$"
)
HEADS = re.compile(
    r"(?:^|\.)(?:predictions|lm_head|embed_out|generator_lm_head|vocab_projector|decoder)\.(?:weight|bias)$"
)
OLD_VOCABULARY = (*SLOW_FILES, "merges.txt")  # of the untrimmed tokenizer; tokenizer.json says it all


@dataclass(frozen=True)
class Trimmed:
    """What trimming gave."""

    folder: Path
    tokens_before: int  # rows of the token table
    tokens: int
    bytes_before: int  # of the weights
    bytes: int
    load_ms_before: float  # tokenizer and weights into memory, the median of `LOADS` in turn
    load_ms: float


def trim(folder: str | Path, texts: Sequence[str], out: str | Path) -> Trimmed:
    """Write to `out` the checkpoint in `folder` with a vocabulary cut to what `texts` need; `out` is whole or not there.

    Kept are the tokens of `texts`, special and added tokens, bytes and single characters, so that any other text can still be
    written, in more tokens. The texts make the same tokens before and after, which is checked.

    Arguments:
        folder: a checkpoint's folder, a known name or a hub name.
        texts: what the model will read.
        out: the folder of the new checkpoint.

    Returns a `Trimmed`: tokens, bytes and milliseconds of loading, before and after. Raises CheckpointError for a tokenizer that
    is not WordPiece, BPE or Unigram, DataError without texts, StoreError for an `out` that is not empty.

    >>> found = fmopt.trim(checkpoint, ["the cat sat on the mat"], out / "small")
    >>> found.tokens < found.tokens_before
    True
    """
    from tokenizers import Tokenizer

    if not any(text.strip() for text in texts):
        raise DataError("there are no texts to trim the vocabulary to; give some of what the model will read")
    out, home = Path(out), resolve(str(folder))
    metadata = checkpoint.inspect(home)
    checkpoint.require_network(metadata)
    spec = json.loads((metadata.folder / TOKENIZER).read_text("utf8"))
    old = _plain(Tokenizer.from_str(json.dumps(spec)))
    # Positions count from the padding id in some families: there nothing before it may go.
    counted = metadata.model_type in POSITIONS_AFTER_PADDING
    kept = _kept(spec, old, texts, metadata.pipeline["padding"]["id"] if counted else -1)
    kept |= _named_ids(metadata.folder) & set(old.get_vocab(with_added_tokens=True).values())
    ids = {before: after for after, before in enumerate(sorted(kept))}
    made = _tokenizer(spec, ids)
    _require_same(old, _plain(_loaded(made, metadata.folder)), texts, ids)
    inside = metadata.folder.is_relative_to(home.folder)
    whole, place = (home.folder, metadata.folder.relative_to(home.folder)) if inside else (metadata.folder, Path())
    with whole_folder(out) as work:
        shutil.copytree(whole, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*OLD_VOCABULARY, ".*"))
        before = _write(work / place, made, ids)
    size = (out / place / SINGLE).stat().st_size
    taken = np.array([[_load_ms(folder) for folder in (metadata.folder, out / place)] for _ in range(LOADS)])
    load_ms_before, load_ms = np.median(taken, axis=0).tolist()
    return Trimmed(out, before, len(ids), metadata.weight_bytes, size, load_ms_before, load_ms)


def _load_ms(folder: Path) -> float:
    """Milliseconds to read a checkpoint's tokenizer and weights, from the page cache."""
    from safetensors.torch import load
    from tokenizers import Tokenizer

    begun = time.perf_counter()
    Tokenizer.from_file(str(folder / TOKENIZER))
    for file in weight_files(folder):
        load(file.read_bytes())
    return 1e3 * (time.perf_counter() - begun)


# ------------------------------------------------------------------------------------------------ what is kept


def _kept(spec: Mapping[str, Any], tokenizer: Tokenizer, texts: Sequence[str], whole_until: int) -> set[int]:
    """Ids of the tokens that stay; all of those up to `whole_until` do."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    kept = set(range(whole_until + 1)) & set(vocabulary.values())
    kept |= {int(added["id"]) for added in spec.get("added_tokens") or []}
    kept |= {number for token, number in vocabulary.items() if _spells(token, spec["model"])}
    for encoding in _encoded(tokenizer, texts):
        kept.update(encoding.ids)
    model = spec["model"]
    if model["type"] == "WordPiece":
        kept.add(vocabulary[model["unk_token"]])
    elif model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        # An unknown character costs 10 more than the worst piece: that piece stays, so that the cost stays.
        kept |= {scores.index(min(scores)), *([] if model["unk_id"] is None else [model["unk_id"]])}
    elif model["type"] == "BPE":
        kept |= {vocabulary[model["unk_token"]]} if model.get("unk_token") in vocabulary else set()
        kept = _with_parts(kept, vocabulary, model)
    else:
        raise CheckpointError(
            f"a {model['type']} vocabulary is not known to fmopt; it trims WordPiece, BPE and Unigram"
        )
    return kept


def _spells(token: str, model: Mapping[str, Any]) -> bool:
    """Whether a token is a byte or a single character, at whatever place in a word it stands."""
    for mark in (model.get("continuing_subword_prefix"), "##", "▁", "Ġ"):
        token = token.removeprefix(mark) if mark and token != mark else token
    suffix = model.get("end_of_word_suffix")
    return len(token.removesuffix(suffix) if suffix else token) <= 1 or BYTE.fullmatch(token) is not None


def _with_parts(kept: set[int], vocabulary: Mapping[str, int], model: Mapping[str, Any]) -> set[int]:
    """Also the tokens that those of a BPE vocabulary are merged from, and theirs."""
    parts: dict[int, set[int]] = {}
    for left, right, whole in _merges(model):
        parts.setdefault(vocabulary[whole], set()).update((vocabulary[left], vocabulary[right]))
    found, left_to_see = set(kept), list(kept)
    while left_to_see:
        new = parts.get(left_to_see.pop(), set()) - found
        found |= new
        left_to_see += new
    return found


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(left, right, what they become), in order of rank; older files write a merge as one string."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right, left + right.removeprefix(prefix)


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Any]:
    """Every text as a whole and as a list of words, which is how taggers read it."""
    for start in range(0, len(texts), CHUNK):
        chunk = [text for text in texts[start : start + CHUNK] if text.strip()]
        yield from tokenizer.encode_batch(chunk)
        yield from tokenizer.encode_batch([text.split() for text in chunk], is_pretokenized=True)


# ------------------------------------------------------------------------------------------------ the new tokenizer


def _tokenizer(spec: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer.json with only the tokens in `ids` (old id → new id)."""
    made: dict[str, Any] = json.loads(json.dumps(spec))
    model = made["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in ids]
        model["unk_id"] = None if model["unk_id"] is None else ids[model["unk_id"]]
    else:
        vocabulary = {token: ids[number] for token, number in model["vocab"].items() if number in ids}
        if model["type"] == "BPE":
            left = zip(_merges(model), model["merges"], strict=True)
            model["merges"] = [merge for parts, merge in left if all(part in vocabulary for part in parts)]
        model["vocab"] = vocabulary
    for added in made.get("added_tokens") or []:
        added["id"] = ids[added["id"]]
    if made.get("padding"):
        made["padding"]["pad_id"] = ids[made["padding"]["pad_id"]]
    _renumber(made.get("post_processor"), ids)
    return made


def _renumber(processor: dict[str, Any] | None, ids: Mapping[int, int]) -> None:
    """New ids for the tokens that a post-processor adds, in place."""
    if not processor:
        return
    for inner in processor.get("processors") or []:
        _renumber(inner, ids)
    for name in ("cls", "sep"):
        if isinstance(processor.get(name), list):  # ["[SEP]", 102]
            processor[name][1] = ids[processor[name][1]]
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else []:
        token["ids"] = [ids[number] for number in token["ids"]]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _loaded(made: Mapping[str, Any], folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(made))
    except Exception as error:  # the library raises bare Exception
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{folder / TOKENIZER} cannot be trimmed ({first}); use the checkpoint as it is"
        ) from error


def _require_same(old: Tokenizer, new: Tokenizer, texts: Sequence[str], ids: Mapping[int, int]) -> None:
    """CheckpointError unless tokens have their new ids and the texts make the same tokens as before."""
    before = old.get_vocab(with_added_tokens=True)
    if new.get_vocab(with_added_tokens=True) != {token: ids[n] for token, n in before.items() if n in ids}:
        raise CheckpointError("the trimmed tokenizer numbers its tokens in another way; use the checkpoint as it is")
    for one, two in zip(_encoded(old, texts), _encoded(new, texts), strict=True):
        if one.tokens != two.tokens:
            raise CheckpointError(
                f"the trimmed tokenizer splits {' '.join(one.tokens)[:80]!r} in another way; use the checkpoint as it is"
            )


# ------------------------------------------------------------------------------------------------ the files


def _write(folder: Path, made: Mapping[str, Any], ids: Mapping[int, int]) -> int:
    """Trim the checkpoint in `folder`, a copy, in place; how many rows the token table had."""
    (folder / TOKENIZER).write_text(json.dumps(made, ensure_ascii=False), "utf8")
    _renumber_config(folder, ids)
    _renumber_settings(folder, ids)
    return _cut_rows(folder, sorted(ids))


def _configs(folder: Path) -> dict[Path, dict[str, Any]]:
    """What says something of tokens by their ids, by its file: the configuration with what the family's defaults add to it."""
    from transformers import AutoConfig

    full = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    tokens = {name: value for name, value in full.items() if name.endswith("_token_id")}
    found = {folder / "config.json": tokens | json.loads((folder / "config.json").read_text("utf8"))}
    generation = folder / "generation_config.json"
    return found | ({generation: json.loads(generation.read_text("utf8"))} if generation.is_file() else {})


def _named_ids(folder: Path) -> set[int]:
    """Ids of the tokens that begin, end, fill or head a text: they stay, whether a text has them or not."""
    found: set[int] = set()
    for config in _configs(folder).values():
        for name, value in config.items():
            if name.endswith("_token_id"):
                found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return found


def _renumber_config(folder: Path, ids: Mapping[int, int]) -> None:
    """The new size and ids in config.json and generation_config.json."""
    for path, config in _configs(folder).items():
        made = {name: _renumbered(name, value, ids) for name, value in config.items()}
        if path.name == "config.json":
            made["vocab_size"] = len(ids)
        path.write_text(json.dumps(made, indent=2), "utf8")


def _renumbered(name: str, value: Any, ids: Mapping[int, int]) -> Any:
    """A setting with the new ids, where it has some: of a token that is gone there is nothing to say."""
    if name.endswith("_token_id") and isinstance(value, int):
        return ids.get(value)
    if name.endswith(("_token_id", "suppress_tokens")) and isinstance(value, list):
        return [ids[one] for one in value if one in ids]
    if name == "bad_words_ids" and isinstance(value, list):
        return [[ids[one] for one in word] for word in value if all(one in ids for one in word)] or None
    if name == "sequence_bias" and isinstance(value, list):
        return [[[ids[one] for one in word], bias] for word, bias in value if all(one in ids for one in word)] or None
    if name == "forced_decoder_ids" and isinstance(value, list):
        return [[place, ids.get(one)] for place, one in value]
    if name in ("lang_to_id", "task_to_id") and isinstance(value, dict):
        return {token: ids[one] for token, one in value.items() if one in ids}
    return value


def _renumber_settings(folder: Path, ids: Mapping[int, int]) -> None:
    """New ids in what transformers writes beside tokenizer.json."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf8")) if path.is_file() else {}
    if settings.get("added_tokens_decoder"):
        known = settings["added_tokens_decoder"].items()
        settings["added_tokens_decoder"] = {str(ids[int(n)]): token for n, token in known if int(n) in ids}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf8")
    path = folder / "added_tokens.json"
    if path.is_file():
        added = json.loads(path.read_text("utf8"))
        path.write_text(json.dumps({token: ids[n] for token, n in added.items() if n in ids}), "utf8")


def _cut_rows(folder: Path, kept: Sequence[int]) -> int:
    """Keep these rows of every tensor that has one per token, and write one safetensors file; how many rows there were.

    CheckpointError when the token table has no known name.
    """
    import torch
    from safetensors.torch import load_file, save_file

    files = weight_files(folder)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    rows = next((len(tensor) for name, tensor in tensors.items() if TABLES.search(name)), 0)
    if rows < len(kept):
        raise CheckpointError(
            f"{files[0]} has no token table under a name that fmopt knows; use the checkpoint as it is"
        )
    named = [name for name in tensors if TABLES.search(name) or HEADS.search(name)]
    cut = [name for name in named if tensors[name].shape[:1] == (rows,)]
    index = torch.tensor(kept)
    for name in cut:
        tensors[name] = tensors[name][index].contiguous()
    for file in (*files, folder / INDEX):
        file.unlink(missing_ok=True)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return rows
