"""Data sets: named splits of rows named by role, and which split may calibrate, select and judge.

Items that calibrated or trained never judge. A folder's train split calibrates, its validation split selects, its test
split judges; one file without splits is cut into the three by content, so that the same text always falls on one side.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.errors import DataError
from fmopt.model import CheckpointFacts
from fmopt.pydoc import pydoc_splits
from fmopt.tasks.base import Task

Row = dict[str, Any]

READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLIT_FILES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing"),
}
CALIBRATION, VALIDATION = 0.25, 0.25  # shares of a file without splits; the rest judges
CUT_FROM_TRAIN = 0.1  # validation, where a folder has none


@dataclass(frozen=True)
class Dataset:
    """Splits of rows whose columns are named by the task's roles."""

    name: str
    digest: str
    splits: Mapping[str, list[Row]]
    notes: tuple[str, ...] = ()
    licence: str | None = None
    label_names: tuple[str, ...] = ()  # by id, where the data says so

    def split(self, name: str) -> list[Row]:
        """Rows of a split; DataError when there is none."""
        if name not in self.splits:
            raise DataError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def load_data(
    spec: str, task: Task, facts: CheckpointFacts, *, columns: Mapping[str, str] | None = None, seed: int = 0
) -> Dataset:
    """The data set that `spec` names: a file, a folder with one file per split, a hub name, or `builtin:pydoc`.

    `columns` maps roles to column names where they are not the usual ones. DataError, one line, when it cannot be used.
    """
    if spec == "builtin:pydoc":
        docs = pydoc_splits()
        notes = ("docstrings of the Python standard library, split by module",)
        return Dataset(spec, _digest(docs), docs, notes, "PSF-2.0")
    path = Path(spec)
    names: tuple[str, ...] = ()
    if path.is_dir():
        raw, names = _read_folder(path), _label_names(path / "labels.json", task.name)
    elif path.is_file():
        raw = {"": _read_file(path)}
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not path.suffix:
        raw = _read_hub(spec)
    else:
        raise DataError(
            f"there is no data at {spec}; give a csv, tsv, jsonl or parquet file, a folder with one file per split, "
            "a hub data set like glue/sst2, or builtin:pydoc"
        )
    table = {
        split: [_by_role(row, roles, spec) for row in found]
        for split, found in raw.items()
        if (roles := _roles(found, task, columns, f"{spec} ({split})" if split else spec))
    }
    for split, found in table.items():
        _check(found, task, f"{spec} ({split})" if split else spec)
    table = {split: _named_labels(found, names, facts) for split, found in table.items()}
    splits, cuts = _assign(table, seed)
    return Dataset(path.name or spec, _digest(table), splits, tuple(cuts), None, names)


# ------------------------------------------------------------------------------------------------ reading


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for split, stems in SPLIT_FILES.items():
        files = [f for stem in stems for f in sorted(folder.glob(f"{stem}.*")) if f.suffix in READERS]
        if files:
            found[split] = _read_file(files[0])
    if not found:
        have = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} has no file per split (train, validation, test as csv, tsv, jsonl or parquet); it has {have}"
        )
    return found


def _read_file(path: Path) -> list[Row]:
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    if path.suffix not in READERS:
        raise DataError(f"{path} is a {path.suffix or 'file without a suffix'}; data is read from {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; data needs at least some rows")
    if READERS[path.suffix] != "parquet":
        _require_utf8(path)
    try:
        if path.suffix in (".csv", ".tsv"):
            delimiter = "," if path.suffix == ".csv" else "\t"
            quote: str | bool = '"' if path.suffix == ".csv" else False  # tab-separated texts hold bare quotes
            table = csv.read_csv(
                path,
                parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=bool(quote)),
                convert_options=csv.ConvertOptions(strings_can_be_null=False),
            )
        elif path.suffix == ".json":
            content = json.loads(path.read_text("utf8"))
            rows = content if isinstance(content, list) else content.get("data")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise DataError(f"{path} is not a list of objects; write one object per row, or use .jsonl")
            return rows
        elif path.suffix == ".jsonl":
            table = arrow_json.read_json(path)
        else:
            table = parquet.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0][:160]}") from error
    rows_found: list[Row] = table.to_pylist()
    return rows_found


def _require_utf8(path: Path) -> None:
    try:
        path.read_bytes().decode("utf8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for example: iconv -f latin1 -t utf8"
        ) from error


def _read_hub(name: str) -> dict[str, list[Row]]:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub client raises many kinds; the user needs the one line
        raise DataError(
            f"{name} is no file here, and as a hub data set it could not be had: {str(error).splitlines()[0][:160]}"
        ) from error
    return {split: found[split].to_list() for split in found if split in SPLIT_FILES}


def _label_names(path: Path, task: str) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    told = json.loads(path.read_text("utf8"))
    if isinstance(told, dict):
        told = told.get("tags" if task == "token-classification" else "intents") or []
    return tuple(str(name) for name in told)


# ------------------------------------------------------------------------------------------------ columns


