"""Networks with random weights whose tokenizer or catalogue of items is made of the data: an entry of `models/` with
source = "config" and a [tokenizer] or a [catalogue], which `finetune` trains from the start where no pretrained checkpoint
is at hand.

    source = "config"
    task = "text-generation"
    [config]                  # as config.json: model_type and sizes
    model_type = "gpt2"
    [tokenizer]               # trained on the texts of the data's train split
    kind = "byte-bpe"         # of answers by an encoder and a decoder "byte-bpe-answers": texts end, they do not begin;
                              # "bytes", the same without any of more than one byte, where texts are too few to learn from
    size = 4096               # tokens, the special ones included
    [generation]              # as generation_config.json: how answers are made
    [finetune]                # what `fmopt finetune` uses where the command says nothing
    epochs = 4
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, ConfigError
from fmopt.core.model import TOKENIZER
from fmopt.models.loading import auto_loader, quiet
from fmopt.models.networks import known_transformers
from fmopt.models.preprocessors.catalog import write_catalogue
from fmopt.models.source import made_once
from fmopt.tasks.base import find_task

MADE_OF_DATA = frozenset({"tokenizer", "catalogue"})
KINDS = ("byte-bpe", "byte-bpe-answers", "bytes")
PAD = "<pad>"  # of answers: fills rows, and begins what a decoder makes
END = "<|endoftext|>"  # begins every text, as in GPT-2, so that its first word is predicted too; pads, and ends a text


def read_entry(model: str) -> dict[str, Any] | None:
    """The entry of `models/` called `model` when a tokenizer or catalogue of its network is to be made of data, else None."""
    path = plugins.data_folder("models") / f"{model}.toml"
    if Path(model).name != model or not path.is_file():
        return None
    with path.open("rb") as stream:
        entry = tomllib.load(stream)
    return entry if entry.get("source") == "config" and MADE_OF_DATA & set(entry) else None


def write_untrained(entry: Mapping[str, Any], texts: Sequence[str], cache: Path, name: str, seed: int = 0) -> Path:
    """The checkpoint folder of `entry` below `cache`: made once for the same entry, texts and seed. Returns the folder.

    `texts` are those that a tokenizer is trained on, or the items of a catalogue, id and title parted by a tab."""
    others = [entry[part] for part in ("generation", "processor") if part in entry]
    settings = json.dumps([entry.get("config"), entry.get("tokenizer"), seed, *others], sort_keys=True)
    key = hashlib.sha256(settings.encode())
    for text in texts:
        key.update(text.encode("utf8", "surrogatepass") + b"\0")
    place = cache / "untrained" / key.hexdigest()[:16] / name

    def make(out: Path) -> None:
        write = partial(_write_tokenizer, entry["tokenizer"]) if "tokenizer" in entry else write_catalogue
        _write_network(entry, write(texts, out), out, seed)

    return made_once(place, make)


def _write_network(entry: Mapping[str, Any], ids: Mapping[str, int], out: Path, seed: int) -> None:
    """config.json and random weights of the entry's task."""
    import torch

    transformers = known_transformers()

    settings = {**entry["config"], **ids}
    if "text_config" in settings:  # of two networks, the one that reads texts
        settings["text_config"] = {**settings["text_config"], **ids}
    kind = settings.pop("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        near = plugins.did_you_mean(str(kind), transformers.CONFIG_MAPPING)
        raise ConfigError(f"transformers does not know model_type {kind!r}{near}")
    config = transformers.AutoConfig.for_model(kind, **settings)
    loader = auto_loader(find_task(entry["task"]).auto_class, config)
    with torch.random.fork_rng(devices=[]), quiet(transformers.utils.logging):
        torch.manual_seed(seed)
        net = loader.from_config(config)
        if "generation" in entry:
            net.generation_config.update(**entry["generation"])
        net.save_pretrained(out)
    if "processor" in entry:  # of audio and images
        (out / "preprocessor_config.json").write_text(json.dumps(entry["processor"], indent=1))


def _write_tokenizer(settings: Mapping[str, Any], texts: Iterable[str], out: Path) -> dict[str, int]:
    """A byte-level BPE tokenizer (Sennrich et al., 2016; bytes as in GPT-2) in `out`; the ids that a config must name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if settings.get("kind") not in KINDS:
        raise ConfigError(
            f"a tokenizer of kind {settings.get('kind')!r} cannot be trained; there are {', '.join(KINDS)}"
        )
    answers = settings["kind"] != KINDS[0]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END] if answers else [END]
    trainer = trainers.BpeTrainer(
        vocab_size=int(settings.get("size", 0)),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(() if settings["kind"] == KINDS[2] else texts, trainer)
    end = int(tokenizer.token_to_id(END) or 0)
    single, pair = (f"$A {END}", f"$A {END} $B {END}") if answers else (f"{END} $A", f"{END} $A $B")
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(END, end)])
    # answers may be of few words
    if settings["kind"] != KINDS[2] and tokenizer.get_vocab_size() < (270 if answers else 300):
        raise CheckpointError("the texts give a vocabulary of bytes alone; give a train split of some thousand words")
    tokenizer.save(str(out / TOKENIZER))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
    names |= {"pad_token": PAD} if answers else {}
    metadata = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (out / "tokenizer_config.json").write_text(json.dumps(metadata, indent=1))
    pad = int(tokenizer.token_to_id(PAD) or 0) if answers else end
    ids = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    return ids | ({"decoder_start_token_id": pad} if answers else {})
