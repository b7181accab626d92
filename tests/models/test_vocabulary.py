"""Trimming a vocabulary: the same tokens and outputs for the texts given, everything else still spelled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from fmopt.core.errors import CheckpointError, DataError, StoreError
from fmopt.models.vocabulary import trim
from tests.conftest import FAMILIES, SENTENCES
from tests.torch_models import items_of, model_of, outputs_of

CORPUS = (*SENTENCES[:4], "a small cat in Paris")
FOREIGN = (
    "Привет, мир! Как дела?",
    "素早い茶色の狐 🦊 は怠け者の犬を飛び越える",
    "العربية ‏من اليمين",
    "zero\u200bwidth, na\u0308ive, \x07 bell, \U0001f469\u200d\U0001f4bb\ufe0f and \U0010ffff",
    "every morning lazy dogs",
)


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["sentence-embedding"])
def test_outputs_stay_and_the_table_shrinks(tiny_checkpoint, tmp_path, family, task):
    folder = tiny_checkpoint(family, task)
    got = trim(folder, CORPUS, tmp_path / "small")
    old, new = model_of(folder), model_of(got.folder)
    assert got.tokens < got.tokens_before == old.net.config.vocab_size
    table = new.net.get_submodule(new.family.embeddings(new.net)[0])
    assert table.num_embeddings == new.net.config.vocab_size == got.tokens
    assert got.bytes_before - got.bytes >= 4 * 16 * (got.tokens_before - got.tokens) * 0.9
    for one, two in zip(items_of(old, CORPUS), items_of(new, CORPUS), strict=True):
        np.testing.assert_array_equal(outputs_of(old, one), outputs_of(new, two))
    before, after = tokenizer_of(folder), tokenizer_of(got.folder)
    for text in CORPUS:
        assert before.encode(text, "a cat").tokens == after.encode(text, "a cat").tokens
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        number = getattr(old.net.config, f"{name}_token_id", None)
        if number is not None:
            assert after.token_to_id(before.id_to_token(number)) == getattr(new.net.config, f"{name}_token_id")


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_bytes_spell_every_text(tiny_checkpoint, tmp_path, family):
    folder = tiny_checkpoint(family)
    got = trim(folder, CORPUS, tmp_path / "small")
    before, after = tokenizer_of(folder), tokenizer_of(got.folder)
    longer = 0
    for text in (*FOREIGN, *SENTENCES):
        ids = after.encode(text, add_special_tokens=False).ids
        assert after.decode(ids) == before.decode(before.encode(text, add_special_tokens=False).ids) == text
        longer += len(ids) - len(before.encode(text, add_special_tokens=False).ids)
    assert longer > 0  # texts that were not given cost more tokens, and nothing else


def test_foreign_texts_in_the_corpus_keep_their_tokens(tiny_checkpoint, tmp_path):
    for family in ("bert", "xlm-roberta", "roberta"):
        folder = tiny_checkpoint(family)
        got = trim(folder, (*CORPUS, *FOREIGN), tmp_path / family)
        before, after = tokenizer_of(folder), tokenizer_of(got.folder)
        for text in FOREIGN:
            assert before.encode(text).tokens == after.encode(text).tokens


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "albert"])
def test_what_was_known_is_not_unknown_now(tiny_checkpoint, tmp_path, family):
    folder = tiny_checkpoint(family)
    got = trim(folder, CORPUS[:1], tmp_path / "small")
    before, after = tokenizer_of(folder), tokenizer_of(got.folder)
    for text in SENTENCES:
        unknown = [t for t in before.encode(text).tokens if t in ("[UNK]", "<unk>")]
        assert [t for t in after.encode(text).tokens if t in ("[UNK]", "<unk>")] == unknown


def test_a_masked_lm_head_is_trimmed_with_its_table(tiny_checkpoint, tmp_path):
    from fmopt.models.loading import load_network

    folder = tiny_checkpoint("bert", "masked-lm")
    got = trim(folder, CORPUS, tmp_path / "small")
    net = load_network(got.folder, "AutoModelForMaskedLM")
    assert net.get_output_embeddings().weight.shape[0] == got.tokens == net.cls.predictions.bias.shape[0]


def test_byte_fall_back_tokens_stay(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("xlm-roberta"), tmp_path / "bytes")
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    longest = sorted(range(10, len(vocabulary)), key=lambda n: -len(vocabulary[n][0]))[:3]
    for number, token in zip(longest, ("<0x41>", "<0xF0>", "<0x9F>"), strict=True):
        vocabulary[number] = [token, 0.0]
    spec["model"]["byte_fallback"] = True
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    got = trim(folder, CORPUS[:2], tmp_path / "small")
    assert {"<0x41>", "<0xF0>", "<0x9F>"} <= set(tokenizer_of(got.folder).get_vocab())


def test_ids_in_the_configuration_of_a_decoder_follow_their_tokens(tiny_checkpoint, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(tiny_checkpoint("llama", "text-generation"), folder)
    before = tokenizer_of(folder)
    used = {number for text in CORPUS for number in before.encode(text).ids}
    unused = [number for number in range(300, before.get_vocab_size()) if number not in used]
    ends, bad, gone = [0, unused[0], unused[1]], [unused[2], 70], [unused[3]]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    written = {
        "eos_token_id": ends,
        "bad_words_ids": [bad, [71, 72]],
        "suppress_tokens": [80, *gone],
        "repetition_penalty": 1.2,
    }
    (folder / "generation_config.json").write_text(json.dumps(written))
    got = trim(str(folder), CORPUS, str(tmp_path / "small"))
    after = tokenizer_of(got.folder)
    new = json.loads((got.folder / "generation_config.json").read_text())

    def same(ids):
        return [after.token_to_id(before.id_to_token(number)) for number in ids]

    assert new["eos_token_id"] == same(ends) == model_of(got.folder).metadata.pipeline["eos_token_id"]
    assert None not in new["eos_token_id"]
    assert new["bad_words_ids"] == [same([71, 72])]  # of a token that is gone nothing is left to forbid
    assert new["suppress_tokens"] == same([80])
    assert new["repetition_penalty"] == 1.2


def test_what_cannot_be_trimmed_is_left_alone(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "words")
    with pytest.raises(DataError, match="no texts to trim"):
        trim(folder, ["  "], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(StoreError, match="not empty"):
        trim(folder, CORPUS, tmp_path / "full")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"] = {"type": "WordLevel", "vocab": spec["model"]["vocab"], "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    # as it lies: a class of a family would make its own kind of the vocabulary
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(CheckpointError, match="a WordLevel vocabulary is not known"):
        trim(folder, CORPUS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_minilm(minilm, tmp_path):
    got = trim(minilm, SENTENCES, tmp_path / "small")
    assert (got.tokens_before, got.bytes_before // 10**6) == (30522, 90)
    assert got.tokens < 3000
    assert got.bytes < 0.55 * got.bytes_before
    old, new = model_of(minilm), model_of(got.folder)
    assert new.metadata.pipeline["max_length"] == old.metadata.pipeline["max_length"]
    for one, two in zip(items_of(old)[:3], items_of(new)[:3], strict=True):
        np.testing.assert_array_equal(outputs_of(old, one), outputs_of(new, two))
