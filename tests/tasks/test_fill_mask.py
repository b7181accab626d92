"""One word of a passage is masked, always the same; scores are those of the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax, rel_entr

from fmopt.core.errors import DataError
from fmopt.data.datasets import load_data
from fmopt.edge import text as edge_text
from fmopt.evaluation.metrics import METRICS
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.fill_mask import TASK
from tests.conftest import SENTENCES
from tests.tasks.cases import by_name

FAMILIES = ("bert", "roberta", "xlm-roberta")
ROWS = [{"text": text} for text in SENTENCES]


def facts_of(folder, **pipeline):
    metadata = checkpoint.inspect(resolve(str(folder)), "fill-mask")
    metadata.pipeline.update(pipeline)
    return metadata


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_word_is_a_whole_one_and_its_token_the_label(tiny_checkpoint, family):
    metadata = facts_of(tiny_checkpoint(family, "fill-mask"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(metadata.folder, local_files_only=True)
    items = TASK.items(ROWS, metadata)
    assert len(items) > 5
    for item in items:
        text = ROWS[item.row]["text"]
        before, after = item.sample.split(tokenizer.mask_token)
        word = text[len(before) : len(text) - len(after)]
        assert word == tokenizer.decode([item.label]).strip() or word.lower() == tokenizer.decode([item.label])
        assert text == before + word + after
        assert word in text.replace(",", " ").replace("?", " ").split()
        assert item.label in tokenizer(text)["input_ids"]
        assert tokenizer(item.sample)["input_ids"].count(tokenizer.mask_token_id) == 1


def test_the_word_depends_on_the_passage_alone(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("bert", "fill-mask"))
    items = TASK.items(ROWS, metadata)
    assert [item.sample for item in TASK.items(ROWS[::-1], metadata)] == [item.sample for item in items][::-1]
    assert len({item.label for item in items}) > len(items) // 2  # not always the first word, or "the"


def test_masks_stay_within_what_is_read(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("roberta", "fill-mask"), max_length=8)
    preprocessor = edge_text.Preprocessor(checkpoint.tokenizer_file(metadata), metadata.pipeline)
    items = TASK.items([{"text": f"{one} {two}"} for one in SENTENCES for two in SENTENCES], metadata)
    assert items
    read = preprocessor.encode([item.sample for item in items]).inputs["input_ids"]
    assert ((read == metadata.pipeline["mask"]["id"]).sum(axis=1) == 1).all()


def test_texts_with_masks_of_their_own_have_no_label(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("bert", "fill-mask"))
    held = [{"text": "the [MASK] sat"}, {"text": "[MASK] dog [MASK]"}]
    assert [(item.sample, item.label) for item in TASK.items(held, metadata)] == [(row["text"], None) for row in held]
    with pytest.raises(DataError, match=r"row 2 holds \[MASK\] itself while others do not"):
        TASK.items([ROWS[0], held[0]], metadata)
    with pytest.raises(DataError, match="none of 2 texts has a word that is one token"):
        TASK.items([{"text": "1, 2, 3"}, {"text": "Zebra's"}], metadata)
    with pytest.raises(DataError, match="row 2 has a text that cannot be encoded"):
        TASK.items([ROWS[0], {"text": "\ud800"}], metadata)


def test_scores_are_those_of_the_torch_model(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("bert", "fill-mask"))
    items = TASK.items(ROWS, metadata)
    tokenizer = transformers.AutoTokenizer.from_pretrained(metadata.folder, local_files_only=True)
    net = transformers.AutoModelForMaskedLM.from_pretrained(metadata.folder, local_files_only=True).eval()
    predictions, losses, right = [], [], []
    for item in items:
        inputs = tokenizer(item.sample, return_tensors="pt")
        hidden = inputs["input_ids"] == tokenizer.mask_token_id
        labels = torch.where(hidden, item.label, -100)
        with torch.inference_mode():
            out = net(**inputs, labels=labels)
        losses.append(float(out.loss))
        right.append(int(out.logits[hidden].argmax()) == item.label)
        predictions.append(log_softmax(out.logits[hidden].numpy(), axis=-1))
    got = by_name(TASK.scores(predictions, items, None, metadata))
    found = got["pseudo-perplexity"]
    assert found.primary
    assert METRICS[found.metric].of(found.array()) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert got["accuracy@1"].array().mean() == np.mean(right)


def test_without_labels_the_baseline_judges(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("bert", "fill-mask"))
    items = TASK.items([{"text": "the [MASK] sat"}, {"text": "[MASK] dog [MASK]"}], metadata)
    rng = np.random.default_rng(0)
    before = [log_softmax(rng.normal(size=(masks, 200)), axis=1).astype(np.float32) for masks in (1, 2)]
    after = [before[0] + 0, log_softmax(before[1] + rng.normal(size=(2, 200)), axis=1)]
    got = by_name(TASK.scores(after, items, before, metadata))
    assert got["agreement with baseline"].primary
    assert got["agreement with baseline"].values == [[1.0], [0.0]]
    wanted = rel_entr(np.exp(before[1]), np.exp(after[1])).sum(axis=1).mean()
    assert got["KL to baseline"].values[0] == [0.0]
    assert got["KL to baseline"].values[1][0] == pytest.approx(wanted, rel=1e-4)


def test_changes_name_the_words_and_their_harm(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("roberta", "fill-mask"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(metadata.folder, local_files_only=True)
    the, and_ = (tokenizer(f"a {word}")["input_ids"][-2] for word in ("the", "and"))
    items = [TASK.items(ROWS, metadata)[0]] * 2
    label = items[0].label
    sure, unsure = (np.full((1, len(tokenizer)), np.log(1e-6), np.float32) for _ in range(2))
    sure[0, [the, label]] = np.log([0.6, 0.4])
    unsure[0, [and_, label]] = np.log([0.9, 0.1])
    (change,) = TASK.changes([unsure, sure], items, [sure, sure], metadata)
    assert (change.item, change.before, change.after) == (0, "the", "and")
    assert change.label == tokenizer.decode([label]).strip()
    assert change.harm == pytest.approx(0.3, abs=1e-4)


@pytest.mark.real
def test_nearly_every_passage_of_a_book_has_a_word_to_mask(shared_data, minilm):
    metadata = checkpoint.inspect(resolve(str(minilm)), "fill-mask", fresh_head=True)
    data = load_data(str(shared_data / "war_and_peace"), TASK, metadata)
    items = TASK.items(data.split("test"), metadata)
    assert len(data.split("test")) == len(items) > 300
    assert len({item.label for item in items}) > 100
    preprocessor = edge_text.Preprocessor(checkpoint.tokenizer_file(metadata), metadata.pipeline)
    for item in items:
        ids = preprocessor.encode([item.sample]).inputs["input_ids"][0]
        whole = preprocessor.encode([data.split("test")[item.row]["text"]]).inputs["input_ids"][0]
        assert np.flatnonzero(ids != whole).tolist() == np.flatnonzero(ids == metadata.pipeline["mask"]["id"]).tolist()
        assert whole[ids != whole] == [item.label]
