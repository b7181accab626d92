"""Data sets: named splits of rows named by role, and which split may calibrate, select and judge.

Items that calibrated or trained never judge. A folder's train split calibrates, its validation split selects, its test
split judges; one table without splits is cut into the three by content, so that the same text always falls on one side.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import DataError, reading
from fmopt.core.media import audio as core_audio
from fmopt.core.media import images
from fmopt.core.model import CheckpointMetadata
from fmopt.core.plugins import did_you_mean
from fmopt.data.builtin_code import stdlib_splits
from fmopt.data.builtin_docstrings import pydoc_splits
from fmopt.data.interactions import are_interactions, catalogue_lines, leave_one_out
from fmopt.data.labels import (
    check_labels,
    mark_unseen,
    name_labels,
    names_of_ids,
    numbered_like,
    read_labels,
    spell_classes,
    unanswerable,
)
from fmopt.data.readers import Row, Table, bytes_beside, label_names, read_file, read_folder, read_hub, suffix
from fmopt.tasks.base import Output, Task, all_tasks

BUILTIN, SOURCE_CODE = "builtin:pydoc", "builtin:stdlib"
BUILTINS: Mapping[str, Callable[[], Mapping[str, Sequence[Row]]]] = {BUILTIN: pydoc_splits, SOURCE_CODE: stdlib_splits}
HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(?::[\w.-]+)?")
LABELS = frozenset(
    {"label", "tags", "score", "answers", "answer_starts", "mask", "transcript", "target", "next", "boxes", "classes"}
)  # roles that judge; the others are read
LISTS = frozenset({"tokens", "tags", "items"})  # roles that hold a value per word, or per item of a history
IDS = frozenset({"user", "item", "time", "next"})  # roles that hold a number or a name
BOXES = frozenset({"boxes", "classes"})  # roles that hold a value per box
# Roles that hold a file: how an array becomes one, and what is wrong with one that cannot be read.
FILES = {
    "image": (images.png_file, images.problem),
    "mask": (images.png_file, images.problem),
    "audio": (core_audio.wav_file, core_audio.problem),
}
CALIBRATION, VALIDATION = 0.25, 0.25  # shares of a table without splits; the rest judges
HELD_OUT_OF_TRAIN = 0.1  # validation, where a folder has none
CALIBRATION_ROWS = 1_000  # more than any calibrator reads
FEWEST_ROWS = 4  # different ones, to have one for each purpose and two to judge by


@dataclass(frozen=True)
class Dataset:
    """Splits of rows whose columns are named by the task's roles.

    `calibration`, `validation` and `test` are always there; `train` where there is something to train on.
    """

    name: str
    digest: str  # sha256 of every row in every split
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
    spec: str, task: Task, metadata: CheckpointMetadata, *, columns: Mapping[str, str] | None = None, seed: int = 0
) -> Dataset:
    """The data set that `spec` names: a file, a folder with one file per split, a hub name, or one of BUILTINS.

    `columns` maps roles to column names where they are not the usual ones. `seed` decides what is cut from what.
    DataError, one line with the way out, when it cannot be used.
    """
    with reading(spec, DataError, "mend the data"):
        return _loaded(spec, task, metadata, columns, seed)


def _loaded(
    spec: str, task: Task, metadata: CheckpointMetadata, columns: Mapping[str, str] | None, seed: int
) -> Dataset:
    tables, names = _read(spec)
    notes: list[str] = []
    chosen = _histories({split: _by_role(table, task, columns or {}) for split, table in tables.items()}, notes)
    content = names_of_ids(next(iter(chosen.values())), names, task)
    read_labels(chosen, task, metadata, content)
    for table in chosen.values():
        spell_classes(table, names)
        if content and not numbered_like(content, metadata):
            name_labels(table.rows, content)
    for table in chosen.values():
        _check(table)
    said = [*mark_unseen(chosen, task, metadata), *unanswerable(chosen, task, metadata)]
    for table in chosen.values():
        check_labels(table, task, metadata)
    for note in said:
        warnings.warn(f"{Path(spec).name or spec}: {note}", stacklevel=2)
    notes += said
    licence = None
    if spec == BUILTIN:
        splits = {split: table.rows for split, table in chosen.items()}
        notes.append("docstrings of the Python standard library, split by module")
        licence = "PSF-2.0"
    else:
        if spec == SOURCE_CODE:
            notes.append(f"functions of the standard library of Python {platform.python_version()}, split by module")
            licence = "PSF-2.0"
        splits = _assign(_judgeable(chosen, notes), Path(spec).name or spec, seed, notes)
    return Dataset(Path(spec).name or spec, _digest(splits), splits, tuple(notes), licence, content)


def fitting_tasks(spec: str, modality: str, columns: Mapping[str, str]) -> list[str]:
    """Tasks of a modality that the columns of labelled data are for, the most telling first; several where they leave it open.

    DataError when the data cannot be read.
    """
    tables, _ = _read(spec)
    table = next(iter(tables.values()))
    fitting: dict[Task, dict[str, str]] = {}
    for task in all_tasks():
        if not task.shown_by or task.modality != modality or not set(columns) <= set(task.columns):
            continue
        try:
            found = _roles(table, task, columns)
        except DataError:
            continue
        if set(task.shown_by) <= set(found):
            fitting[task] = found
    alone = [task.name for task in fitting if task.shown_alone]
    if alone:
        return alone[:1]
    numbers, classes = (
        [task for task in fitting if task.output is output] for output in (Output.NUMBER, Output.CLASSES)
    )
    if numbers and classes:  # a number is a class unless it is no whole one
        column = fitting[classes[0]][classes[0].shown_by[0]]
        given = [row.get(column) for row in table.rows[:1000] if row.get(column) is not None]
        return [(numbers if any(_is_measure(value) for value in given) else classes)[0].name]
    return [task.name for task in fitting]


def _is_measure(value: Any) -> bool:
    """Whether a label is a number that counts nothing."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"\s*-?\d*\.\d*[1-9]\d*\s*", value))
    return isinstance(value, float) and not value.is_integer()


