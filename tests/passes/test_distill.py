"""Distillation: what pruning cost comes back, the same seed gives the same weights, and a kill changes nothing."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from fmopt.core import plugins
from fmopt.core.errors import ConfigError, PassError
from fmopt.core.progress import Silent
from fmopt.core.stages.store import Store
from fmopt.edge.embedding import pool
from fmopt.edge.text import Preprocessor
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.distill import Distill
from fmopt.passes.distillation import teacher_cache, trainer
from fmopt.passes.distillation.objective import inputs_and_labels
from fmopt.training.collation import Collator
from fmopt.training.examples import IGNORED
from fmopt.workflow.search.builder import Builder
from tests.conftest import tiny_config
from tests.torch_models import model_of, outputs_of, target
from tests.training.test_finetune import ROWS, texts

FAST = {"epochs": 10.0, "batch_size": 8, "learning_rate": 2e-3, "bf16": False}
AGREE = {"sentence-embedding": {}}  # else without labels: the random teacher contradicts them
PAIRS = [{"text": text, "text_pair": other} for text, other in zip(texts(60, 0), texts(60, 1), strict=True)]


@pytest.fixture(autouse=True)
def free_disk(monkeypatch: pytest.MonkeyPatch):
    """A disk that costs nothing: what the teacher says is kept, however busy this machine is."""
    monkeypatch.setattr(teacher_cache, "LOOKUP_S", 0.0)
    monkeypatch.setattr(teacher_cache, "DISK_BYTES_PER_S", float("inf"))


def rows_of(model: TorchModel, count: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """Train rows with labels that the tiny checkpoint knows."""
    if model.metadata.task == "sentence-embedding":
        return PAIRS[:12] if seed else PAIRS[12:]
    rows = ROWS[model.metadata.task](count, seed)
    if model.metadata.task == "text-classification":
        return [{**row, "label": "positive" if row["label"] == "good" else "negative"} for row in rows]
    return rows


def context(model: TorchModel, scratch: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Context:
    """What a recipe's passes are given, by the builder itself."""
    preprocessor = Preprocessor(checkpoint.tokenizer_file(model.metadata), dict(model.metadata.pipeline))
    builder = Builder(
        metadata=model.metadata, target=target(), store=Store(scratch), preprocessor=preprocessor, calibration=[],
        calibration_digest="", seed=0, memory_cap_bytes=1 << 30, progress=Silent(),
        train=rows_of(model) if rows is None else rows,
    )  # fmt: skip
    return replace(builder.pass_context(), **changes)


