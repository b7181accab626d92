"""Texts without labels, one a line, from the train splits of ../shared/data, for fmopt optimize … --unlabelled FILE.

    .venv/bin/python benchmarks/texts.py out/texts.txt --most 100000          all of them
    .venv/bin/python benchmarks/texts.py out/utterances.txt banking77 snips   some of these

The same texts each time, docstrings from the same versions of the packages that are installed beside this one. None is of a
test split. At most 10,000 (--most) of a column.
"""

from __future__ import annotations

import argparse
import os
import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from fmopt.pydoc import docstring_pairs, pydoc_splits

DATA = Path(os.environ.get("FMOPT_DATA", Path("..", "shared", "data")))
COLUMNS = {
    "agnews": ("title", "text"),
    "banking77": ("text",),
    "clinc150": ("text",),
    "multi30k": ("en",),
    "qamr": ("context", "question"),
    "scitldr": ("title", "source"),
    "sick": ("sentence1", "sentence2"),
    "snips": ("text",),
    "squad_small": ("context", "question"),
}
DOCSTRINGS = "docstrings"
LONGEST = 80  # words of a docstring


def of_columns(name: str) -> Iterator[list[str]]:
    """Of every column of a data set, once each."""
    table = pq.read_table(DATA / name / "train.parquet", columns=list(COLUMNS[name]))
    for column in COLUMNS[name]:
        yield sorted(set(table.column(column).to_pylist()))


def of_docstrings() -> Iterator[list[str]]:
    """The standard library's that are for calibration; first lines and the rest of those of the packages installed here."""
    own = pydoc_splits()
    yield sorted({pair[kind] for pair in own["calibration"] for kind in ("query", "document")})
    judged = {pair[kind] for split in ("validation", "test") for pair in own[split] for kind in ("query", "document")}
    pairs = docstring_pairs(Path(sysconfig.get_path("purelib")))
    for kind in ("query", "document"):
        found = {pair[kind] for pair in pairs} - judged  # backports have the standard library's docstrings
        yield sorted({" ".join(text.split()[:LONGEST]) for text in found})


def main(out: Path, names: Sequence[str], most: int) -> None:
    """Write at most `most` of each, on lines of their own, shuffled."""
    draw = random.Random(0)
    columns = chain.from_iterable(of_docstrings() if name == DOCSTRINGS else of_columns(name) for name in names)
    chosen = [" ".join(text.split()) for column in columns for text in draw.sample(column, min(most, len(column)))]
    draw.shuffle(chosen)
    out.write_text("".join(f"{text}\n" for text in chosen if text))
    print(f"{len(chosen)} texts, {sum(len(text.split()) for text in chosen)} words")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*COLUMNS, DOCSTRINGS])}; all where none is named")
    parser.add_argument("--most", type=int, default=10_000)
    options = parser.parse_args()
    main(options.out, options.names or [*COLUMNS, DOCSTRINGS], options.most)