def training_texts(spec: str, task: Task, *, columns: Mapping[str, str] | None = None, seed: int = 0) -> list[str]:
    """Every text of the rows that `load_data` would train on, before there is a model: to make a vocabulary of."""
    tables, names = _read(spec)
    chosen = {split: _by_role(table, task, columns or {}) for split, table in tables.items()}
    for table in chosen.values():
        spell_classes(table, names)
        _check(table)
    train = _assign(chosen, Path(spec).name or spec, seed, [])["train"]
    values = (value for row in train for value in row.values())
    return [
        text for value in values for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
    ]


def catalogue(spec: str, task: Task, *, columns: Mapping[str, str] | None = None) -> list[str]:
    """Every item that a model of `spec` may recommend, its id and title parted by a tab: to make a catalogue of."""
    tables, _ = _read(spec)
    chosen = {split: _by_role(table, task, columns or {}) for split, table in tables.items()}
    for table in chosen.values():
        _check(table)
    path = Path(spec).expanduser()
    return catalogue_lines(path if path.is_dir() else path.parent, chosen)


def _histories(tables: Mapping[str, Table], notes: list[str]) -> dict[str, Table]:
    """The tables, or the histories of all users where their rows are single interactions."""
    if not any(are_interactions(table) for table in tables.values()):
        return dict(tables)
    for table in tables.values():
        _check(table)
    return leave_one_out(tables, notes)


def _read(spec: str) -> tuple[dict[str, Table], dict[str, tuple[str, ...]]]:
    """Tables by split ("" for one without splits), and what a labels.json says."""
    if spec.startswith("builtin:"):
        if spec not in BUILTINS:
            raise DataError(f"there is no data set {spec!r}{did_you_mean(spec, BUILTINS)}")
        return {split: Table(f"{spec} ({split})", [*rows]) for split, rows in BUILTINS[spec]().items()}, {}
    try:
        path = Path(spec).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{spec[:200]!r} is no path ({error}); give a file or a folder") from error
    if path.is_dir():
        return read_folder(path), label_names(path / "labels.json")
    if path.is_file():
        return {"": read_file(path)}, {}
    # A name with a slash may be a mistyped path; what begins in a folder that is here, or ends like a file, is one.
    if HUB_NAME.fullmatch(spec) and not suffix(path) and not Path(path.parts[0]).is_dir():
        return read_hub(spec), {}
    raise DataError(
        f"there is no file or folder {spec}; give a csv, tsv, json, jsonl, parquet or txt file, a folder with one "
        f"file per split, a hub data set (owner/name), or {' or '.join(BUILTINS)}"
    )


# ------------------------------------------------------------------------------------------------ columns → roles


def _by_role(table: Table, task: Task, asked: Mapping[str, str]) -> Table:
    """The table with its columns named by role, lists read where a file format has none."""
    if not table.rows:
        raise DataError(f"{table.where} has no rows; give some hundred")
    if "boxes" in task.columns and not {"boxes", "classes"} & set(asked):
        table = _unfolded(table)
    roles = _roles(table, task, asked)
    rows = [
        {role: _value(role, row, column, f"{table.where}, row {number}") for role, column in roles.items()}
        for number, row in enumerate(table.rows, 1)
    ]
    empty = {role for role in roles if role in LABELS and all(_unlabelled(role, row[role]) for row in rows)}
    kept = [{role: value for role, value in row.items() if role not in empty} for row in rows]
    names = {role: table.names[column] for role, column in roles.items() if column in table.names}
    return Table(table.where, kept, names)