def teacher_of(make: Any, family: str, task: str, tmp_path: Path) -> Path:
    """A tiny checkpoint whose outputs differ from text to text: its random weights are made larger."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "teacher"
    if not folder.exists():
        shutil.copytree(make(family, task), folder)
        weights = load_file(folder / "model.safetensors")
        larger = {name: w * 6 if w.ndim == 2 and "embedding" not in name else w for name, w in weights.items()}
        save_file(larger, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def damaged(folder: Path, task: str | None = None) -> TorchModel:
    """A student: the network of `folder` with every FFN silenced."""
    model = model_of(folder, task)
    with torch.no_grad():
        for layer in model.family.layers(model.net):
            narrow = model.net.get_submodule(layer.ffn.narrow)
            narrow.weight[:] = 0
    return model


def distance(model: TorchModel, teacher: TorchModel, tmp_path: Path) -> float:
    """How far the student's answers are from the teacher's on texts that train neither.

    Distributions: total variation, 0 to 1. Vectors: 1 − cosine. Numbers: mean difference by the teacher's spread.
    """
    rows = rows_of(model, 16, seed=7)
    examples = context(model, tmp_path, rows).examples()
    batch = Collator(dict(model.metadata.pipeline["padding"]))(examples)
    inputs = {name: value.numpy() for name, value in batch.items() if name in model.metadata.pipeline["inputs"]}
    mask = inputs["attention_mask"].astype(bool)
    got, wanted = (outputs_of(part, inputs) for part in (model, teacher))
    if model.metadata.task == "sentence-embedding":
        got, wanted = (pool(x, inputs["attention_mask"], "mean", True) for x in (got, wanted))
        return float((1 - (got * wanted).sum(axis=1)).mean())
    if model.metadata.task == "text-regression":
        return float(np.abs(got - wanted).mean() / wanted.std())
    if model.metadata.task == "fill-mask":  # where a token is to be found
        mask = batch["labels"].numpy() != IGNORED
    if model.metadata.task == "question-answering":
        got, wanted = (np.where(mask, logits, -1e4) for logits in (got, wanted))
    shares = [softmax(logits, axis=-1) for logits in (got, wanted)]
    apart = np.abs(shares[0] - shares[1]).sum(axis=-1) / 2
    return float(apart[mask].mean() if apart.shape == mask.shape else apart.mean())


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "text-classification"), ("distilbert", "text-regression"), ("roberta", "token-classification"),
     ("modernbert", "question-answering"), ("mpnet", "sentence-embedding"), ("bert", "fill-mask")],
)  # fmt: skip
def test_a_student_comes_nearer_to_its_teacher(tiny_checkpoint, tmp_path, family, task):
    folder = teacher_of(tiny_checkpoint, family, task, tmp_path)
    teacher = model_of(folder, task)
    student = damaged(folder, task)
    before = distance(student, teacher, tmp_path)
    done = Distill(**FAST, weights=AGREE.get(task, {"task": 0.0})).apply(student, context(student, tmp_path / "work"))
    record = json.loads(next((tmp_path / "work").glob("distill-*/distill.json")).read_text())
    first, last = record["losses"][0][1], record["losses"][-1][1]
    assert last < 0.8 * first
    assert distance(done, teacher, tmp_path) < 0.5 * before
    assert done.history == ("distill(baseline)",)
    assert record["layers"] == [[0, 0], [1, 1]]


def trained(folder: Path, work: Path, **options: Any) -> dict[str, torch.Tensor]:
    student = damaged(folder)
    changes = {"progress": options.pop("progress")} if "progress" in options else {}
    done = Distill(**{**FAST, **options}).apply(student, context(student, work, **changes))
    return {name: tensor.clone() for name, tensor in done.net.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tiny_checkpoint, tmp_path, monkeypatch):
    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    whole = trained(folder, tmp_path / "whole", save_minutes=0.0, accumulation=2)
    assert same(whole, trained(folder, tmp_path / "again", accumulation=2))

    from fmopt.passes.distillation import trainer

    steps = []

    def interrupted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        if len(steps) == 8:  # in the third epoch of 3 steps
            raise KeyboardInterrupt
        control.should_save = state.global_step == 5

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Watch, "on_step_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(folder, tmp_path / "cut", accumulation=2)
    work = next((tmp_path / "cut").glob("distill-*"))
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-5"]
    said: list[str] = []
    assert same(whole, trained(folder, tmp_path / "cut", accumulation=2, progress=said.append))
    assert "distilling: 30 steps, going on at step 5" in said
    assert len(list((tmp_path / "cut").glob("teacher-*/*.safetensors"))) == 1  # the same teacher's, found again
    assert not list(work.glob("checkpoint-*"))
    said.clear()
    assert same(whole, trained(folder, tmp_path / "cut", accumulation=2, progress=said.append))
    assert said == []  # finished is finished


@pytest.mark.parametrize(
    ("family", "task", "weights"),
    [("bert", "text-classification", {"relations": 0.5}), ("distilbert", "text-regression", {}),
     ("roberta", "token-classification", {}), ("bert", "question-answering", {}), ("mpnet", "sentence-embedding", {})],
)  # fmt: skip
def test_what_is_kept_teaches_as_the_teacher_does(tiny_checkpoint, tmp_path, monkeypatch, family, task, weights):
    folder = teacher_of(tiny_checkpoint, family, task, tmp_path)
    monkeypatch.setattr(teacher_cache, "SHARD_TOKENS", 100)
    courses, options = [], {"epochs": 3.0, "accumulation": 2, "weights": weights}
    for cache_gb in (0.0, 1.0):
        work = tmp_path / str(cache_gb)
        trained(folder, work, cache_gb=cache_gb, **options)
        assert bool(list(work.glob("teacher-*/*.safetensors"))) == bool(cache_gb)
        record = json.loads(next(work.glob("distill-*/distill.json")).read_text())
        courses.append([loss for _, loss in record["losses"]])
    asked, kept = courses
    assert len(asked) >= 6
    assert asked[-1] < asked[0]
    np.testing.assert_allclose(kept, asked, rtol=2e-3)


def test_a_narrower_student_learns_by_relations(tiny_checkpoint, tmp_path):
    import transformers

    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    narrow = shutil.copytree(folder, tmp_path / "narrow")
    config = tiny_config("bert", tokenizer, "text-classification")
    config.update({"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1})
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(narrow)
    student = model_of(narrow)
    ctx = context(student, tmp_path / "work")
    Distill(**FAST, teacher=str(folder)).apply(student, ctx)
    record = json.loads(next((tmp_path / "work").glob("distill-*/distill.json")).read_text())
    assert record["weights"] == {"task": 0.2, "logits": 1.0, "hidden": 0.0, "relations": 1.0}
    assert record["layers"] == [[0, 1]]
    assert record["losses"][-1][1] < 0.9 * record["losses"][0][1]
    projected = Distill(**FAST, teacher=str(folder), weights={"hidden": 1, "relations": 0})
    assert projected.apply(model_of(narrow), ctx).history == (f"distill({folder})",)


def test_texts_without_labels_teach_too(tiny_checkpoint, tmp_path):
    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    teacher = model_of(folder)
    (tmp_path / "more.txt").write_text("\n".join(texts(48, 3)) + "\n\nfirst text\tsecond text\n")
    student = damaged(folder)
    before = distance(student, teacher, tmp_path)
    options = Distill(**FAST, unlabelled=str(tmp_path / "more.txt"))
    assert (
        distance(options.apply(student, context(student, tmp_path / "work", rows=[])), teacher, tmp_path) < 0.7 * before
    )


def test_time_ends_it_early(tiny_checkpoint, tmp_path):
    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    trained(folder, tmp_path / "work", time_limit_s=0.0)
    record = json.loads(next((tmp_path / "work").glob("distill-*/distill.json")).read_text())
    assert (record["steps"], record["stopped"]) == (1, "time limit")


def test_what_does_not_fit_is_refused(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint("bert", "text-classification")
    student = model_of(folder)
    with pytest.raises(PassError, match="no texts to train on"):
        Distill().apply(student, context(student, tmp_path, rows=[]))
    other = tiny_checkpoint("roberta", "text-classification")
    with pytest.raises(PassError, match="has another vocabulary than the student"):
        Distill(teacher=str(other)).apply(student, context(student, tmp_path))
    with pytest.raises(PassError, match="text-classification has no loss 'cosine'; it has task, logits"):
        Distill(weights={"cosine": 1.0}).apply(student, context(student, tmp_path))
    with pytest.raises(PassError, match=r"the unlabelled texts .* cannot be read"):
        Distill(unlabelled="nowhere.txt").apply(student, context(student, tmp_path))
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        Distill(weights={"hiden": 1.0})
    with pytest.raises(ConfigError, match="epochs is 0"):
        Distill(epochs=0)
    with pytest.raises(ConfigError, match=r"dropout is 1.0; it is 0 \(nothing is left out\) or more, and below 1"):
        Distill(dropout=1.0)


@pytest.mark.parametrize(
    ("family", "task", "asked", "trained_with"),
    [("mpnet", "sentence-embedding", None, {0.0}), ("bert", "sentence-embedding", 0.2, {0.2}),
     ("distilbert", "text-classification", 0.0, {0.0}), ("bert", "text-classification", None, {0.1})],
)  # fmt: skip
def test_values_are_left_out_as_asked_and_for_vectors_none(
    tiny_checkpoint, tmp_path, monkeypatch, family, task, asked, trained_with
):
    def shares(net: Any) -> set[float]:
        return {part.p for part in net.modules() if isinstance(part, torch.nn.Dropout)}

    seen: set[float] = set()
    step = trainer._Trainer.training_step

    def watched(self, model, inputs, *args, **kwargs):
        seen.update(shares(self.objective.student.net))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        learner, _ = inputs_and_labels(dict(inputs), self.objective.pipeline)
        learner.pop(trainer.KEPT, None)
        first, second = (model.train()(learner)["outputs"][0] for _ in range(2))
        assert torch.equal(first, second) == (trained_with == {0.0})
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer._Trainer, "training_step", watched)
    student = model_of(teacher_of(tiny_checkpoint, family, task, tmp_path), task)
    before = shares(student.net)
    taught = Distill(**FAST | {"epochs": 1.0}, dropout=asked).apply(student, context(student, tmp_path / "work"))
    assert (seen, shares(taught.net)) == (trained_with, before)


def test_multi_label_examples_are_yes_or_no_for_every_class(tiny_checkpoint, tmp_path):
    model = model_of(tiny_checkpoint("bert", "text-classification"))
    metadata = replace(model.metadata, pipeline={**model.metadata.pipeline, "multi_label": True})
    rows = [{"text": "a", "label": ["negative", "positive"]}, {"text": "b", "label": None}]
    found = context(replace(model, metadata=metadata), tmp_path, rows=rows).examples()
    assert found[0]["labels"].tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(found[1]["labels"]).all()


def test_it_is_found_by_its_name():
    assert plugins.find("passes", "distill") is Distill


def test_a_deadline_leaves_a_training_that_goes_on(tiny_checkpoint, tmp_path):
    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    undisturbed = trained(folder, tmp_path / "one")
    student = damaged(folder)
    late = context(student, tmp_path / "two", deadline=time.monotonic())
    with pytest.raises(PassError, match=r"step 1 of .* goes on from there"):
        Distill(**FAST).apply(student, late)
    assert list((tmp_path / "two").glob("distill-*/checkpoint-1"))
    assert same(trained(folder, tmp_path / "two"), undisturbed)
