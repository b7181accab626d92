"""Labels as people write them → labels as a task reads them, and what is said of those that no model knows.

A column decides as a whole: one list of yes and no in every row is a vector of all classes, numbers that are all names of
classes are names. What is ambiguous is left as it is, to be refused by its row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.data.readers import Row, Table
from fmopt.tasks.base import Output, Task, Unseen, label_index, name_key

CLASSES = {
    "label": ("", "label", "labels", "intents", "classes"),
    "tags": ("", "tags", "ner_tags", "labels"),
    "classes": ("", "classes", "labels", "categories"),
}

MARKED = ("label", "tags")  # roles whose labels a model may lack and is judged by all the same
MOST_UNSEEN = 0.2  # of all labels that are something; with more of them the data is for another model
SHOWN = 5  # names in a note


# ------------------------------------------------------------------------------------------------ what a column means


def read_labels(tables: Mapping[str, Table], task: Task, metadata: CheckpointMetadata, names: Sequence[str]) -> None:
    """Whole floats become numbers, vectors of yes and no the classes that hold, numbers that are names the names; in place.

    `names` are those that the data itself gives to its ids.
    """
    role = task.class_role
    if role is None:
        return
    rows = [row for table in tables.values() for row in table.rows]
    labels = [str(label) for label in metadata.pipeline.get("labels") or ()]
    if any(role in row for row in rows):
        _each(rows, role, _parsed if metadata.pipeline.get("multi_label") or role != "label" else _whole)
        _read_vectors(
            rows, role, len(names or labels), several=bool(metadata.pipeline.get("multi_label")) or not labels
        )
        if labels and not names:
            _read_digits(rows, role, labels)
    if not labels:
        _count_labels(rows)


def _each(rows: Iterable[Row], role: str, read: Any) -> None:
    for row in rows:
        if role in row:
            row[role] = read(row[role])


def _parsed(value: Any) -> Any:
    """A value, a list written as JSON read."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return _whole(value)


def _whole(value: Any) -> Any:
    """The value, a whole float as a number: a column with a gap in it comes as floats."""
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(float(value)) if isinstance(value, str) and re.fullmatch(r"\s*\d+\.0*\s*", value) else value


def _read_vectors(rows: Sequence[Row], role: str, classes: int, *, several: bool) -> None:
    """Of rows that all hold a vector of 0 and 1, one for each class, the classes that hold; of a model with one label a row,
    the one."""
    given = [row[role] for row in rows if row.get(role) is not None]
    if role != "label" or not given or not all(isinstance(value, list) for value in given):
        return
    sizes = {len(value) for value in given}
    size = classes or next(iter(sizes))
    flags = all(isinstance(one, int) and one in (0, 1) for value in given for one in value)
    # [0, 1] could be the classes 0 and 1 of two; where every row says so, it says yes and no.
    if sizes != {size} or size < 2 or not flags:
        return
    if not several and any(sum(value) != 1 for value in given):
        return
    for row in rows:
        if row.get(role) is not None:
            held = [number for number, one in enumerate(row[role]) if one]
            row[role] = held if several else held[0]


def _read_digits(rows: Sequence[Row], role: str, labels: Sequence[str]) -> None:
    """Of a model whose classes are called by digits ("1" to "5" for stars): whether the data's numbers are names or ids."""
    if not all(label.strip().isdecimal() for label in labels) or [int(label) for label in labels] == list(
        range(len(labels))
    ):
        return
    given = [one for row in rows for one in _listed(row.get(role)) if one is not None]
    numbers = {int(one) for one in given if isinstance(one, int) or (isinstance(one, str) and one.strip().isdecimal())}
    if not given or len(numbers) < len(set(map(str, given))):
        return
    by_name = {str(int(label)): label for label in labels}
    if all(str(number) in by_name for number in numbers):
        _each(rows, role, lambda value: _mapped(value, lambda one: by_name[str(int(one))]))
    else:
        _each(rows, role, lambda value: _mapped(value, int))


