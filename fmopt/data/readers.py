"""Files of data → tables of rows: csv, tsv, JSON, JSON Lines, parquet, npz, plain text (those of text gzipped too), folders
with one file per split or one folder per class, folders of `datasets`' save_to_disk, hub data sets.

Knows formats and nothing of tasks. What cannot be read is a DataError that names the file and the place in it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import DataError, reading
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import parsed

Row = dict[str, Any]
Names = Mapping[str, tuple[str, ...]]  # column → names of its label ids

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
MISSING = frozenset({"", "nan", "NaN"})  # how csv writers say that there is no value
SENTENCE_END = re.compile(r"(?<=[.!?…]['\"’”)])\s+|(?<=[.!?…])\s+")
# Files that are a row by themselves, in folders named after their classes: column → endings.
MEDIA = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes
# What a file may become in memory; a megabyte of a bomb becomes a gigabyte, and data sets that judge have some thousand rows.
LARGEST_UNPACKED, MOST_ROWS, LARGEST_MEDIA = 2 << 30, 20_000_000, 256 << 20
PASSAGE_WORDS = 64  # fewest of a passage of plain text: some 90 tokens, so that most fit a network of 128


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where they were."""

    where: str
    rows: list[Row]
    names: Names = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in the order of the file."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_file(path: Path) -> Table:
    """The rows of a csv, tsv, JSON, JSON Lines, parquet or npz file; the passages of a plain text, also a gzipped one."""
    reader = READERS.get(suffix(path))
    if reader is None:
        raise DataError(f"{path} is no data file by its name: give one that ends in {', '.join(READERS)}")
    with reading(path, DataError, "mend the file, or get it again"):
        try:
            require_plain(path, path)
            if path.stat().st_size == 0:
                raise DataError(f"{path} is empty; give a file with some hundred rows")
            return reader(path)
        except UnicodeDecodeError as error:
            if error.object[:64].count(0) > 8:
                raise DataError(
                    f"{path} is UTF-16 or UTF-32 without its mark; convert it: iconv -f utf-16le -t utf8 (or utf-32le)"
                ) from error
            raise DataError(
                f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; convert it, for example with "
                f"iconv -f latin1 -t utf8"
            ) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def require_plain(path: Path, named: object) -> None:
    """DataError unless a path is that of a plain file: a device or a FIFO may never end. `named` is how the user knows it."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise DataError(f"{named} is {kind}; give a file")


def bytes_beside(folder: Path, name: str, where: str) -> bytes:
    """A file that a row of data names, within the folder that the data lie in. DataError for any other, or one too large."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise DataError(f"{where} {name[:80]!r} lies outside {folder}; keep files that a table names beside it")
        require_plain(path, f"{where} {name[:80]!r}")
        if path.stat().st_size > LARGEST_MEDIA:
            raise DataError(f"{where} {name[:80]!r} has {path.stat().st_size:,} bytes; the most is {LARGEST_MEDIA:,}")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{where} {name[:80]!r} cannot be read: {said}") from error


