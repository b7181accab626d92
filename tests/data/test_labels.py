"""Labels as people write them: vectors of yes and no, digits, floats, names that no model has, two classes of one name."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata, ModelSource
from fmopt.data.datasets import fitting_tasks, load_data
from fmopt.tasks.base import Unseen

TEXTS = [f"text number {number} of some" for number in range(40)]


def model(task: str, labels: list[str], **pipeline: Any) -> CheckpointMetadata:
    source = ModelSource(asked="m", folder=Path("m"), title="m")
    pipeline = {"task": task, "labels": labels, "multi_label": False, **pipeline}
    return CheckpointMetadata(source, "bert", "", task, pipeline, 8, 1, 1, 1, "d")


def items(path: Path, metadata: CheckpointMetadata) -> list[Any]:
    """Labels of all rows by their text."""
    task = plugins.find("tasks", metadata.task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_data(str(path), task, metadata)
    rows = [row for name in ("calibration", "validation", "test") for row in data.splits[name]]
    found = {
        str(row.get("text", row.get("tokens"))): item.label
        for row, item in zip(rows, task.items(rows, metadata), strict=True)
    }
    return [found[text] for text in TEXTS]


def rows_of(folder: Path, labels: list[Any], name: str = "label") -> Path:
    path = folder / "data.jsonl"
    rows = [{"text": text, name: label} for text, label in zip(TEXTS, labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", [int, float, bool])
def test_vectors_of_yes_and_no_are_the_classes_that_hold(tmp_path, kind):
    names = ["toxic", "insult", "threat"]
    vectors = [[kind(n % 2), kind(n % 3 == 0), kind(0)] for n in range(40)]
    metadata = model("text-classification", names, multi_label=True)
    wanted = [[at for at, one in enumerate(vector) if one] for vector in vectors]
    assert items(rows_of(tmp_path, vectors, "labels"), metadata) == wanted
    named = [[names[at] for at in row] for row in wanted]
    assert items(rows_of(tmp_path, named, "labels"), metadata) == wanted


def test_lists_of_ids_stay_ids(tmp_path):
    metadata = model("text-classification", ["a", "b", "c"], multi_label=True)
    ids = [[0, 1] if n % 2 else [2] for n in range(40)]
    assert items(rows_of(tmp_path, ids), metadata) == ids


def test_one_hot_vectors_of_a_model_with_one_label(tmp_path):
    vectors = [[1.0, 0.0, 0.0] if n % 2 else [0.0, 0.0, 1.0] for n in range(40)]
    assert items(rows_of(tmp_path, vectors), model("text-classification", ["a", "b", "c"])) == [
        0 if n % 2 else 2 for n in range(40)
    ]


@pytest.mark.parametrize("write", [int, float, str, lambda n: f"{n}.0"])
def test_classes_called_by_digits_are_found_by_their_names(tmp_path, write):
    stars = ["1", "2", "3", "4", "5"]
    got = items(rows_of(tmp_path, [write(n % 5 + 1) for n in range(40)]), model("text-classification", stars))
    assert got == [n % 5 for n in range(40)]
    by_id = items(rows_of(tmp_path, [write(n % 5) for n in range(40)]), model("text-classification", stars))
    assert by_id == [n % 5 for n in range(40)]  # there is a 0, which is no name


def test_whole_floats_of_a_csv_are_numbers(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{text},{n % 3}.0\n" for n, text in enumerate(TEXTS)))
    assert items(path, model("text-classification", ["a", "b", "c"])) == [n % 3 for n in range(40)]


def test_a_name_that_two_classes_have_is_refused_and_their_numbers_are_not(tmp_path):
    metadata = model("text-classification", ["crane", "heron", "crane"])
    with pytest.raises(DataError, match="'crane', which 2 classes of the model are called \\(0, 2\\)"):
        items(rows_of(tmp_path, ["crane", "heron"] * 20), metadata)
    assert items(rows_of(tmp_path, [0, 2] * 20), metadata) == [0, 2] * 20


def test_names_that_differ_in_case_alone_are_found_as_they_are_written(tmp_path):
    assert items(rows_of(tmp_path, ["us", "US"] * 20), model("text-classification", ["US", "us"])) == [1, 0] * 20


# ------------------------------------------------------------------------------------------------ labels no model knows


def test_rare_labels_that_the_model_lacks_are_judged_as_missed_and_said(tmp_path):
    metadata = model("text-classification", ["flight", "fare"])
    path = rows_of(tmp_path, ["day name", "airfare", *["flight", "fare"] * 19])
    task = plugins.find("tasks", metadata.task)
    with pytest.warns(
        UserWarning, match=r"2 labels of the data are of 2 that the model does not have \(day name, airfare\)"
    ):
        data = load_data(str(path), task, metadata)
    assert any("counted as missed" in note for note in data.notes)
    got = items(path, metadata)
    assert got[:4] == ["day name", "airfare", 0, 1]
    assert isinstance(got[0], Unseen)
    import numpy as np

    every = task.items([{"text": "a", "label": Unseen("day name")}, {"text": "b", "label": "fare"}], metadata)
    logits = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    accuracy, f1 = task.scores(logits, every, None, metadata)
    assert accuracy.values == [[0.0], [1.0]]
    assert f1.values[0][0] not in (0.0, 1.0)  # a class of its own
    (change,) = task.changes([logits[1], logits[1]], every, logits, metadata)
    assert change.label == "day name"


def test_tags_that_the_model_lacks_count_as_missed_entities(tmp_path):
    metadata = model("token-classification", ["O", "B-city", "I-city", "B-flight_number"])
    task = plugins.find("tasks", metadata.task)
    rows = [{"tokens": ["to", "new", "york", f"no{n}"], "tags": ["O", "B-city", "I-city", "O"]} for n in range(30)]
    rows.append({"tokens": ["flight", "4", "7"], "tags": ["O", "B-flight_number", "I-flight_number"]})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="I-flight_number"):
        load_data(str(path), task, metadata)
    import numpy as np

    (item,) = task.items([{"tokens": ["flight", "4", "7"], "tags": [0, 3, Unseen("I-flight_number")]}], metadata)
    (score,) = task.scores([np.eye(4)[[0, 3, 0]]], [item], None, metadata)
    assert score.values == [[0.0, 1.0, 1.0]]  # "4" alone is not "4 7"


def test_another_models_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="which the model does not know"):
        items(rows_of(tmp_path, ["good", "bad"] * 20), model("text-classification", ["flight", "fare"]))


def test_questions_without_answer_are_counted(tmp_path):
    metadata = model("question-answering", [])
    task = plugins.find("tasks", "question-answering")
    rows = [{"question": "q", "context": text, "answers": {"text": ["of"] if n % 4 else [], "answer_start": [0] if n % 4 else []}}
            for n, text in enumerate(TEXTS)]  # fmt: skip
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match='10 of 40 questions have no answer.*"no_answer": true'):
        load_data(str(path), task, metadata)


# ------------------------------------------------------------------------------------------------ files


def test_spreadsheets_text_gzip_and_save_to_disk(tmp_path):
    import datasets

    table = "text,label\n" + "".join(f"{text},{n % 3}\n" for n, text in enumerate(TEXTS))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "b.csv").write_bytes(table.encode("utf-16"))
    (tmp_path / "c.tsv").write_bytes(table.replace(",", "\t").encode("utf-16"))
    lines = "\n".join(json.dumps({"text": text, "label": n % 3}) for n, text in enumerate(TEXTS))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    datasets.Dataset.from_dict({"text": TEXTS, "label": [n % 3 for n in range(40)]}).save_to_disk(str(tmp_path / "e"))
    metadata = model("text-classification", ["a", "b", "c"])
    for name in ("a.csv.gz", "b.csv", "c.tsv", "d.jsonl.gz", "e"):
        assert items(tmp_path / name, metadata) == [n % 3 for n in range(40)], name
    both = {split: datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 20}) for split in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "f"))
    for split, part in both.items():
        part.save_to_disk(str(tmp_path / "g" / split))
    (tmp_path / "h").mkdir()
    (tmp_path / "f").rename(tmp_path / "h" / "reviews")
    for name in (
        "h/reviews",
        "g",
        "h",
    ):  # with its splits, each of them beside the other, and in a folder of another name
        data = load_data(str(tmp_path / name), plugins.find("tasks", metadata.task), metadata)
        assert len(data.split("test")) == 40


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label,text\none,0,two\n"),
        ("a.tsv", "text\tlabel\ttext\none\t0\ttwo\n"),
        ("a.jsonl", '{"text": "one", "label": 0, "text": "two"}\n'),
        ("a.json", '[{"text": "one", "label": 0, "text": "two"}]'),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"'text'.*rename one"):
        items(tmp_path / name, model("text-classification", ["a", "b"]))


def test_lines_end_at_line_feeds_alone(tmp_path):
    from fmopt.cli.parsing import read_lines

    path = tmp_path / "texts.txt"
    path.write_bytes("one\u2028still one\x0bstill\x1d one\r\ntwo\u0085still two\n".encode())
    assert read_lines(path) == ["one\u2028still one\x0bstill\x1d one", "two\u0085still two"]


# ------------------------------------------------------------------------------------------------ what data is for


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"text": "a", "label": 1}, ["text-classification"]),
        ({"text": "a", "label": "good"}, ["text-classification"]),
        ({"sentence1": "a", "sentence2": "b", "label": 2.5}, ["text-regression"]),
        ({"tokens": ["a"], "ner_tags": ["O"]}, ["token-classification"]),
        ({"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}}, ["question-answering"]),
        ({"text": "a", "note": "b"}, []),
    ],
)
def test_columns_tell_the_task(tmp_path, row, wanted):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(row)] * 4))
    assert fitting_tasks(str(path), "text", {}) == wanted
