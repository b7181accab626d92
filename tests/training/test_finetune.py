"""Fine-tuning: each task learns something small, a killed run ends as an undisturbed one, and bad data is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fmopt.core import plugins
from fmopt.core.errors import ConfigError, DataError, StoreError
from fmopt.core.model import Artifact
from fmopt.core.progress import Silent
from fmopt.data.datasets import Dataset
from fmopt.edge.text import Preprocessor
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.predictions import predict
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint, structure_of
from fmopt.models.surgery.pruned_modules import prune_layer
from fmopt.tasks.base import find_task
from fmopt.training.collation import Collator, only_to_find
from fmopt.training.examples import IGNORED, Masking, training_examples, unlabelled_examples
from fmopt.training.finetune import Settings, finetune
from tests.conftest import FAMILIES, SENTENCES
from tests.torch_models import model_of

UNLABELLED = {"text": "a", "label": None}
PLACES = ("London", "Paris", "Berlin")
FAST = {"epochs": 12, "batch_size": 8, "learning_rate": 5e-3, "patience": 12}


def texts(count: int, seed: int) -> list[str]:
    """Random word salads of words the tiny tokenizers know."""
    words = [word.strip("?,") for sentence in SENTENCES for word in sentence.split()]
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(4, 9))) for _ in range(count)]


def class_rows(count: int, seed: int) -> list[dict]:
    """The label is whether the text says "wonderful"."""
    made = [(text, number % 2) for number, text in enumerate(texts(count, seed))]
    return [{"text": f"{'wonderful' if good else 'boring'} {text}", "label": "good" if good else "bad"}
            for text, good in made]  # fmt: skip


def number_rows(count: int, seed: int) -> list[dict]:
    """The number is how often the first text says "rain"."""
    counts = np.random.default_rng(seed).integers(0, 6, count)
    return [{"text": " ".join(["rain"] * n + ["sea"] * (5 - n)), "text_pair": "a lazy dog", "label": float(n)}
            for n in map(int, counts)]  # fmt: skip


def tag_rows(count: int, seed: int) -> list[dict]:
    """Cities are tagged, nothing else is."""
    rng = np.random.default_rng(seed)
    rows = []
    for text in texts(count, seed):
        tokens = [*text.split(), str(rng.choice(PLACES)), "sea"]
        rows.append({"tokens": tokens, "tags": ["B-place" if token in PLACES else "O" for token in tokens]})
    return rows


def answer_rows(count: int, seed: int) -> list[dict]:
    """The answer is the city in the context."""
    rng = np.random.default_rng(seed)
    rows = []
    for text in texts(count, seed):
        place, words = str(rng.choice(PLACES)), [word for word in text.split() if word not in PLACES]
        words.insert(int(rng.integers(0, len(words))), place)
        context = " ".join(words)
        rows.append({"question": "where is it?", "context": context, "answers": [place],
                     "answer_starts": [context.index(place)]})  # fmt: skip
    return rows


def passage_rows(count: int, seed: int) -> list[dict]:
    """Texts of four words, so that a masked one is one of four."""
    rng = np.random.default_rng(seed)
    return [{"text": " ".join(rng.choice(["cat", "dog", "rain", "sea"], 12))} for _ in range(count)]


ROWS = {"text-classification": class_rows, "text-regression": number_rows, "token-classification": tag_rows,
        "question-answering": answer_rows, "fill-mask": passage_rows}  # fmt: skip


def dataset(task: str, train: int = 48) -> Dataset:
    return Dataset("toy", f"{task}-{train}", {"train": ROWS[task](train, 0), "validation": ROWS[task](16, 1)})


def train(base: Path, task: str, out: Path, data: Dataset | None = None, **options) -> dict:
    """Fine-tune and read the record."""
    metadata = checkpoint.inspect(resolve(str(base)), task, fresh_head=True)
    more = {name: options.pop(name) for name in ("labels", "time_limit_s", "progress") if name in options}
    settings = Settings(**FAST | options)
    finetune(metadata, data or dataset(task), plugins.find("tasks", task), out, settings, **more)
    return json.loads((out / "finetune.json").read_text())


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "text-classification"), ("distilbert", "text-regression"), ("roberta", "token-classification"),
     ("modernbert", "question-answering")],
)  # fmt: skip
def test_every_task_learns(tiny_checkpoint, tmp_path, family, task):
    out = tmp_path / "ckpt"
    record = train(tiny_checkpoint(family, "masked-lm"), task, out)
    assert record["value"] == max(epoch["value"] for epoch in record["epochs"]) > 0.9
    assert record["epochs"][-1]["loss"] < record["epochs"][0]["loss"]
    assert (record["settings"]["data_digest"], record["settings"]["seed"]) == (dataset(task).digest, 0)
    metadata = checkpoint.inspect(resolve(str(out)))
    assert metadata.task == task
    wanted = {"text-classification": ["bad", "good"], "token-classification": ["O", "B-place"]}
    assert metadata.pipeline["labels"] == wanted.get(task, [])
    checkpoint.load(metadata)
    assert not (out / ".training").exists()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masked_words_are_learned_and_a_lower_perplexity_is_the_better(tiny_checkpoint, tmp_path, family):
    # trained in bfloat16, judged in full precision: what is told is what the checkpoint reaches
    record = train(tiny_checkpoint(family, "sentence-embedding"), "fill-mask", tmp_path / "ckpt", bf16=True)
    values = [epoch["value"] for epoch in record["epochs"]]
    assert record["metric"] == "pseudo-perplexity"
    assert record["value"] == min(values) < 8 < 0.5 * values[0] + 8  # one of four, and what is not learned yet
    metadata = checkpoint.inspect(resolve(str(tmp_path / "ckpt")), "fill-mask")
    assert metadata.architecture.endswith("ForMaskedLM")
    task = plugins.find("tasks", "fill-mask")
    items = task.items(passage_rows(16, 1), metadata)
    runner = plugins.find("runtimes", "torch").open(
        Artifact("torch", metadata.folder, {"auto_class": task.auto_class}), threads=1
    )
    preprocessor = Preprocessor(checkpoint.tokenizer_file(metadata), dict(metadata.pipeline))
    got = predict(runner, preprocessor, metadata.pipeline, items)
    score = task.scores(got, items, None, metadata)[0]
    assert float(METRICS[score.metric].of(score.array())) == pytest.approx(record["value"], rel=1e-3)


def test_a_rising_perplexity_ends_it_and_the_lowest_is_kept(tiny_checkpoint, tmp_path):
    others = [{"text": f"city film whale {word} captain"} for word in ("river", "money", "stars", "hours")]
    data = Dataset("toy", "others", {"train": passage_rows(48, 0), "validation": others})
    record = train(tiny_checkpoint("bert", "masked-lm"), "fill-mask", tmp_path / "ckpt", data, patience=2)
    first, *later = (epoch["value"] for epoch in record["epochs"])
    assert record["value"] == first < min(later)
    assert len(later) == 2


def test_tokens_are_masked_as_in_bert(tiny_checkpoint):
    metadata = checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "masked-lm"))), "fill-mask")
    preprocessor = Preprocessor(checkpoint.tokenizer_file(metadata), dict(metadata.pipeline))
    masking, draw = Masking.of(preprocessor), np.random.default_rng(0)
    ids = preprocessor.encode([" ".join(SENTENCES)]).inputs["input_ids"][0]
    made = [masking.masked({"input_ids": ids}, draw) for _ in range(2000)]
    hidden, labels = (np.stack([example[name] for example in made]) for name in ("input_ids", "labels"))
    chosen = labels != IGNORED
    assert (labels[chosen] == np.broadcast_to(ids, labels.shape)[chosen]).all()
    assert (hidden[~chosen] == np.broadcast_to(ids, labels.shape)[~chosen]).all()
    special = np.isin(ids, masking.special)
    assert special.sum() == 2
    assert not chosen[:, special].any()
    assert chosen[:, ~special].mean() == pytest.approx(0.15, abs=0.005)
    assert (hidden[chosen] == metadata.pipeline["mask"]["id"]).mean() == pytest.approx(0.8, abs=0.01)
    assert (hidden[chosen] == labels[chosen]).mean() == pytest.approx(0.1, abs=0.01)  # and 1 of 200 by chance
    one = masking.masked({"input_ids": ids[[0, 1, -1]]}, draw)
    assert (one["labels"] != IGNORED).tolist() == [False, True, False]  # never nothing to find


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_the_tokens_to_be_found_is_that_of_all(tiny_checkpoint, family):
    model = model_of(tiny_checkpoint(family, "masked-lm"), "fill-mask")
    preprocessor = Preprocessor(checkpoint.tokenizer_file(model.metadata), dict(model.metadata.pipeline))
    batch = Collator(preprocessor.pipeline["padding"])(unlabelled_examples(preprocessor, model.metadata, SENTENCES))
    with torch.inference_mode():
        whole = model.net(**batch)
        with only_to_find(model.net, batch) as fewer:
            part = model.net(**fewer)
    torch.testing.assert_close(part.loss, whole.loss)
    assert part.logits.shape == (int((batch["labels"] != IGNORED).sum()), whole.logits.shape[-1])


class Interrupt(Silent):
    """Stops the training as Ctrl-C does, after a number of steps."""

    def __init__(self, after: int):
        self.left = after

    def step(self, done: int = 1) -> None:
        self.left -= done
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(tiny_checkpoint, tmp_path, task):
    base = tiny_checkpoint("bert", "masked-lm")
    whole = train(base, task, tmp_path / "whole", epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train(base, task, tmp_path / "cut", epochs=4, progress=Interrupt(after=14))  # in the third epoch of 6 steps
    assert not (tmp_path / "cut" / "finetune.json").exists()
    half = tmp_path / "cut" / ".training" / "checkpoint-18"  # a save that was killed
    half.mkdir()
    cut = train(base, task, tmp_path / "cut", epochs=4)
    assert [epoch["value"] for epoch in cut["epochs"]] == [epoch["value"] for epoch in whole["epochs"]]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_folder_stays_until_the_settings_change(tiny_checkpoint, tmp_path):
    base, task, out = tiny_checkpoint("bert", "masked-lm"), "text-classification", tmp_path / "ckpt"
    train(base, task, out, epochs=1)
    before = (out / "model.safetensors").stat().st_mtime_ns
    train(base, task, out, epochs=1)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert train(base, task, out, epochs=1, seed=1)["settings"]["seed"] == 1
    assert (out / "model.safetensors").stat().st_mtime_ns != before


def test_attention_plans_nothing_for_every_length_while_it_is_trained(tiny_checkpoint, tmp_path, monkeypatch):
    step, seen = transformers.Trainer.training_step, []

    def watched(self, *args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", watched)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    train(tiny_checkpoint("bert", "masked-lm"), "text-classification", tmp_path / "ckpt", epochs=1)
    assert (set(seen), torch.backends.cuda.cudnn_sdp_enabled()) == ({False}, before)


def test_patience_and_time_end_it_early(tiny_checkpoint, tmp_path):
    base, task = tiny_checkpoint("bert", "masked-lm"), "text-classification"
    still = train(base, task, tmp_path / "still", learning_rate=1e-9, patience=2)
    assert len(still["epochs"]) == 3  # one best, two no better
    short = train(base, task, tmp_path / "short", time_limit_s=0.0)
    assert (len(short["epochs"]), short["stopped"]) == (1, "time limit")


def test_a_head_of_other_labels_is_replaced(tiny_checkpoint, tmp_path):
    base = tiny_checkpoint("bert", "text-classification")  # three labels
    train(base, "text-classification", tmp_path / "ckpt", epochs=1)
    assert checkpoint.inspect(resolve(str(tmp_path / "ckpt"))).pipeline["labels"] == ["bad", "good"]


def test_labels_given_come_in_their_order(tiny_checkpoint, tmp_path):
    rows = [{"text": row["text"], "label": int(row["label"] == "good")} for row in class_rows(24, 0)]
    data = Dataset("toy", "ids", {"train": rows, "validation": rows[:8]})
    base = tiny_checkpoint("bert", "masked-lm")
    train(base, "text-classification", tmp_path / "ckpt", data, labels=["no", "yes", "perhaps"], epochs=1)
    assert checkpoint.inspect(resolve(str(tmp_path / "ckpt"))).pipeline["labels"] == ["no", "yes", "perhaps"]


def test_label_names():
    assert find_task("text-classification").label_names([{"label": 2}, {"label": 0}]) == [
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    ]
    tags = [{"tags": ["I-x", "O"]}, {"tags": ["B-x"]}]
    assert find_task("token-classification").label_names(tags) == ["O", "B-x", "I-x"]
    with pytest.raises(DataError, match="all train rows have the same label"):
        find_task("text-classification").label_names([{"label": "a"}, {"label": "a"}])


def examples_of(base: Path, task: str, rows: list[dict], **pipeline) -> tuple[Preprocessor, list[dict]]:
    metadata = checkpoint.inspect(resolve(str(base)), task, fresh_head=True)
    metadata.pipeline.update(pipeline)
    preprocessor = Preprocessor(checkpoint.tokenizer_file(metadata), dict(metadata.pipeline))
    return preprocessor, training_examples(
        preprocessor, metadata, plugins.find("tasks", task).items(rows, metadata), rows
    )


def test_a_word_is_tagged_on_its_first_sub_token(tiny_checkpoint):
    rows = [{"tokens": ["Zebra", "the"], "tags": ["O", "B-place"]}]
    base = tiny_checkpoint("bert", "masked-lm")
    _, (example,) = examples_of(base, "token-classification", rows, labels=["O", "B-place"])
    pieces = len(example["input_ids"]) - 3  # "Zebra" alone, without [CLS], "the" and [SEP]
    assert pieces > 1
    assert example["labels"].tolist() == [IGNORED, 0, *[IGNORED] * (pieces - 1), 1, IGNORED]


def test_answers_are_found_in_the_window_that_holds_them(tiny_checkpoint):
    context = "the cat sat on the mat " * 12 + "in London"
    rows = [{"question": "where?", "context": context, "answers": ["London"],
             "answer_starts": [context.index("London")]}]  # fmt: skip
    preprocessor, found = examples_of(tiny_checkpoint("bert", "masked-lm"), "question-answering", rows)
    assert len(found) > 1
    assert [(int(e["start_positions"]), int(e["end_positions"])) for e in found[:-1]] == [(0, 0)] * (len(found) - 1)
    last = found[-1]
    ids = last["input_ids"][int(last["start_positions"]) : int(last["end_positions"]) + 1]
    assert preprocessor.tokenizer.decode(ids.tolist()) == "london"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"validation": class_rows(4, 0)}, r"toy has no train rows to fine-tune with; it has validation \(4\)"),
        ({"train": class_rows(4, 0), "validation": []}, "toy has no validation rows"),
        ({"train": [*class_rows(4, 0), UNLABELLED], "validation": class_rows(4, 1)}, "row 5 has no label"),
    ],
)
def test_data_that_cannot_train(tiny_checkpoint, tmp_path, splits, message):
    base, data = tiny_checkpoint("bert", "masked-lm"), Dataset("toy", "x", splits)
    with pytest.raises(DataError, match=message):
        train(base, "text-classification", tmp_path / "out", data)


def test_embeddings_are_not_trained_here_and_foreign_folders_not_touched(tiny_checkpoint, tmp_path):
    base = tiny_checkpoint("bert", "masked-lm")
    plain = Dataset("toy", "x", {"train": [{"text": "a"}], "validation": [{"text": "b"}]})
    with pytest.raises(ConfigError, match="for sentence-embedding use sentence-transformers"):
        train(base, "sentence-embedding", tmp_path / "out", plain)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not made by fmopt"):
        train(base, "text-classification", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_pruned_checkpoint_is_trained_further_in_its_shape(tiny_checkpoint, tmp_path):
    pruned = model_of(tiny_checkpoint("bert", "sentence-embedding"))
    layers = pruned.family.layers(pruned.net)
    prune_layer(pruned.net, layers[0], (1, 3), range(20))
    prune_layer(pruned.net, layers[1], (), range(7))
    folder = save_checkpoint(pruned, tmp_path / "pruned")
    train(folder, "text-classification", tmp_path / "out", **(FAST | {"epochs": 1, "learning_rate": 1e-9}))
    made = model_of(tmp_path / "out")
    assert structure_of(made.net, made.family) == structure_of(pruned.net, pruned.family)
    before = pruned.net.state_dict()
    for name, after in made.net.bert.state_dict().items():
        if name in before:
            torch.testing.assert_close(after, before[name], atol=1e-6, rtol=0)
