"""Recommendation end to end: who took what becomes histories, a SASRec learns them, a bundle says what comes next."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import fmopt
from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, DataError
from fmopt.data.datasets import load_data
from fmopt.data.interactions import leave_one_out
from fmopt.data.readers import Table
from fmopt.edge.recommendation import Catalogue, read_sample
from fmopt.edge.text import open_preprocessor
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.predictions import predict
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import Item
from fmopt.tasks.sequential_recommendation import TASK, gain, place_of
from fmopt.training.examples import pieces
from fmopt.workflow import export, finetune

ITEMS, USERS = 30, 40
ENTRY = """
source = "config"
task = "sequential-recommendation"
[config]
model_type = "sasrec"
hidden_size = 32
num_hidden_layers = 1
max_position_embeddings = 8
dropout = 0.0
[catalogue]
[finetune]
epochs = 15
batch_size = 8
learning_rate = 1e-2
patience = 15
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Everybody takes the item after the one taken last, in the order of the catalogue, from a first of their own."""
    home = tmp_path_factory.mktemp("taken")
    rows = [
        f"u{user},{100 + (user + step) % ITEMS},{1000 + step}" for user in range(USERS) for step in range(6 + user % 9)
    ]
    (home / "train.csv").write_text("\n".join(["user,item,timestamp", *rows[::2]]))
    (home / "test.csv").write_text("\n".join(["user,item,timestamp", *rows[1::2]]))
    titles = [f"{100 + number},Title {number}" for number in range(ITEMS)]
    (home / "items.csv").write_text("\n".join(["item,title", *titles]))
    return home


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    (home / "tiny-sasrec.toml").write_text(ENTRY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            plugins, "data_folder", lambda name, real=plugins.data_folder: home if name == "models" else real(name)
        )
        with pytest.raises(CheckpointError, match="tokenizer or catalogue that is made of the data; train it first"):
            resolve("tiny-sasrec")
        record = finetune.finetune("tiny-sasrec", data, home / "ckpt")
    assert (record["metric"], record["value"] > 0.9) == ("HR@10", True), record
    return home / "ckpt"


def test_interactions_become_leave_one_out_histories():
    def table(*rows):
        return Table("x.csv", [dict(zip(("user", "item", "time"), row, strict=True)) for row in rows])

    notes = []
    # out of order, over two splits, times as text; one user has too few
    got = leave_one_out(
        {"train": table(("a", 3, "30"), ("a", 1, "5"), ("b", 9, 1)), "test": table(("a", 2, "20"), ("a", 4, "100"))},
        notes,
    )
    assert [got[split].rows for split in ("train", "validation", "test")] == [
        [{"items": ["1", "2"]}],
        [{"items": ["1", "2"], "next": "3"}],
        [{"items": ["1", "2", "3"], "next": "4"}],
    ]
    assert "1 users with fewer than 3 interactions were left out" in notes
    with pytest.raises(DataError, match="no user has 3 interactions"):
        leave_one_out({"": table(("a", 1, 1), ("a", 2, 2))}, [])


def test_pieces_hold_what_follows_every_item():
    assert pieces([1, 2, 3, 4, 5], 3) == [[3, 4, 5], [1, 2, 3]]
    assert pieces([1, 2, 3, 4], 3) == [[2, 3, 4], [1, 2]]
    assert pieces([1], 3) == [[1]]


def test_ranks_are_over_the_whole_catalogue_without_what_was_taken(trained):
    metadata = checkpoint.inspect(resolve(str(trained)))
    scores = np.arange(ITEMS, dtype=np.float32)  # the last item of the catalogue is the best
    items = [Item(0, ["129", "128"], 20), Item(1, ["100"], 20), Item(2, ["100"], ITEMS), Item(3, ["129"], ITEMS)]
    found = {one.name: one.array()[:, 0].tolist() for one in TASK.scores([scores] * 4, items, None, metadata)}
    # item 20 has 10 above it, 8 when two of them were taken; what was taken itself is never recommended
    assert found["HR@10"] == [1, 0, 1, 0]
    assert found["NDCG@10"] == pytest.approx([1 / np.log2(10), 0, 1, 0])
    assert place_of(1, np.array([1.0, 1.0, 0.0])) == 2  # a tie is no hit by luck
    assert (gain(1), gain(11)) == (1.0, 0.0)
    (shared,) = [one for one in TASK.scores([scores], items[:1], [scores], metadata) if one.against_baseline]
    assert shared.array()[0, 0] == 1


def test_padding_changes_nothing_and_the_newest_item_has_the_last_position(trained):
    net = checkpoint.load(checkpoint.inspect(resolve(str(trained)))).net
    ids = torch.tensor([[3, 4, 5, 0, 0], [7, 8, 9, 10, 11]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        both = net(ids, mask).logits
        alone = net(ids[:1, :3], mask[:1, :3]).logits
    assert torch.allclose(both[0], alone[0], atol=1e-5)
    seen = []
    handle = net.positions.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net(ids, mask)
    handle.remove()
    assert seen[0][0, :3].tolist() == [5, 6, 7]
    assert seen[0][1].tolist() == [3, 4, 5, 6, 7]


def test_the_bundle_says_what_comes_next_without_torch(trained, data, tmp_path):
    metadata = checkpoint.inspect(resolve(str(trained)))
    assert (metadata.task, metadata.modality, metadata.model_type) == ("sequential-recommendation", "item", "sasrec")
    history = ["110", "Title 11", "112"]
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    inputs = dict(preprocessor.encode([history]).inputs)
    logits = parity.torch_outputs(checkpoint.load(metadata).net, inputs, ["logits"])["logits"][0, 1:]
    made = {p: export.export(trained, tmp_path / p, precision=p, data=data) for p in ("fp32", "int8")}
    assert (made["int8"] / "model.onnx").stat().st_size < (made["fp32"] / "model.onnx").stat().st_size
    for precision, allowed in (("fp32", 1e-3), ("int8", 1.5)):
        opened = fmopt.load(made[precision])
        (got,) = opened.predict([history])
        assert np.abs(got - logits).max() < allowed
        block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'fmopt')))"
        code = f"{block}; import runpy; sys.exit(runpy.run_path('run.py')['main'](sys.argv[1:]))"
        command = [sys.executable, "-c", code, "predict", "110; title 11; 112", '["110", "111", "112"]', "--json"]
        done = subprocess.run(command, cwd=made[precision], capture_output=True, text=True, check=True)
        answers = json.loads(done.stdout)
        assert answers[0] == answers[1] == opened([["110", "111", "112"]])[0]
        first = answers[0]["items"][0]
        assert (first["item"], first["title"]) == ("113", "Title 13")
        assert not {"110", "111", "112"} & {one["item"] for one in answers[0]["items"]}
        command[4:6] = ["110; Titel 11", "113"]
        done = subprocess.run(command, cwd=made[precision], capture_output=True, text=True, check=False)
        assert (done.returncode, json.loads(done.stdout)[0]) == (2, None)
        assert done.stderr.strip() == (
            "error: item 1: 'Titel 11' is not one of the 30 items of the catalogue (items.json); did you mean 'Title 11'?"
        )
        assert json.loads(done.stdout)[1]["items"][0]["item"] == "114"  # the other is answered


def test_quantized_candidates_are_judged_by_each_history(trained, data):
    metadata = checkpoint.inspect(resolve(str(trained)))
    rows = load_data(str(data), TASK, metadata)
    assert [len(rows.split(name)) for name in ("train", "validation", "test")] == [USERS] * 3
    assert len(rows.split("test")[0]["items"]) == len(rows.split("train")[0]["items"]) + 1
    items = TASK.items(rows.split("test"), metadata)
    artifact = plugins.find("runtimes", "torch").build(metadata, {"dtype": "fp32"}, metadata.folder)
    runner = plugins.find("runtimes", "torch").open(artifact, 1)
    got = predict(
        runner, open_preprocessor(metadata.folder, dict(metadata.pipeline)), dict(metadata.pipeline), items, batch=4
    )
    first = TASK.scores(got, items, got, metadata)[0]
    assert first.array().shape == (USERS, 1)
    assert METRICS[first.metric].of(first.array()) > 0.9
    assert TASK.changes(got, items, got, metadata) == []
    worse = [-one for one in got]
    changes = TASK.changes(worse, items, got, metadata)
    assert len(changes) > USERS / 2
    assert changes[0].label.startswith("Title ")
    assert max(change.harm for change in changes) > 0.5


def test_bad_histories_are_one_line_each(trained, tmp_path):
    metadata = checkpoint.inspect(resolve(str(trained)))
    with pytest.raises(DataError, match=r"row 2: '999' is not one of the 30 items"):
        TASK.items([{"items": ["100"]}, {"items": ["101", "999"]}], metadata)
    catalogue = Catalogue([("1", "Hamlet"), ("2", "hamlet"), ("3", "Solaris")])
    for reported, message in (
        ([], "the history is empty"),
        ("1", "is no history; give a list of items"),
        (["Hamlet"], "the title of 2 items; say which by its id: 1, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            catalogue.numbers_of(reported)
    assert catalogue.numbers_of([1, " solaris "]) == [1, 3]
    assert read_sample("1; 2;") == ["1", "2"]
    with pytest.raises(ValueError, match="begins like a JSON list and is none"):
        read_sample("[1, 2")
    lost = tmp_path / "lost"
    lost.mkdir()
    for path in trained.iterdir():
        if path.is_file() and path.name != "items.json":
            (lost / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"items.json is missing"):
        checkpoint.inspect(resolve(str(lost)))
    (lost / "items.json").write_text('[["1", "a"]]')
    with pytest.raises(CheckpointError, match="has 1 items and the network scores 30"):
        checkpoint.inspect(resolve(str(lost)))


def test_items_that_the_catalogue_lacks_are_refused_before_training(data, tmp_path):
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "items.csv").write_text("item,title\n100,Title 0")
    with pytest.raises(DataError, match=r"items.csv has no item '10\d', which somebody took"):
        finetune.finetune("sasrec-mini", tmp_path, tmp_path / "out")