def _unfolded(table: Table) -> Table:
    """Boxes out of a column "objects", as `datasets` and COCO write them: {"bbox": x, y, width, height in pixels}."""
    rows: list[Row] = []
    for row in table.rows:
        content = row.get("objects")
        if not isinstance(content, Mapping) or "bbox" not in content:
            return table
        boxes = [[x, y, x + width, y + height] for x, y, width, height in content["bbox"]]
        classes = next(
            (list(content[key]) for key in ("category", "categories", "label", "labels") if key in content), None
        )
        rows.append({**{k: v for k, v in row.items() if k != "objects"}, "boxes": boxes, "classes": classes})
    return Table(table.where, rows, table.names)


def _roles(table: Table, task: Task, asked: Mapping[str, str]) -> dict[str, str]:
    """role → column; DataError when a needed one is missing, or an asked one is unknown."""
    have = table.columns
    for role, column in asked.items():
        if role not in task.columns:
            raise DataError(
                f"--columns {role}={column}: {task.name} reads no {role!r}; it reads {', '.join(task.columns)}"
            )
        if column not in have:
            raise DataError(f"{table.where} has no column {column!r} (asked for as {role}); it has {', '.join(have)}")
    inputs = {role for needed in task.needed for role in needed}
    for needed in task.needed:
        found = _match([*needed, *(role for role in task.columns if role not in inputs)], task, have, asked)
        # What the user names must be read: `--columns text=title` asks for the alternative that reads a text.
        if set(needed) <= set(found) and set(asked) <= set(found):
            return found
    wanted = " or ".join(" + ".join(needed) for needed in task.needed)
    first = next((needed for needed in task.needed if set(asked) & set(needed)), task.needed[0])
    missing = ",".join(f"{role}={asked.get(role, 'COLUMN')}" for role in first)
    raise DataError(
        f"{table.where} has the columns {', '.join(have)}; {task.name} needs {wanted}: say which is which with "
        f"--columns {missing}"
    )


def _match(roles: Iterable[str], task: Task, have: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """The column of every role that has one; no column plays two roles."""
    lower = {name.lower(): name for name in reversed(have)}
    found: dict[str, str] = {}
    for role in roles:
        taken = {*found.values(), *(column for other, column in asked.items() if other != role)}
        usual = (lower[name] for name in task.columns[role] if name in lower and lower[name] not in taken)
        column = asked.get(role) or next(usual, None)
        if column is not None:
            found[role] = column
    return found


def _value(role: str, row: Row, column: str, where: str) -> Any:
    """What a row holds for a role: lists read where a file format has none, and the bytes of files."""
    value = row.get(column)
    if role in BOXES and isinstance(value, np.ndarray):
        return value.tolist()
    return _file(role, value, row, where) if role in FILES else _listed(role, value)


def _file(role: str, value: Any, row: Row, where: str) -> Any:
    """The bytes of a file that a table holds as bytes, as `datasets` writes them, as an array, or by its path."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, np.ndarray):
        make, _ = FILES[role]
        try:
            return make(value, row)
        except ValueError as error:
            raise DataError(f"{where}: {role} {error}") from error
    if not isinstance(value, str):
        return value
    return bytes_beside(Path(where.rpartition(", row ")[0]).parent, value, f"{where}: {role}")


def _listed(role: str, value: Any) -> Any:
    """A list that a csv wrote as text: JSON, Python's own form, or words with blanks between them."""
    if not isinstance(value, str) or role not in LISTS | BOXES | {"answers", "answer_starts"}:
        return value
    if value.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
    return value.split() if role in LISTS else value


# ------------------------------------------------------------------------------------------------ rows that can be used


def _absent(value: Any) -> bool:
    return value is None or value != value  # NaN is the one value that differs from itself


def _unlabelled(role: str, value: Any) -> bool:
    return _absent(value) or (role == "label" and isinstance(value, int) and value == -1)  # GLUE hides test labels so


def _check(table: Table) -> None:
    """DataError that names the first row without a text, or without a label where others have one."""
    for number, row in enumerate(table.rows, 1):
        for role, value in row.items():
            problem = _problem(role, value)
            if problem and role in ("answers", "answer_starts"):
                row[role] = []  # a question without an answer: SQuAD 2 asks some
            elif problem:
                raise DataError(f"{table.where}, row {number}: {role} {problem}")


def _problem(role: str, value: Any) -> str | None:
    if role in LABELS:
        return "is missing while other rows have one; label every row, or drop the column" if _absent(value) else None
    if _absent(value):
        return "is missing (empty or NaN); remove or mend the row"
    if role in FILES:
        return FILES[role][1](value)
    if role == "tokens":
        words = isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)
        return None if words else f"is {str(value)[:40]!r}, no list of words; remove or mend the row"
    if role == "items":
        ids = isinstance(value, list) and bool(value) and all(isinstance(item, str | int) for item in value)
        return None if ids else f"is {str(value)[:40]!r}, no list of items; remove or mend the row"
    if role in IDS:
        return None if isinstance(value, str | int | float) else f"is {str(value)[:40]!r}, no number and no name"
    if not isinstance(value, str):
        return f"is {str(value)[:40]!r}, no text; remove or mend the row"
    return None if value.strip() or role == "text_pair" else "is an empty text; remove or mend the row"