def suffix(path: Path) -> str:
    """The ending that says how a file is read, such as ".csv" or ".txt.gz"; "" when it is none of READERS."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def read_folder(folder: Path) -> dict[str, Table]:
    """Tables by split: train, validation and test, of each what there is; parts of one split are put together."""
    if any((folder / name).is_file() for name in SAVED):
        return _read_saved(folder)
    found = {}
    for split, stems in SPLITS.items():
        part = re.compile(rf"(?:{'|'.join(stems)})(?:-\d+-of-\d+)?")
        files = [
            path for path in sorted(folder.iterdir())
            if suffix(path) and part.fullmatch(path.name.lower().removesuffix(suffix(path)))
        ]  # fmt: skip
        if len({suffix(path) for path in files}) > 1 or (len(files) > 1 and any("-of-" not in p.name for p in files)):
            raise DataError(f"{folder} has several files for {split}: {_listed(files)}; keep one")
        if files:
            tables = [read_file(path) for path in files]
            rows = [row for table in tables for row in table.rows]
            found[split] = Table(str(files[0]), rows, tables[0].names)
    found |= {split: table for split, table in _media_splits(folder).items() if split not in found}
    if not found and (folder / "data").is_dir():  # how the hub lays out its repositories
        return read_folder(folder / "data")
    if not found:
        found = _read_saved_inside(folder)
    if not found:
        raise DataError(
            f"{folder} has no file for a split (train, validation or test, as {', '.join(READERS)}); it has "
            f"{_listed(sorted(folder.iterdir())) or 'nothing'}"
        )
    return found


def _media_splits(folder: Path) -> dict[str, Table]:
    """Tables of image or audio files: of train/CLASS/FILE, validation/CLASS/FILE, …, or of CLASS/FILE without splits ("")."""
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    homes = {split: inside[stem] for split, stems in SPLITS.items() for stem in stems if stem in inside}
    found = {split: _read_media(home) for split, home in (homes or {"": folder}).items()}
    return {split: table for split, table in found.items() if table.rows}


def _read_media(folder: Path) -> Table:
    """A row for every file of MEDIA in the folders of `folder`, which are its classes."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*/*")):
        column = next((name for name, endings in MEDIA.items() if path.suffix.lower() in endings), None)
        if column is not None:
            rows.append(
                {
                    column: bytes_beside(folder, path.relative_to(folder).as_posix(), f"{folder}: {column}"),
                    "label": path.parent.name,
                }
            )
    return Table(str(folder), rows)


def _read_saved(folder: Path) -> dict[str, Table]:
    """Tables by split of a folder that `datasets` wrote with save_to_disk; "" for one without splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds; the user needs the one line
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{folder} cannot be read as a data set of save_to_disk: {first[0][:160]}; save it again"
        ) from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    return _by_split(str(folder), splits)


def _read_saved_inside(folder: Path) -> dict[str, Table]:
    """Tables of folders of save_to_disk that lie in another: one for each split, or a single one of any name."""
    inside = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and any((path / name).is_file() for name in SAVED)
    ]
    splits = {split: path for split, stems in SPLITS.items() for path in inside if path.name.lower() in stems}
    if splits:
        return {split: table for split, path in splits.items() for table in _read_saved(path).values()}
    return _read_saved(inside[0]) if len(inside) == 1 else {}


def _by_split(name: str, loaded: Mapping[str, Any]) -> dict[str, Table]:
    """Tables of the splits that fmopt reads, of data sets of the library `datasets`."""
    splits = {split: alias for alias, stems in SPLITS.items() for split in loaded if split in stems}
    splits |= {"": ""} if list(loaded) == [""] else {}
    if not splits:
        raise DataError(f"{name} has the splits {', '.join(loaded)}; fmopt reads train, validation and test")
    return {
        alias: Table(
            f"{name} ({split})" if split else name,
            loaded[split].to_list(),
            _class_names(loaded[split].features.to_dict()),
        )
        for split, alias in splits.items()
    }


def read_hub(name: str) -> dict[str, Table]:
    """Tables by split of a hub data set `owner/name` or `owner/name:configuration`. The only reader that uses the network."""
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the hub's client raises many kinds; the user needs the one line
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"there is no file or folder {name}, and as a hub data set it could not be had: {first[0][:200]}"
        ) from error
    return _by_split(name, loaded)


def label_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Names of label ids from a labels.json: one list (under ""), or lists by what they name; empty without the file."""
    if not path.is_file():
        return {}
    try:
        content = parsed(path.read_bytes(), path.name, object)
    except EdgeError as error:
        raise DataError(
            f"{path} is not JSON: {error}; write a list of label names in the order of their ids"
        ) from error
    lists = {"": content} if isinstance(content, list) else content
    if not isinstance(lists, dict) or not all(_is_names(names) for names in lists.values()):
        raise DataError(f"{path} is no list of label names; write them in the order of their ids")
    return {key: tuple(names) for key, names in lists.items()}


# ------------------------------------------------------------------------------------------------ formats


def _text_of(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 where it begins with that mark, as spreadsheets write; .gz files are unpacked."""
    content = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as stream:
                content = stream.read(LARGEST_UNPACKED + 1)
            require_bounded(path, len(content))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}; get the file again") from error
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} begins as UTF-16 and is not: {error.reason}; save it as UTF-8") from error
    return content.decode("utf-8-sig")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON pairs; ValueError when it has a name twice: json would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return found


def _refuse_twice(names: Sequence[str], path: Path) -> None:
    """DataError when two columns have one name: which of them is meant is ambiguous."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns called {twice!r}; rename one, or drop it")


