"""Texts without labels, one a line, from the train splits of ../shared/data, for fmopt optimize … --unlabelled.

    .venv/bin/python benchmarks/texts.py general out/texts.txt            what embeddings are distilled on
    .venv/bin/python benchmarks/texts.py utterances out/utterances.txt    what people ask of other assistants than CLINC150's

General: captions, news, questions, encyclopaedia, abstracts and docstrings. The same texts each time, none of a test split.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from fmopt.pydoc import pydoc_splits

DATA = Path(os.environ.get("FMOPT_DATA", Path("..", "shared", "data")))
COLUMNS = {
    "general": {
        "agnews": ("text",),
        "multi30k": ("en",),
        "qamr": ("context", "question"),
        "scitldr": ("title", "source"),
        "squad_small": ("context", "question"),
    },
    "utterances": {"banking77": ("text",), "snips": ("text",)},
}
MOST = 10_000  # texts of a column


def texts(kind: str) -> Iterator[list[str]]:
    """Of every column, once each; general ones end with the docstrings that are for calibration."""
    for name, columns in COLUMNS[kind].items():
        table = pq.read_table(DATA / name / "train.parquet", columns=list(columns))
        for column in columns:
            yield sorted(set(table.column(column).to_pylist()))
    if kind == "general":
        pairs = pydoc_splits()["calibration"]
        yield sorted({pair[part] for pair in pairs for part in ("query", "document")})


def main(kind: str, out: Path) -> None:
    """Write at most `MOST` of each, on lines of their own, shuffled."""
    draw = random.Random(0)
    chosen = [" ".join(text.split()) for column in texts(kind) for text in draw.sample(column, min(MOST, len(column)))]
    draw.shuffle(chosen)
    out.write_text("".join(f"{text}\n" for text in chosen if text))
    print(f"{len(chosen)} texts, {sum(len(text.split()) for text in chosen)} words")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