# ------------------------------------------------------------------------------------------------ splits


def _judgeable(tables: Mapping[str, Table], notes: list[str]) -> dict[str, Table]:
    """Without a test split that has no labels while others have: public test labels are often kept secret."""
    labels = {split: LABELS & set(table.rows[0]) for split, table in tables.items()}
    if "test" in tables and "validation" in tables and labels["validation"] and not labels["test"]:
        notes.append("the test split has no labels and is not used")
        return {split: table for split, table in tables.items() if split != "test"}
    return dict(tables)


def _assign(tables: Mapping[str, Table], name: str, seed: int, notes: list[str]) -> dict[str, list[Row]]:
    """train, calibration, validation and test from what there is, with notes on what was cut from what."""
    rows = {split: table.rows for split, table in tables.items()}
    if len(rows) == 1:
        return _cut(next(iter(rows.values())), name, seed, notes)
    for table in tables.values():
        if len({_content(row) for row in table.rows}) < 2:
            raise DataError(
                f"{table.where} has {_count(len(table.rows))} and not two different ones; give some hundred"
            )
    if "test" not in rows:
        rows["test"] = rows.pop("validation")
        notes.append("there is no test split: judged on validation")
    if "train" not in rows:
        rows["validation"], rows["train"] = _part(rows["validation"], 1 - CALIBRATION, seed)
        notes.append("there is no train split: calibrated on a quarter of validation")
    if "validation" not in rows:
        rows["validation"], rows["train"] = _part(rows["train"], HELD_OUT_OF_TRAIN, seed)
        notes.append("selected on a tenth of train, which has no part in calibration")
    # Rows are often sorted by class, so what is capped is drawn fairly.
    train, validation = _shuffled(rows["train"], seed), _shuffled(rows["validation"], seed)
    seen = {_content(row) for row in train}
    repeated = sum(_content(row) in seen for row in rows["test"])
    if repeated:
        notes.append(f"{repeated} of {len(rows['test'])} test rows also occur in train")
    return {
        "train": rows["train"],
        "calibration": train[:CALIBRATION_ROWS],
        "validation": validation,
        "test": rows["test"],
    }


def _cut(rows: Sequence[Row], name: str, seed: int, notes: list[str]) -> dict[str, list[Row]]:
    different = len({_content(row) for row in rows})
    if different < FEWEST_ROWS:
        repeats = "" if different == len(rows) else f", {different} of them different"
        raise DataError(
            f"{name} has {_count(len(rows))}{repeats}; calibration, selection and judgement need "
            f"rows of their own: give at least {FEWEST_ROWS}, some hundred to decide anything"
        )
    calibration, rest = _part(rows, CALIBRATION, seed)
    validation, test = _part(rest, VALIDATION / (1 - CALIBRATION), seed)
    notes.append(
        f"one table of {len(rows)} rows, cut by content: {len(calibration)} calibrate, {len(validation)} select, "
        f"{len(test)} judge"
    )
    return {"train": calibration, "calibration": calibration, "validation": validation, "test": test}


def _part(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """About a share of the rows, and the others, both shuffled; rows with the same content stay together."""
    ordered = _shuffled(rows, seed)
    contents = list(dict.fromkeys(_content(row) for row in ordered))
    first = set(contents[: min(max(1, round(share * len(contents))), max(1, len(contents) - 1))])
    return [row for row in ordered if _content(row) in first], [row for row in ordered if _content(row) not in first]


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    def place(row: Row) -> str:
        return hashlib.sha256(f"{seed}:{_content(row)}".encode("utf-8", "surrogatepass")).hexdigest()

    return sorted(rows, key=place)


def _content(row: Row) -> str:
    """What a model reads of a row, as far as two rows are compared: without labels, case and blanks."""
    parts = (
        " ".join(map(str, v)) if isinstance(v, list) else _short(v) if isinstance(v, bytes) else str(v)
        for role, v in row.items()
        if role not in LABELS
    )
    return "\n".join(" ".join(part.casefold().split()) for part in parts)


def _count(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


def _short(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _digest(splits: Mapping[str, Sequence[Row]]) -> str:
    written = json.dumps(splits, sort_keys=True, default=_short)
    return hashlib.sha256(written.encode()).hexdigest()
