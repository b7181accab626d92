"""What `import fmopt` offers: its names, and the examples in their docstrings, which run."""

from __future__ import annotations

import doctest
import inspect
import random
from pathlib import Path
from typing import Any

import pytest

import fmopt
from tests.conftest import LABELS, SENTENCES
from tests.models.test_adapters import adapted

PUBLIC = [
    "BoardError", "Budget", "BundleError", "CheckpointError", "ConfigError", "DataError", "FmoptError", "ParityError",
    "PassError", "PlanError", "Recipe", "Record", "Step", "StoreError", "Target", "Training", "UnmeasuredError", "Workload",
    "benchmark", "benchmark_matrix", "compare", "evaluate", "explain", "export", "finetune", "history", "load", "load_model",
    "merge", "optimize", "optimize_family", "plan", "trim", "verify",
]  # fmt: skip
VERBS = [name for name in PUBLIC if name[0].islower()]
VALUES = ["Budget", "Record", "Recipe", "Step", "Target", "Training", "Workload"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    return [
        {"text": " ".join(draw.choices(words, k=8)), "label": LABELS["text-classification"][number % 3]}
        for number in range(60)
    ]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_public_names() -> None:
    assert sorted(fmopt.__all__) == PUBLIC
    assert all(getattr(fmopt, name) is not None for name in PUBLIC)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_what_it_takes_gives_and_raises(name: str) -> None:
    verb = getattr(fmopt, name)
    said = inspect.getdoc(verb) or ""
    assert len(inspect.signature(verb).parameters) <= 12
    assert said
    lacking = [one for one in inspect.signature(verb).parameters if one not in said and one != "progress"]
    assert lacking == []
    assert "Return" in said or name in (
        "load_model",
        "verify",
        "evaluate",
        "export",
    )  # whose first line says what they give
    assert "Raises" in said
    assert ">>> " in said


@pytest.fixture(scope="module")
def known(tiny_checkpoint: Any, rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples take for given; `made` is what that of `optimize` leaves."""
    out = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMOPT_CACHE", str(out / "cache"))
        checkpoint = tiny_checkpoint("bert", "text-classification")
        adapted(checkpoint, out / "adapter", "bert", "text-classification")
        found = {"fmopt": fmopt, "checkpoint": checkpoint, "rows": rows, "out": out, "adapter": out / "adapter"}
        found["bundle"] = fmopt.export(checkpoint, out / "bundle")
        _run_example("optimize", found)
    return found | {"made": out / "made"}


def _run_example(name: str, known: dict[str, Any]) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(fmopt, name), name, globs=dict(known))
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert example.examples


@pytest.mark.parametrize("name", [name for name in (*VERBS, *VALUES) if name != "optimize"])  # which `known` runs
def test_the_examples_run(name: str, known: dict[str, Any], cache: Path) -> None:
    _run_example(name, known)


def test_a_live_network_is_exported_as_its_folder_is(tiny_checkpoint: Any, tmp_path: Path, cache: Path) -> None:
    import transformers

    folder = tiny_checkpoint("bert", "text-classification")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net.train()
    made = fmopt.export(net, str(tmp_path / "live"), tokenizer=tokenizer)
    assert net.training  # it stays as it was
    theirs = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    for text in SENTENCES[:3]:
        wanted = {one["label"]: one["score"] for one in theirs([text])[0]}
        assert fmopt.load(str(made))(text)["scores"] == pytest.approx(wanted, abs=1e-4)
    fmopt.export(net, tmp_path / "again", tokenizer=tokenizer)
    assert len(list((cache / "given-models").iterdir())) == 1  # the same weights are written once


def test_what_cannot_be_handed_over_is_refused(tiny_checkpoint: Any, tmp_path: Path, cache: Path) -> None:
    import torch
    import transformers

    folder = tiny_checkpoint("bert", "text-classification")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(
        fmopt.ConfigError, match=r"was given without what reads its samples; give tokenizer=… for texts"
    ):
        fmopt.export(net, tmp_path / "a")
    with pytest.raises(fmopt.ConfigError, match=r"Linear has no save_pretrained"):
        fmopt.export(torch.nn.Linear(2, 2), tmp_path / "b")
    with pytest.raises(fmopt.ConfigError, match=r"tokenizer and processor go with a live network"):
        fmopt.export(folder, tmp_path / "c", tokenizer=object())
    with pytest.raises(fmopt.DataError, match=r"data is a int; give a path"):
        fmopt.evaluate(folder, 3)
    with pytest.raises(fmopt.DataError, match=r"data is a list; give a path"):
        fmopt.evaluate(folder, [])


def test_data_may_be_rows_or_a_dataset(
    tiny_checkpoint: Any, rows: list[dict[str, str]], tmp_path: Path, cache: Path
) -> None:
    import datasets

    folder = tiny_checkpoint("bert", "text-classification")
    path = tmp_path / "rows.jsonl"
    datasets.Dataset.from_list(rows).to_json(path)
    of_file = fmopt.evaluate(str(folder), path)
    assert fmopt.evaluate(folder, rows) == of_file
    assert fmopt.evaluate(folder, datasets.Dataset.from_list(rows)) == of_file
    names = datasets.ClassLabel(names=LABELS["text-classification"])
    split = datasets.Dataset.from_list(rows[:20]).cast_column("label", names)  # numbers, named by the schema
    of_split = fmopt.evaluate(folder, datasets.DatasetDict(train=split, test=split))
    assert of_split == fmopt.evaluate(folder, datasets.DatasetDict(train=split, test=split), seed=0)
    accuracy = of_split["accuracy"]
    assert (accuracy.items, accuracy.primary) == (20, True)
    assert 0 <= accuracy.low < accuracy.point < accuracy.high <= 1
