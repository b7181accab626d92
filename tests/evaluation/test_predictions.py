"""Predictions in the order of the items, the same from disk, and what people would see changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.model import ModelSource
from fmopt.edge.text import Preprocessor
from fmopt.evaluation.predictions import changed_items, load_predictions, predict, save_predictions
from fmopt.models import checkpoint
from fmopt.tasks.base import Item
from tests.conftest import SENTENCES

RAWS = {
    "sentence-embedding": [*SENTENCES, SENTENCES[0]],
    "text-classification": [(a, b) for a, b in zip(SENTENCES, reversed(SENTENCES), strict=True)],
    "text-regression": [*SENTENCES],
    "token-classification": [sentence.split() for sentence in SENTENCES],
    "question-answering": [("where?", sentence) for sentence in SENTENCES],
    "fill-mask": [sentence.replace(" a ", " [MASK] ") + " [MASK]" for sentence in SENTENCES],
}


class Counting:
    """A torch runner that remembers the shapes it was given."""

    def __init__(self, runner):
        self.runner, self.shapes = runner, []

    def run(self, inputs):
        self.shapes.append(inputs["input_ids"].shape)
        return self.runner.run(inputs)

    def close(self):
        self.runner.close()


@pytest.fixture
def opened(tiny_checkpoint):
    def make(task):
        folder = tiny_checkpoint(task=task)
        metadata = checkpoint.inspect(ModelSource(str(folder), folder, "tiny"), task)
        runtime = plugins.find("runtimes", "torch")
        runner = Counting(runtime.open(runtime.build(metadata, {"dtype": "fp32"}, folder), threads=1))
        return metadata, Preprocessor(checkpoint.tokenizer_file(metadata), metadata.pipeline), runner

    return make


def numbers(predictions):
    if isinstance(predictions[0], dict):
        return [[prediction["start"], prediction["end"], prediction["score"]] for prediction in predictions]
    return [np.ravel(prediction) for prediction in predictions]


@pytest.mark.parametrize("task", RAWS)
def test_batches_predict_what_single_items_do(task, opened, tmp_path):
    metadata, preprocessor, runner = opened(task)
    items = [Item(row, sample) for row, sample in enumerate(RAWS[task])]
    done: list[int] = []
    one = predict(runner, preprocessor, metadata.pipeline, items, progress=done.append)
    assert sum(done) == len(items) == len(one)
    four = predict(runner, preprocessor, metadata.pipeline, items, batch=4, progress=done.append)
    assert sum(done) == 2 * len(items)
    for single, batched in zip(numbers(one), numbers(four), strict=True):
        np.testing.assert_allclose(batched, single, atol=1e-5)
    several = predict(runner, preprocessor, metadata.pipeline, items, callers=3, progress=done.append)
    assert sum(done) == 3 * len(items)
    for single, beside in zip(numbers(one), numbers(several), strict=True):
        np.testing.assert_array_equal(beside, single)

    save_predictions(tmp_path / "predictions", one)
    loaded = load_predictions(tmp_path / "predictions")
    for single, read in zip(one, loaded, strict=True):
        assert type(single) is type(read)
        np.testing.assert_equal(read, single)
    assert getattr(loaded[0], "dtype", None) == getattr(one[0], "dtype", None)
    (written,) = tmp_path.iterdir()
    before = written.read_bytes()
    save_predictions(tmp_path / "predictions", loaded)
    assert written.read_bytes() == before


def test_a_repeated_text_is_run_once_and_batches_hold_like_lengths(opened):
    metadata, preprocessor, runner = opened("sentence-embedding")
    items = [
        Item(row, text)
        for row, text in enumerate(["a long text of many words " * 3, "b", "c", "a long text " * 5, "b"])
    ]
    got = predict(runner, preprocessor, metadata.pipeline, items, batch=2)
    assert [rows for rows, _ in runner.shapes] == [2, 2]
    assert runner.shapes[0][1] < runner.shapes[1][1]
    np.testing.assert_array_equal(got[1], got[4])
    assert not np.allclose(got[1], got[2])


def test_rows_over_a_vocabulary_are_kept_in_half_the_bytes(tmp_path):
    reported = [np.log(np.random.default_rng(n).dirichlet(np.full(5000, 0.5), n)).astype(np.float32) for n in (1, 2)]
    reported = [np.maximum(array, -60) for array in reported]
    save_predictions(tmp_path / "p", reported)
    assert (tmp_path / "p.npz").stat().st_size < 3 * 5000 * 2 + 1000
    for array, read in zip(reported, load_predictions(tmp_path / "p"), strict=True):
        assert (read.dtype, read.shape) == (np.float32, array.shape)
        np.testing.assert_allclose(read, array, rtol=2**-11)


def test_texts_without_words_keep_their_shape(tmp_path):
    reported = [np.zeros((0, 3), dtype=np.float32), np.ones((2, 3), dtype=np.float32)]
    save_predictions(tmp_path / "p", reported)
    assert [array.shape for array in load_predictions(tmp_path / "p")] == [(0, 3), (2, 3)]
    save_predictions(tmp_path / "none", [])
    assert load_predictions(tmp_path / "none") == []


def test_changed_items_the_most_harmed_first(opened):
    metadata, _, _ = opened("text-classification")
    task = plugins.find("tasks", metadata.task)
    items = task.items([{"text": "x" * 1000 if n == 2 else f"t{n}", "label": 1} for n in range(4)], metadata)
    one = np.eye(3, dtype=np.float32)
    before, after = [one[0], one[1], one[1], one[1]], [one[1], one[1], one[0], one[2]]
    got = changed_items(task, items, before, after, metadata)
    assert [(entry["row"], entry["label"], entry["baseline"], entry["candidate"]) for entry in got] == [
        (2, "neutral", "neutral", "negative"),
        (3, "neutral", "neutral", "positive"),
        (0, "neutral", "negative", "neutral"),
    ]
    assert got[0]["text"] == "x" * 399 + "…"
    assert json.dumps(got)
    assert changed_items(task, items, before, after, metadata, limit=1) == got[:1]
    assert changed_items(task, items, before, before, metadata) == []
    assert changed_items(task, [], [], [], metadata) == []
    with pytest.raises(DataError, match="4 and 3 predictions cannot be compared on 4 items"):
        changed_items(task, items, before, after[:3], metadata)


def test_a_changed_pair_shows_both_texts(opened):
    metadata, _, _ = opened("text-classification")
    task = plugins.find("tasks", metadata.task)
    items = task.items([{"text": "a", "text_pair": "b"}], metadata)
    one = np.eye(3, dtype=np.float32)
    assert changed_items(task, items, [one[0]], [one[1]], metadata) == [
        {"row": 0, "text": "a | b", "label": None, "baseline": "negative", "candidate": "neutral"}
    ]


def test_predictions_equal_those_of_the_torch_model(opened):
    metadata, preprocessor, runner = opened("text-classification")
    got = predict(runner, preprocessor, metadata.pipeline, [Item(0, SENTENCES[0])])
    net = checkpoint.load(metadata).net
    inputs = {name: torch.from_numpy(array) for name, array in preprocessor.encode([SENTENCES[0]]).inputs.items()}
    with torch.inference_mode():
        np.testing.assert_allclose(got[0], net(**inputs).logits[0].numpy(), atol=1e-6)
