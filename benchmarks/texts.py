"""Texts without labels, one a line, from the train splits of ../shared/data, for fmopt optimize … --unlabelled FILE.

    .venv/bin/python benchmarks/texts.py out/texts.txt                        what embeddings are distilled on
    .venv/bin/python benchmarks/texts.py out/utterances.txt banking77 snips   the texts of these data sets

The first: captions, news, questions, encyclopaedia, abstracts and docstrings. The same texts each time, the docstrings from the
same versions of the packages that are installed beside this one. None is of a test split.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from fmopt.pydoc import docstring_pairs, pydoc_splits

DATA = Path(os.environ.get("FMOPT_DATA", Path("..", "shared", "data")))
COLUMNS = {
    "agnews": ("text",),
    "multi30k": ("en",),
    "qamr": ("context", "question"),
    "scitldr": ("title", "source"),
    "squad_small": ("context", "question"),
}
MOST = 10_000  # texts of a column
LONGEST = 80  # words of a docstring


def of_columns(chosen: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Of every column, once each."""
    for name, columns in chosen.items():
        table = pq.read_table(DATA / name / "train.parquet", columns=list(columns))
        for column in columns:
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


def main(out: Path, names: Sequence[str]) -> None:
    """Write at most `MOST` of each, on lines of their own, shuffled."""
    draw = random.Random(0)
    texts = of_columns(dict.fromkeys(names, ("text",))) if names else chain(of_columns(COLUMNS), of_docstrings())
    chosen = [" ".join(text.split()) for column in texts for text in draw.sample(column, min(MOST, len(column)))]
    draw.shuffle(chosen)
    out.write_text("".join(f"{text}\n" for text in chosen if text))
    print(f"{len(chosen)} texts, {sum(len(text.split()) for text in chosen)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