def _roles(rows: Sequence[Row], task: Task, columns: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """role → column of a table; DataError when a needed one is missing."""
    if len(rows) < 2:
        raise DataError(
            f"{where} has {len(rows)} row{'s' * (len(rows) != 1)}; at least 2 are needed, some hundred to decide anything"
        )
    have = list(rows[0])
    for role, column in (columns or {}).items():
        if role not in task.columns:
            raise DataError(
                f"--columns {role}={column}: {task.name} has no {role!r}; it reads {', '.join(task.columns)}"
            )
        if column not in have:
            raise DataError(f"{where} has no column {column!r} (asked for {role}); it has {', '.join(have)}")
    lower = {name.lower(): name for name in reversed(have)}
    found: dict[str, str] = {}
    for role, usual in task.columns.items():
        chosen = (columns or {}).get(role) or next((lower[name] for name in usual if name in lower), None)
        if chosen is not None and chosen not in found.values():
            found[role] = chosen
    usable = [needed for needed in task.needed if all(role in found for role in needed)]
    if not usable:
        wanted = " or ".join(" and ".join(needed) for needed in task.needed)
        raise DataError(
            f"{where} has the columns {', '.join(have)}; {task.name} needs {wanted}: say which is which with "
            f"--columns {','.join(f'{role}=COLUMN' for role in task.needed[0])}"
        )
    inputs = {role for needed in task.needed for role in needed}
    optional = {role: column for role, column in found.items() if role not in inputs}
    return {role: found[role] for role in usable[0]} | optional


def _by_role(row: Row, roles: Mapping[str, str], where: str) -> Row:
    return {role: row.get(column) for role, column in roles.items()}


def _check(rows: Sequence[Row], task: Task, where: str) -> None:
    """DataError that names the first row without a text, or with a label where others have none."""
    inputs = {role for needed in task.needed for role in needed} & set(rows[0])
    for number, row in enumerate(rows, 1):
        for role, value in row.items():
            missing = value is None or (isinstance(value, float) and math.isnan(value))
            if role in inputs and (missing or (role != "tokens" and not isinstance(value, str))):
                raise DataError(
                    f"{where}, row {number}: {role} is {'empty' if missing else repr(value)[:40]}, not a text; "
                    "remove or mend the row"
                )
            if role in inputs and not value:
                raise DataError(f"{where}, row {number}: {role} is empty; remove or mend the row")
            if role not in inputs and missing and role not in ("text_pair", "answers", "answer_starts"):
                raise DataError(
                    f"{where}, row {number}: {role} is empty while others have one; label every row, or drop the column"
                )


def _named_labels(rows: list[Row], names: Sequence[str], facts: CheckpointFacts) -> list[Row]:
    """Label ids as the model's own, through the names that the data gives them, where model and data number differently."""
    labels = [label.lower() for label in facts.pipeline.get("labels") or []]
    theirs = [name.lower() for name in names]
    if not names or labels == theirs or not set(theirs) <= set(labels):
        return rows
    for row in rows:
        for role in ("label", "tags"):
            value = row.get(role)
            if isinstance(value, int) and 0 <= value < len(names):
                row[role] = names[value]
            elif isinstance(value, list):
                row[role] = [names[tag] if isinstance(tag, int) and 0 <= tag < len(names) else tag for tag in value]
    return rows


# ------------------------------------------------------------------------------------------------ splits


def _assign(table: Mapping[str, list[Row]], seed: int) -> tuple[dict[str, list[Row]], list[str]]:
    """train, calibration, validation and test from what there is, with notes on what was cut from what."""
    notes: list[str] = []
    if set(table) in ({""}, {"train"}, {"test"}, {"validation"}):
        rows = next(iter(table.values()))
        parts: dict[str, list[Row]] = {"calibration": [], "validation": [], "test": []}
        for row in _shuffled(rows, seed):
            share = _share(row, seed)
            parts[
                "calibration" if share < CALIBRATION else "validation" if share < CALIBRATION + VALIDATION else "test"
            ].append(row)
        if not all(parts.values()):
            raise DataError(
                f"{len(rows)} rows are too few to calibrate on some, select by others and judge by the rest"
            )
        notes.append(f"one table of {len(rows)} rows, cut by content into calibration, validation and test")
        return parts | {"train": parts["calibration"]}, notes
    splits = dict(table)
    if "train" not in splits:
        splits["train"] = splits["validation"]
        notes.append("there is no train split: calibrated on validation")
    if "validation" not in splits:
        held = [row for row in splits["train"] if _share(row, seed) < CUT_FROM_TRAIN]
        splits["validation"], splits["train"] = (
            held,
            [row for row in splits["train"] if _share(row, seed) >= CUT_FROM_TRAIN],
        )
        notes.append("there is no validation split: a tenth of train, cut by content")
    if "test" not in splits:
        splits["test"] = splits["validation"]
        splits["validation"] = [row for row in splits["train"] if _share(row, seed) < CUT_FROM_TRAIN]
        splits["train"] = [row for row in splits["train"] if _share(row, seed) >= CUT_FROM_TRAIN]
        notes.append("there is no test split: judged on validation, selected on a tenth of train")
    # rows are often sorted by class: what is capped must be a fair draw
    splits["calibration"], splits["validation"] = (
        _shuffled(splits["train"], seed),
        _shuffled(splits["validation"], seed),
    )
    seen = {_content(row) for row in splits["train"]}
    repeated = sum(_content(row) in seen for row in splits["test"])
    if repeated:
        notes.append(f"{repeated} of {len(splits['test'])} test rows also occur in train")
    return splits, notes


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: (_share(row, seed), _content(row)))


def _share(row: Row, seed: int) -> float:
    return int(hashlib.sha256(f"{seed}:{_content(row)}".encode()).hexdigest()[:12], 16) / 16**12


def _content(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=str, ensure_ascii=False)


def _digest(splits: Mapping[str, Sequence[Row]]) -> str:
    return hashlib.sha256(json.dumps(splits, sort_keys=True, default=str).encode()).hexdigest()