def _read_csv(path: Path) -> Table:
    """Comma-separated (or with semicolons, as some spreadsheets write) with a line of column names. All values are text."""
    text = _text_of(path)
    header = text.split("\n", 1)[0]
    delimiter = ";" if "," not in header and ";" in header else ","
    return _delimited(path, text, delimiter, csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> Table:
    """Tab-separated. Quotes are characters like others (GLUE writes them bare) unless the whole file quotes by the rules."""
    text = _text_of(path)
    if re.search(r'(?:^|\t)"', text, re.MULTILINE):
        try:
            return _delimited(path, text, "\t", csv.QUOTE_MINIMAL)
        except DataError:
            pass
    return _delimited(path, text, "\t", csv.QUOTE_NONE)


def _delimited(path: Path, text: str, delimiter: str, quoting: Any) -> Table:
    # csv ends a line at \r, \n or both, and nowhere else: str.splitlines would also cut at characters inside texts
    lines = csv.reader(re.split(r"(?<=\n)|(?<=\r)(?!\n)", text), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[Row] = []
    header: list[str] = []
    begun = 1  # the line where a row begins: a quote that is never closed runs to the end of the file
    try:
        for fields in lines:
            if not header:
                header = [name.strip() for name in fields]
                _refuse_twice(header, path)
            elif fields and len(fields) != len(header):
                raise DataError(
                    f"{path}, line {begun}: {len(fields)} fields, but there are {len(header)} columns "
                    f"({', '.join(header)}); quote a text that holds the separator"
                )
            elif fields:
                rows.append(
                    {name: None if value in MISSING else value for name, value in zip(header, fields, strict=True)}
                )
            begun = lines.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {begun}: {error}; is a quote not closed?") from error
    return Table(str(path), rows)


def _read_json_lines(path: Path) -> Table:
    rows = []
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=_once))
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); write one object per line") from error
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}; rename one of them") from error
            if not isinstance(rows[-1], dict):
                raise DataError(f"{path}, line {number}: {line.strip()[:40]} is no object; write one per line")
    return Table(str(path), rows)


