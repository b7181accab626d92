"""Every format reads to the same rows, and every fault is said with its place."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fmopt.core.errors import DataError
from fmopt.data.readers import label_names, read_file, read_folder

ROWS = [
    {"text": 'one, "two"', "label": "a"},
    {"text": "line\u2028same line; ünï", "label": "b"},
    {"text": "2010", "label": "a"},
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_format_gives_the_same_rows(suffix, bom, tmp_path):
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        content = {
            "csv": 'text,label\r\n"one, ""two""",a\r\nline\u2028same line; ünï,b\r\n2010,a\r\n',
            "tsv": 'text\tlabel\none, "two"\ta\nline\u2028same line; ünï\tb\n2010\ta\n',
            "jsonl": "\n".join(json.dumps(row) for row in ROWS) + "\n\n",
            "json": json.dumps(ROWS),
        }[suffix]
        write(path, bom + content)
    table = read_file(path)
    assert (table.rows, table.columns, table.where) == (ROWS, ["text", "label"], str(path))


@pytest.mark.parametrize(
    "content",
    [
        {"data": ROWS},
        {"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]},
    ],
)
def test_other_layouts_of_json(content, tmp_path):
    assert read_file(write(tmp_path / "data.json", json.dumps(content))).rows == ROWS
    lines = "\n".join(json.dumps(row) for row in ROWS)
    assert read_file(write(tmp_path / "lines.json", lines)).rows == ROWS


def test_squads_own_form(tmp_path):
    asked = [
        {"question": "who?", "id": "1", "answers": [{"text": "Ann", "answer_start": 3}]},
        {"question": "when?", "id": "2", "answers": []},
    ]
    reported = {"version": "v2", "data": [{"title": "t", "paragraphs": [{"context": "by Ann", "qas": asked}]}]}
    assert read_file(write(tmp_path / "dev.json", json.dumps(reported))).rows == [
        {"question": "who?", "context": "by Ann", "answers": ["Ann"], "answer_starts": [3]},
        {"question": "when?", "context": "by Ann", "answers": [], "answer_starts": []},
    ]


def test_semicolons_and_missing_values(tmp_path):
    table = read_file(write(tmp_path / "data.csv", "text;label\na, b;1\n;NaN\n"))
    assert table.rows == [{"text": "a, b", "label": "1"}, {"text": None, "label": None}]


def test_quotes_in_tab_separated_texts(tmp_path):
    bare = read_file(write(tmp_path / "glue.tsv", 'sentence\tlabel\n"wild" he said\t1\n" open\t0\n'))
    assert [row["sentence"] for row in bare.rows] == ['"wild" he said', '" open']
    quoted = read_file(write(tmp_path / "pandas.tsv", 'sentence\tlabel\n"a ""b""\tc"\t1\n'))
    assert quoted.rows == [{"sentence": 'a "b"\tc', "label": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty; give a file with"),
        ("a.csv", "text,label\nfür,1\n".encode("latin-1"), "a.csv is not UTF-8: byte 12 is 0xfc; convert it"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl is not UTF-8: byte 10 is 0xff"),
        ("a.csv", "text,label\na,b,c\n", r"a.csv, line 2: 3 fields, but there are 2 columns \(text, label\); quote"),
        ("a.csv", 'text,label\n"a,b\n', "a.csv, line 2: unexpected end of data; is a quote not closed"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', r"a.jsonl, line 2: \[1\] is no object"),
        ("a.json", "3", "a.json is no list of objects"),
        ("a.json", '{"text": ["a"], "label": []}', "a.json has columns of different length"),
        ("a.json", "[{", "a.json, line 1: not JSON"),
        ("a.parquet", "PAR1 but not really", "a.parquet cannot be read as parquet"),
        ("a.txt", " \n\n", "a.txt is empty; give a text of some thousand words"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "a.txt.gz is empty; give a text"),
        ("a.txt.gz", gzip.compress("für".encode("latin-1"), mtime=0), "a.txt.gz is not UTF-8: byte 1 is 0xfc; convert it"),
        ("a.txt.gz", b"no gzip", "a.txt.gz cannot be unpacked: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "a.txt.gz cannot be unpacked: Compressed file ended"),
        ("a.xlsx", "text", r"a.xlsx is no data file by its name: give one that ends in \.csv, .*, \.txt, \.txt\.gz"),
    ],
)  # fmt: skip
def test_faults_have_a_place(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_file(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_plain_text_is_read_in_passages(tmp_path):
    short = [f"Paragraph {n} is short,\r\nand wrapped." for n in range(20)]
    long = " ".join(f"Sentence {n} has exactly six words." for n in range(60))
    endless = " ".join(f"w{n}" for n in range(300))
    content = "\ufeff" + "\r\n\r\n".join([*short, long, endless]) + "\r\n"
    rows = read_file(write(tmp_path / "a.txt", content)).rows
    assert [set(row) for row in rows] == [{"text"}] * len(rows)
    texts = [row["text"] for row in rows]
    assert " ".join(texts).split() == content.removeprefix("\ufeff").split()  # nothing is lost or told twice
    assert texts[0].startswith("Paragraph 0 is short, and wrapped. Paragraph 1")
    counts = [len(text.split()) for text in texts]
    assert all(64 <= count <= 128 for count in counts[:-1])
    assert all(text.endswith(".") for text in texts[:6])  # cut where a paragraph or a sentence ends
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.TXT.gz", gzip.compress(content.encode()))
    write(tmp_path / "folder" / "valid.txt", "a few words")
    found = read_folder(tmp_path / "folder")
    assert found["train"].rows == rows
    assert found["validation"].rows == [{"text": "a few words"}]


def test_a_folder_has_a_file_for_each_split(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dev.jsonl", "test.csv", "notes.txt"):
        write(tmp_path / name, "text\nx" if name.endswith("csv") else json.dumps({"text": name}))
    found = read_folder(tmp_path)
    assert {split: [row["text"] for row in table.rows] for split, table in found.items()} == {
        "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        "validation": ["dev.jsonl"],
        "test": ["x"],
    }


def test_a_repository_of_the_hub_has_them_in_data(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "test.csv", "text\nx\n")
    assert set(read_folder(tmp_path)) == {"test"}


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"has no file for a split .*; it has nothing"):
        read_folder(tmp_path)
    write(tmp_path / "mine.csv", "text\nx\n")
    with pytest.raises(DataError, match=r"it has mine\.csv"):
        read_folder(tmp_path)
    write(tmp_path / "train.csv", "text\nx\n")
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"several files for train: train\.csv, train\.jsonl; keep one"):
        read_folder(tmp_path)


def test_label_names_of_a_file_beside(tmp_path):
    path = tmp_path / "labels.json"
    assert label_names(path) == {}
    assert label_names(write(path, '["a", "b"]')) == {"": ("a", "b")}
    assert label_names(write(path, '{"tags": ["O"], "intents": ["x"]}')) == {"tags": ("O",), "intents": ("x",)}
    for content in ("[1, 2]", '{"a": 0}', '"a"'):
        with pytest.raises(DataError, match="is no list of label names"):
            label_names(write(path, content))
    with pytest.raises(DataError, match="is not JSON"):
        label_names(write(path, "[a]"))


def test_names_that_datasets_wrote_into_parquet(tmp_path):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-x"])),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"tokens": [["a", "b"]], "ner_tags": [[0, 1]], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    table = read_file(tmp_path / "test.parquet")
    assert table.rows == [{"tokens": ["a", "b"], "ner_tags": [0, 1], "label": 1}]
    assert table.names == {"ner_tags": ("O", "B-x"), "label": ("no", "yes")}


def test_a_hub_data_set_that_cannot_be_had_is_one_line():
    code = "from fmopt.data.readers import read_hub; read_hub('no-one/no-such-data')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert got.returncode
    assert (
        "DataError: there is no file or folder no-one/no-such-data, and as a hub data set it could not be had: "
        in got.stderr.strip().splitlines()[-1]
    )


def test_arrays_side_by_side_are_rows_and_offsets_part_the_longer_ones(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([4, 1], dtype=np.uint8), rate=8000)
    first, second = read_file(tmp_path / "a.npz").rows
    assert (first["labels"], second["labels"], first["rate"]) == (4, 1, 8000)
    assert np.array_equal(second["images"], pixels[1])
    np.savez(
        tmp_path / "b.npz", images=pixels, boxes=np.ones((3, 4)), kinds=np.array([7, 8, 9]), offsets=np.array([0, 1, 3])
    )
    first, second = read_file(tmp_path / "b.npz").rows
    assert first["kinds"].tolist() == [7]
    assert second["kinds"].tolist() == [8, 9]
    assert second["boxes"].shape == (2, 4)
    np.savez(tmp_path / "c.npz", images=pixels, labels=np.array([1, 2, 3]))
    with pytest.raises(DataError, match=r"c\.npz has arrays of different length"):
        read_file(tmp_path / "c.npz")
    with pytest.raises(DataError, match=r"d\.npz cannot be read as npz"):
        read_file(write(tmp_path / "d.npz", b"no archive"))


def test_folders_named_after_classes_hold_a_row_in_each_file(tmp_path):
    for place in ("train/cat/1.png", "train/dog/2.JPG", "val/cat/3.png", "train/cat/notes.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / place, place)
    found = read_folder(tmp_path)
    assert found["train"].rows == [
        {"image": b"train/cat/1.png", "label": "cat"}, {"image": b"train/dog/2.JPG", "label": "dog"}
    ]  # fmt: skip
    assert found["validation"].rows == [{"image": b"val/cat/3.png", "label": "cat"}]
    assert [row["label"] for row in read_folder(tmp_path / "train")[""].rows] == ["cat", "dog"]
