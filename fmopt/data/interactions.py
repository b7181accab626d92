"""Who took what and when → histories: leave-one-out splits of interactions, and the catalogue of items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmopt.core.errors import DataError
from fmopt.data.readers import READERS, Row, Table, read_file

FEWEST = 3  # interactions of a user: one to read, one to select by, one to judge by
IDS, TITLES = ("item", "item_id", "movieid", "movie_id", "id"), ("title", "name")  # columns of a table of items


def are_interactions(table: Table) -> bool:
    """Whether the rows (their columns named by role) are single interactions instead of histories."""
    return bool(table.rows) and {"user", "item", "time"} <= set(table.rows[0])


def leave_one_out(tables: Mapping[str, Table], notes: list[str]) -> dict[str, Table]:
    """Histories of all users: train has everything but the last two items, validation asks for the last but one, test for
    the last, each after all that came before it (Kang and McAuley, 2018).

    Splits that a data set has are put together: an interaction belongs where its time puts it. Users with fewer than three
    interactions are left out. DataError when nobody has as many.
    """
    where = next(iter(tables.values())).where
    users: dict[str, list[tuple[Any, str]]] = {}
    for table in tables.values():
        for number, row in enumerate(table.rows, 1):
            users.setdefault(str(row["user"]), []).append((_time(row, table.where, number), str(row["item"])))
    kept = {user: [item for _, item in sorted(taken, key=_when)] for user, taken in users.items()}
    kept = {user: taken for user, taken in kept.items() if len(taken) >= FEWEST}
    if not kept:
        raise DataError(f"{where}: no user has {FEWEST} interactions; leave-one-out needs that many of each")
    notes.append(
        f"{sum(map(len, kept.values()))} interactions of {len(kept)} users, leave-one-out: the last item of each judges, the "
        "one before it selects"
    )
    if len(kept) < len(users):
        notes.append(f"{len(users) - len(kept)} users with fewer than {FEWEST} interactions were left out")
    splits: dict[str, list[Row]] = {
        "train": [{"items": taken[:-2]} for taken in kept.values()],
        "validation": [{"items": taken[:-2], "next": taken[-2]} for taken in kept.values()],
        "test": [{"items": taken[:-1], "next": taken[-1]} for taken in kept.values()],
    }
    return {split: Table(where, rows) for split, rows in splits.items()}


def catalogue_lines(folder: Path, tables: Mapping[str, Table]) -> list[str]:
    """Every item that can be recommended, its id and title parted by a tab: those of a table `items` in the folder of the
    data, else those of the rows, whose ids are their titles."""
    content = next((folder / f"items{ending}" for ending in READERS if (folder / f"items{ending}").is_file()), None)
    taken = dict.fromkeys(item for table in tables.values() for row in table.rows for item in _items_of(row))
    if content is None:
        return [f"{item}\t{item}" for item in sorted(taken)]
    table = read_file(content)
    columns = {name.lower(): name for name in table.columns}
    names = [next((columns[name] for name in wanted if name in columns), None) for wanted in (IDS, TITLES)]
    if names[0] is None:
        raise DataError(
            f"{content} has the columns {', '.join(table.columns)}; it needs {IDS[0]}, and {TITLES[0]} if there are"
        )
    known = {str(row[names[0]]): str(row[names[1] or names[0]]) for row in table.rows}
    strange = next((item for item in taken if item not in known), None)
    if strange is not None:
        raise DataError(f"{content} has no item {strange!r}, which somebody took; add it")
    return [f"{item}\t{' '.join(title.split())}" for item, title in known.items()]


def _items_of(row: Row) -> list[str]:
    single = [str(row[role]) for role in ("item", "next") if row.get(role) is not None]
    return [*(str(item) for item in row.get("items") or []), *single]


def _time(row: Row, where: str, number: int) -> Any:
    """A time that sorts: a number, also where a csv wrote it as text; else the text itself, as ISO 8601 sorts."""
    try:
        return float(row["time"])
    except ValueError:
        return str(row["time"])
    except TypeError as error:
        raise DataError(f"{where}, row {number}: time is {row['time']!r}; give a number or a date") from error


def _when(taken: tuple[Any, str]) -> tuple[bool, Any]:
    return isinstance(taken[0], str), taken[0]  # numbers before texts; stable, so that ties keep the data's order