def _mapped(value: Any, make: Any) -> Any:
    return None if value is None else [make(one) for one in value] if isinstance(value, list) else make(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _count_labels(rows: Sequence[Row]) -> None:
    """Where no model says what labels are called, numbers that a csv wrote as text are numbers."""
    content = [row["label"] for row in rows if "label" in row]
    if content and all(isinstance(value, str) and value.isdecimal() for value in content):
        for row in rows:
            row["label"] = int(row["label"])


# ------------------------------------------------------------------------------------------------ names of ids


def names_of_ids(table: Table, written: Mapping[str, tuple[str, ...]], task: Task) -> tuple[str, ...]:
    """Names of the label ids: those of labels.json, else those in the file's own schema."""
    role = task.class_role
    if role is None:
        return ()
    return next((written[key] for key in CLASSES[role] if key in written), table.names.get(role, ()))


def numbered_like(names: Sequence[str], metadata: CheckpointMetadata) -> bool:
    """True when ids mean the same to data and model, as far as the model says."""
    labels = metadata.pipeline.get("labels") or []
    unnamed = all(re.fullmatch(r"label_\d+", label.lower()) for label in labels)
    return unnamed or [name_key(name) for name in names] == [name_key(label) for label in labels]


def name_labels(rows: Iterable[Row], names: Sequence[str]) -> None:
    """Ids become names, by which the model's own ids are found. An id without a name stays, to be refused by its row."""

    def named(value: Any) -> Any:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else value

    for row in rows:
        for role in CLASSES:
            if isinstance(row.get(role), list):
                row[role] = [named(value) for value in row[role]]
            elif role in row:
                row[role] = named(row[role])


def spell_classes(table: Table, written: Mapping[str, tuple[str, ...]]) -> None:
    """Transcripts that are ids of classes ("7") become what the classes are called ("seven")."""
    names = next((written[key] for key in CLASSES["label"] if key in written), table.names.get("transcript", ()))
    for row in table.rows:
        content = row.get("transcript")
        if isinstance(content, int) and 0 <= content < len(names):
            row["transcript"] = names[content]


# ------------------------------------------------------------------------------------------------ what no model knows


def mark_unseen(tables: Mapping[str, Table], task: Task, metadata: CheckpointMetadata) -> Iterator[str]:
    """Names of labels that the model does not have, where they are few, become `Unseen`: such an item is judged, and missed.

    Rare ones are often in the test split alone. Yields a line for every split that has some.
    """
    labels = metadata.pipeline.get("labels") or []
    role = task.class_role
    if not labels or role not in MARKED:
        return
    for split, table in tables.items():
        found = mark_rows(table.rows, role, labels, MOST_UNSEEN)
        if found:
            names = ", ".join(list(found)[:SHOWN]) + (", …" if len(found) > SHOWN else "")
            where = f"the {split} split" if split else "the data"
            yield (
                f"{sum(found.values())} labels of {where} are of {len(found)} that the model does not have ({names}): "
                "judged, and counted as missed"
            )


def mark_rows(rows: Sequence[Row], role: str, labels: Sequence[str], most: float = 1.0) -> Counter[str]:
    """Mark the labels of rows that are not among `labels`, when they are at most a share of all that are something; how often
    each is there."""
    counts = Counter(one for row in rows for one in _listed(row.get(role)) if isinstance(one, str) and one != "O")
    unknown = {name for name in counts if not _known(name, labels)}
    found = Counter({name: counts[name] for name in counts if name in unknown})
    if not found or sum(found.values()) > most * sum(counts.values()):
        return Counter()
    for row in rows:
        if any(one in unknown for one in _listed(row.get(role)) if isinstance(one, str)):
            row[role] = _mapped(row[role], lambda one: Unseen(one) if isinstance(one, str) and one in unknown else one)
    return found


def _known(name: str, labels: Sequence[str]) -> bool:
    try:
        label_index(name, labels, 0)
    except DataError:
        # what looks like a list or a number is another fault than a rare name
        return (
            bool(re.match(r"\s*[\[{\d-]", name))
            or "," in name
            or any(name_key(name) == name_key(one) for one in labels)
        )
    return True


def unanswerable(tables: Mapping[str, Table], task: Task, metadata: CheckpointMetadata) -> Iterator[str]:
    """A line on questions that have no answer, and on what the model may say to them."""
    rows = [row for table in tables.values() for row in table.rows if "answers" in row]
    nothing = sum(not task.items([row], metadata)[0].label for row in rows) if task.output is Output.SPAN else 0
    if nothing and not metadata.pipeline.get("no_answer"):
        yield (
            f"{nothing} of {len(rows)} questions have no answer, and this model always gives one, which counts as wrong; if it "
            'was trained to give none, say so with "no_answer": true in its config.json'
        )


def check_labels(table: Table, task: Task, metadata: CheckpointMetadata) -> None:
    """DataError on the first label that the model does not know; a model yet to be trained knows none."""
    role = task.class_role
    if role in table.rows[0] and role != "classes" and not metadata.pipeline.get("labels"):
        return
    try:
        task.items(table.rows, metadata)
    except DataError as error:
        raise DataError(f"{table.where}: {error}") from error
