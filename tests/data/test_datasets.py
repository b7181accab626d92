"""Which rows calibrate, select and judge; columns found and named; every fault in one line with the way out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.data.datasets import load_data
from tests.tasks.cases import metadata
from tests.vision_models import image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTIMENT = ("negative", "positive")


def load(spec, task="text-classification", labels=SENTIMENT, **options):
    return load_data(str(spec), plugins.find("tasks", task), metadata(task, labels), **options)


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count, start=0):
    return [{"text": f"text {n}", "label": n % 2} for n in range(start, start + count)]


def names(rows):
    return {row["text"] for row in rows}


# ------------------------------------------------------------------------------------------------ splits


def test_one_file_is_split_by_content(tmp_path):
    rows = texts(80) + texts(40)  # the first forty twice
    data = load(lines(tmp_path / "a.jsonl", rows))
    parts = [names(data.split(name)) for name in ("calibration", "validation", "test")]
    assert [len(part) for part in parts] == [20, 20, 40]
    assert set.union(*parts) == names(rows)
    assert sum(len(data.split(name)) for name in ("calibration", "validation", "test")) == 120
    assert data.split("train") == data.split("calibration")
    assert data.notes == (
        f"one table of 120 rows, cut by content: {len(data.split('calibration'))} calibrate, "
        f"{len(data.split('validation'))} select, {len(data.split('test'))} judge",
    )


def test_the_same_text_with_another_label_or_case_is_on_the_same_side(tmp_path):
    rows = texts(20) + [{"text": f" TEXT  {n}", "label": 1 - n % 2} for n in range(20)]
    data = load(lines(tmp_path / "a.jsonl", rows))
    assert len(data.split("test")) == 20
    parts = [{" ".join(n.lower().split()) for n in names(rows)} for rows in data.splits.values()]
    assert parts[1] & parts[2] == parts[1] & parts[3] == parts[2] & parts[3] == set()


def test_the_seed_decides_and_the_digest_says_so(tmp_path):
    path = lines(tmp_path / "a.jsonl", texts(40))
    first, again, other = load(path), load(path), load(path, seed=1)
    assert (first.splits, first.digest) == (again.splits, again.digest)
    assert first.digest != other.digest
    assert first.split("test") != other.split("test")
    assert len(first.digest) == 64


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_a_folder_with_one_split_is_one_table(split, tmp_path):
    lines(tmp_path / f"{split}.jsonl", texts(40))
    data = load(tmp_path)
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 10, "calibration": 10, "validation": 10, "test": 20,
    }  # fmt: skip


def test_a_folder_with_three_splits_keeps_them(tmp_path):
    for split, rows in {"train": texts(50), "dev": texts(20, 50), "test": texts(30, 69)}.items():
        lines(tmp_path / f"{split}.jsonl", rows)
    data = load(tmp_path)
    assert data.split("test") == texts(30, 69)  # in the order of the file
    assert names(data.split("validation")) == names(texts(20, 50))
    assert data.split("validation") != texts(20, 50)  # files are often sorted by class
    assert names(data.split("calibration")) == names(data.split("train")) == names(texts(50))
    assert data.notes == ()


def test_what_occurs_in_train_and_test_is_counted(tmp_path):
    for split, rows in {"train": texts(50), "validation": texts(9, 70), "test": texts(10, 47)}.items():
        lines(tmp_path / f"{split}.jsonl", rows)
    assert load(tmp_path).notes == ("3 of 10 test rows also occur in train",)


def test_missing_splits_are_taken_from_others(tmp_path):
    lines(tmp_path / "a" / "train.jsonl", texts(50))
    lines(tmp_path / "a" / "test.jsonl", texts(10, 50))
    data = load(tmp_path / "a")
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [45, 5, 10]
    assert not names(data.split("train")) & names(data.split("validation"))
    assert data.notes == ("selected on a tenth of train, which has no part in calibration",)

    lines(tmp_path / "b" / "train.jsonl", texts(50))
    lines(tmp_path / "b" / "validation.jsonl", texts(10, 50))
    data = load(tmp_path / "b")
    assert names(data.split("test")) == names(texts(10, 50))
    assert not names(data.split("train")) & names(data.split("validation"))
    assert data.notes[0] == "there is no test split: judged on validation"

    lines(tmp_path / "c" / "validation.jsonl", texts(40))
    lines(tmp_path / "c" / "test.jsonl", texts(10, 50))
    data = load(tmp_path / "c")
    assert (len(data.split("calibration")), len(data.split("validation"))) == (10, 30)
    assert not names(data.split("calibration")) & names(data.split("validation"))


def test_a_test_split_without_labels_does_not_judge(tmp_path):
    lines(tmp_path / "train.jsonl", texts(20))
    lines(tmp_path / "validation.jsonl", texts(10, 20))
    lines(tmp_path / "test.jsonl", [{"text": f"hidden {n}", "label": -1} for n in range(5)])
    data = load(tmp_path)
    assert names(data.split("test")) == names(texts(10, 20))
    assert data.notes[0] == "the test split has no labels and is not used"


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl has no split 'dev'; it has train, calibration, validation, test"):
        load(lines(tmp_path / "a.jsonl", texts(10))).split("dev")


# ------------------------------------------------------------------------------------------------ columns and labels


def test_columns_by_their_usual_names(tmp_path):
    rows = [{"premise": f"a {n}", "hypothesis": "b", "label": n % 2, "id": n} for n in range(8)]
    assert load(lines(tmp_path / "nli.jsonl", rows)).split("test")[0].keys() == {"text", "text_pair", "label"}
    rows = [{"question": f"a {n}", "sentence": "b", "label": 0} for n in range(8)]
    assert set(load(lines(tmp_path / "qnli.jsonl", rows)).split("test")[0].values()) > {"b", 0}
    rows = [{"Sentence": f"a {n}", "LABEL": "Positive"} for n in range(8)]
    assert load(lines(tmp_path / "sst.jsonl", rows)).split("test")[0].keys() == {"text", "label"}


def test_columns_as_the_user_names_them(tmp_path):
    rows = [{"question": f"q {n}", "answer": f"a {n}", "title": f"t {n}", "text": "no"} for n in range(8)]
    path = lines(tmp_path / "a.jsonl", rows)
    assert load(path, "sentence-embedding").split("test")[0].keys() == {"query", "document"}
    asked = load(path, "sentence-embedding", columns={"text": "title"}).split("test")
    assert asked[0].keys() == {"text"}
    assert asked[0]["text"].startswith("t ")
    swapped = load(path, "sentence-embedding", columns={"query": "answer", "document": "question"}).split("test")[0]
    assert (swapped["query"][0], swapped["document"][0]) == ("a", "q")


def test_scored_pairs_come_before_anything_else(tmp_path):
    rows = [{"sentence1": f"a {n}", "sentence2": "b", "score": n / 2, "label": 3, "text": "x"} for n in range(8)]
    got = load(lines(tmp_path / "a.jsonl", rows), "sentence-embedding").split("test")[0]
    assert got.keys() == {"sentence1", "sentence2", "score"}


def test_label_ids_go_by_the_names_that_the_data_gives_them(tmp_path):
    lines(tmp_path / "test.jsonl", texts(8))
    (tmp_path / "labels.json").write_text('["positive", "Negative"]')  # the model counts the other way round
    data = load(tmp_path)
    task = plugins.find("tasks", "text-classification")
    wanted = {f"text {n}": 1 - n % 2 for n in range(8)}
    for item in task.items(data.split("test"), metadata("text-classification", SENTIMENT)):
        assert item.label == wanted[item.sample]
    assert data.label_names == ("positive", "Negative")


def test_label_ids_stay_where_the_model_names_none(tmp_path):
    lines(tmp_path / "test.jsonl", texts(8))
    (tmp_path / "labels.json").write_text('["bad", "good"]')
    assert {row["label"] for row in load(tmp_path, labels=("LABEL_0", "LABEL_1")).split("test")} == {0, 1}


def test_names_that_the_model_does_not_have_are_refused(tmp_path):
    lines(tmp_path / "test.jsonl", texts(8))
    (tmp_path / "labels.json").write_text('["bad", "good"]')
    with pytest.raises(DataError, match=r"test\.jsonl: row 1 has the label 'bad', .*; it has 2: negative, positive"):
        load(tmp_path)


def test_a_model_yet_to_be_trained_takes_any_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{n % 7}\n" for n in range(20)))
    assert {row["label"] for row in load(path, labels=()).split("test")} <= set(range(7))
    lines(tmp_path / "f" / "test.jsonl", texts(8))
    (tmp_path / "f" / "labels.json").write_text('["bad", "good"]')
    assert load(tmp_path / "f", labels=()).label_names == ("bad", "good")


def test_lists_written_into_csv(tmp_path):
    path = tmp_path / "a.csv"
    cells = ["Ann ran,B-per O", '"[""Ann"", ""ran""]","[1, 0]"', "\"['Ann', 'ran']\",\"['B-per', 'O']\""]
    path.write_text("tokens,tags\n" + "\n".join(cells * 2) + "\nBob ran,1 0\nEve ran,1 0\nMax ran,1 0\n")
    data = load(path, "token-classification", ("O", "B-per"))
    task = plugins.find("tasks", "token-classification")
    items = task.items(data.split("test"), metadata("token-classification", ("O", "B-per")))
    assert {tuple(item.label) for item in items} == {(1, 0)}
    assert all(item.sample[1] == "ran" for item in items)


def test_questions_without_an_answer(tmp_path):
    rows = [{"question": f"q {n}", "context": "c", "answers": ["c"] if n % 2 else None} for n in range(16)]
    data = load(lines(tmp_path / "a.jsonl", rows), "question-answering", ())
    task = plugins.find("tasks", "question-answering")
    items = task.items(data.split("test"), metadata("question-answering"))
    assert {tuple(item.label) for item in items} == {(), ("c",)}


def test_no_labels_at_all_is_fine(tmp_path):
    rows = [{"text": f"text {n}", "label": None} for n in range(8)]
    assert load(lines(tmp_path / "a.jsonl", rows)).split("test")[0].keys() == {"text"}


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,label\na,1\nb,0\n", r"a\.csv has the columns body, label; text-classification needs text: say which is which "
         r"with --columns text=COLUMN"),
        ("text,label\n", r"a\.csv has no rows; give some hundred"),
        ("text,label\na,1\n", r"a\.csv has one row; calibration, selection .*give at least 4"),
        ("text,label\na,1\na,1\na,1\nb,0\n", r"a\.csv has 4 rows, 2 of them different"),
        ("text,label\na,1\nb,0\n,1\nd,0\n", r"a\.csv, row 3: text is missing \(empty or NaN\); remove or mend the row"),
        ("text,label\na,1\nNaN,0\nc,1\n", r"a\.csv, row 2: text is missing"),
        ("text,label\na,1\nb,0\n   ,1\n", r"a\.csv, row 3: text is an empty text"),
        ("text,label\na,1\nb,\nc,0\n", r"a\.csv, row 2: label is missing while other rows have one; label every row, or drop"),
        ("text,label\na,1\nb,0\nc,2\n", r"a\.csv: row 3 has the label '2', which the model does not know; it has 2: "),
        ("text,label\na,1\nb,wonderful\n", r"a\.csv: row 2 has the label 'wonderful', which the model does not know"),
        ("text,text_pair,label\na,b,1\nb,,0\n", r"a\.csv, row 2: text_pair is missing"),
    ],
)  # fmt: skip
def test_faults_are_one_line_with_the_way_out(content, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": float("nan")}, "row 2: text is missing"),
        ({"text": None}, "row 2: text is missing"),
        ({"text": 2010}, "row 2: text is '2010', no text"),
        ({"label": 1}, "row 2: text is missing"),
    ],
)
def test_json_may_hold_what_is_no_text(row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(lines(tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"label": 1, **row}, {"text": "c", "label": 0}]))


@pytest.mark.parametrize("tokens", [[], "", ["a", None], ["a", 3], None])
def test_words_are_a_list_of_texts(tokens, tmp_path):
    rows = [{"tokens": ["a"], "tags": [0]}, {"tokens": tokens, "tags": [0]}]
    with pytest.raises(DataError, match="row 2: tokens is "):
        load(lines(tmp_path / "a.jsonl", rows), "token-classification", ("O", "B-x"))


def test_one_split_with_one_row(tmp_path):
    lines(tmp_path / "train.jsonl", texts(20))
    lines(tmp_path / "test.jsonl", texts(1))
    with pytest.raises(DataError, match=r"test\.jsonl has one row and not two different ones; give some hundred"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "stars"}, r"has no column 'stars' \(asked for as label\); it has text, label"),
        (
            {"body": "text"},
            r"--columns body=text: text-classification reads no 'body'; it reads text, text_pair, label",
        ),
    ],
)
def test_columns_that_are_not_there(columns, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(lines(tmp_path / "a.jsonl", texts(8)), columns=columns)


@pytest.mark.parametrize("spec", ["nothing.csv", "nothing", "./no/folder", "owner/name.csv", "../x"])
def test_what_is_not_there_is_not_looked_for_elsewhere(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"there is no file or folder .*; give a csv, .*, or builtin:pydoc"):
        load(spec)


def test_a_mistyped_path_in_a_folder_that_is_here_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="there is no file or folder data/sst3; give"):
        load("data/sst3")


def test_an_unknown_builtin():
    with pytest.raises(DataError, match=r"there is no data set 'builtin:pydocs'; did you mean 'builtin:pydoc'"):
        load("builtin:pydocs")


# ------------------------------------------------------------------------------------------------ real data


def test_docstrings_for_retrieval_and_as_texts():
    data = load("builtin:pydoc", "sentence-embedding")
    assert data.split("test")[0].keys() == {"query", "document"}
    assert data.licence == "PSF-2.0"
    texts = load("builtin:pydoc", "sentence-embedding", columns={"text": "document"})
    assert texts.split("test")[0].keys() == {"text"}
    with pytest.raises(DataError, match=r"has the columns query, document, module; question-answering needs question"):
        load("builtin:pydoc", "question-answering")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "task", "sizes", "leaked"),
    [
        ("sst2", "text-classification", (67349, 1821, 872), 0),
        ("agnews", "text-classification", (18025, 1000, 7600), 0),
        ("banking77", "text-classification", (9000, 1003, 3080), 7),
        ("clinc150", "text-classification", (15100, 3100, 5500), 2),
        ("snips", "text-classification", (13084, 700, 700), 11),
        ("sick", "text-classification", (4500, 500, 4927), 49),
        ("sick", "text-regression", (4500, 500, 4927), 49),
        ("stsb", "text-regression", (5749, 1500, 1379), 7),
        ("stsb", "sentence-embedding", (5749, 1500, 1379), 7),
        ("wnut17", "token-classification", (3394, 1009, 1287), 0),
        ("ncbi_disease", "token-classification", (5432, 923, 940), 1),
        ("snips", "token-classification", (13084, 700, 700), 11),
        ("qamr", "question-answering", (16774, 2089, 18720), 0),
        ("squad_small", "question-answering", (4821, 528, 1190), 0),
    ],
)
def test_real_data_loads_with_the_leakage_that_its_readme_counts(name, task, sizes, leaked):
    labels = []
    if task.endswith("classification"):
        reported = json.loads((SHARED / name / "labels.json").read_text())
        reported = (
            reported["tags" if task == "token-classification" else "intents"]
            if isinstance(reported, dict)
            else reported
        )
        labels = [label.upper() for label in reversed(reported)]  # another order and case than the data's
    data = load(SHARED / name, task, labels)
    assert tuple(len(data.split(split)) for split in ("train", "validation", "test")) == sizes
    assert len(data.split("calibration")) == 1000
    unanswered = task == "question-answering"  # both sets have questions without an answer
    assert sum("questions have no answer" in note for note in data.notes) == unanswered
    assert data.notes[unanswered:] == ((f"{leaked} of {sizes[2]} test rows also occur in train",) if leaked else ())
    items = plugins.find("tasks", task).items(data.split("test"), metadata(task, labels))
    assert all(item.label is not None for item in items)
    if data.label_names:
        first, reported = data.split("test")[0].get("label", data.split("test")[0].get("tags")), items[0].label
        assert (first.upper() if isinstance(first, str) else [tag.upper() for tag in first]) == (
            labels[reported] if isinstance(reported, int) else [labels[tag] for tag in reported]
        )


def test_pictures_come_as_bytes_arrays_paths_and_as_datasets_writes_them(tmp_path):
    task = plugins.find("tasks", "image-classification")
    reported = metadata("image-classification", ["a", "b"], modality="image")
    files = [image(seed) for seed in range(4)]
    tables = {
        "bytes.parquet": [{"image_jpeg": file, "label": 0} for file in files],
        "hub.parquet": [{"image": {"bytes": file, "path": None}, "label": 0} for file in files],
    }
    for name, rows in tables.items():
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    for number, file in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(file)
    (tmp_path / "paths.csv").write_text("image,label\n" + "".join(f"{number}.png,a\n" for number in range(4)))
    for name in (*tables, "paths.csv"):
        splits = load_data(str(tmp_path / name), task, reported).splits
        assert sorted(
            row["image"] for split in ("calibration", "validation", "test") for row in splits[split]
        ) == sorted(files)
    grey = np.random.default_rng(0).integers(0, 256, (4, 6, 5)).astype(np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.zeros(4, dtype=np.uint8))
    made = load_data(str(tmp_path / "grey.npz"), task, reported)
    row = next(row for split in ("calibration", "validation", "test") for row in made.splits[split])
    assert any(np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), each) for each in grey)
    assert load_data(str(tmp_path / "grey.npz"), task, reported).digest == made.digest