def _read_json(path: Path) -> Table:
    """A list of objects, {"data": list}, {"column": list, …}, SQuAD's nested form, or JSON Lines under another name."""
    try:
        content = json.loads(_text_of(path), object_pairs_hook=_once)
    except (json.JSONDecodeError, RecursionError):
        return _read_json_lines(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; rename one of them") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
        if content and isinstance(content[0], dict) and "paragraphs" in content[0]:
            content = list(_squad_rows(content))
    elif isinstance(content, dict) and content and all(isinstance(values, list) for values in content.values()):
        if len({len(values) for values in content.values()}) > 1:
            raise DataError(f"{path} has columns of different length; write a list of objects")
        content = [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path} is no list of objects; write one object per row, or one per line as .jsonl")
    return Table(str(path), content)


def _squad_rows(articles: Iterable[Mapping[str, Any]]) -> Iterable[Row]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                content = asked.get("answers")
                row = {"question": asked["question"], "context": paragraph["context"]}
                if content is not None:
                    row["answers"] = [answer["text"] for answer in content]
                    row["answer_starts"] = [answer.get("answer_start") for answer in content]
                yield row


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as stored:
            groups = [stored.metadata.row_group(number) for number in range(stored.metadata.num_row_groups)]
            unpacked = sum(
                group.column(at).total_uncompressed_size for group in groups for at in range(group.num_columns)
            )
            require_bounded(path, unpacked, stored.metadata.num_rows)
            table = stored.read()
        require_bounded(path, table.nbytes, table.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {(str(error).splitlines() or [''])[0][:160]}") from error
    _refuse_twice(table.column_names, path)
    written = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return Table(str(path), table.to_pylist(), _class_names(written.get("info", {}).get("features") or {}))


def _read_npz(path: Path) -> Table:
    """Arrays side by side, one item of each a row. With `offsets` (n + 1), row i holds what lies between two of them in the
    arrays that are as long as the last one says; an array without axes is the same in every row."""
    try:
        with zipfile.ZipFile(path) as packed:
            require_bounded(path, sum(member.file_size for member in packed.infolist()))
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except DataError:
        raise
    except Exception as error:  # every kind of damage has its own
        raise DataError(f"{path} cannot be read as npz: {str(error)[:160] or type(error).__name__}") from error
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise DataError(f"{path} holds no arrays, or something else than arrays; write it with numpy.savez")
    offsets = arrays.pop("offsets", None)
    if offsets is not None:
        whole = offsets.ndim == 1 and len(offsets) > 0 and offsets.dtype.kind in "iu"
        if not whole or offsets[0] < 0 or (np.diff(offsets.astype(np.int64)) < 0).any():
            raise DataError(f"{path}: offsets are no row of places, each at or after the one before")
    same = {name: array.item() for name, array in arrays.items() if array.ndim == 0}
    each = {name: array for name, array in arrays.items() if array.ndim}
    pooled = {name: a for name, a in each.items() if offsets is not None and len(a) == offsets[-1] != len(offsets) - 1}
    each = {name: array for name, array in each.items() if name not in pooled}
    counts = {name: len(array) for name, array in each.items()} | (
        {} if offsets is None else {"offsets": len(offsets) - 1}
    )
    if len(set(counts.values())) != 1:
        raise DataError(f"{path} has arrays of different length ({counts}); give one item of each for every row")
    rows: list[Row] = []
    for number in range(next(iter(counts.values()))):
        row: Row = {name: array[number] if array.ndim > 1 else array[number].item() for name, array in each.items()}
        row |= {name: array[offsets[number] : offsets[number + 1]] for name, array in pooled.items()}
        rows.append(row | same)
    return Table(str(path), rows)


def _read_text(path: Path) -> Table:
    """Passages of plain text: paragraphs (parted by empty lines) joined, or cut at ends of sentences, to PASSAGE_WORDS words
    or a little more. Lines within a paragraph are joined: books wrap them."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", _text_of(path).replace("\r\n", "\n")):
        flat = " ".join(paragraph.split())
        parts += SENTENCE_END.split(flat) if len(flat.split()) > 2 * PASSAGE_WORDS else [flat]
    rows: list[Row] = []
    held: list[str] = []
    for part in parts:
        held += part.split()
        while len(held) > 2 * PASSAGE_WORDS:  # a sentence without end, or a text without sentences
            rows.append({"text": " ".join(held[:PASSAGE_WORDS])})
            del held[:PASSAGE_WORDS]
        if len(held) >= PASSAGE_WORDS:
            rows.append({"text": " ".join(held)})
            held = []
    if held:
        rows.append({"text": " ".join(held)})
    if not rows:
        raise DataError(f"{path} is empty; give a text of some thousand words")
    return Table(str(path), rows)


def require_bounded(path: Path, unpacked: int, rows: int = 0) -> None:
    """DataError for a file that becomes too much when it is unpacked."""
    if unpacked > LARGEST_UNPACKED or rows > MOST_ROWS:
        raise DataError(
            f"{path} holds {unpacked / 1e9:.1f} GB unpacked, {rows:,} rows; the most is {LARGEST_UNPACKED / 1e9:.0f} GB and "
            f"{MOST_ROWS:,} rows: give a part of it"
        )


def _class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Columns whose ids have names in a `datasets` schema, alone or in lists."""
    found = {}
    for column, feature in features.items():
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            found[column] = tuple(feature["names"])
    return found


def _is_names(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(name, str) for name in content)


def _listed(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


READERS: Mapping[str, Callable[[Path], Table]] = {
    **dict.fromkeys((".csv", ".csv.gz"), _read_csv),
    **dict.fromkeys((".tsv", ".tsv.gz"), _read_tsv),
    **dict.fromkeys((".jsonl", ".jsonl.gz"), _read_json_lines),
    **dict.fromkeys((".json", ".json.gz"), _read_json),
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".txt": _read_text,
    ".txt.gz": _read_text,
}
