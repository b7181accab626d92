"""Texts without labels, one a line, from the train splits of ../shared/data, for fmopt optimize … --unlabelled FILE.

    .venv/bin/python benchmarks/texts.py out/texts.txt --most 100000          all of them
    .venv/bin/python benchmarks/texts.py out/utterances.txt banking77 snips   some of these
    benchmarks/packages.sh out/packages                                       sources of many more packages, 1.5 GB
    .venv/bin/python benchmarks/texts.py out/texts.txt --most 200000 --longest 120 --sources out/packages --parts

The same texts each time, docstrings from the same versions of the packages that are installed beside this one, or lie in the
folder --sources. None is of a test split. At most 10,000 (--most) of a column. --parts adds runs of sentences of long texts.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq

from fmopt.data.builtin_docstrings import docstring_pairs, pydoc_splits

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
DOCSTRINGS, JUDGED = "docstrings", ("validation", "test")
FEWEST_SENTENCES, MOST_TOGETHER = 3, 3  # of a text that parts are made of; of a part
SENTENCE_ENDS = re.compile(r"(?<=[.!?]) +(?=[A-Z`])")


def of_columns(name: str) -> Iterator[list[str]]:
    """Of every column of a data set, once each."""
    table = pq.read_table(DATA / name / "train.parquet", columns=list(COLUMNS[name]))
    for column in COLUMNS[name]:
        yield sorted(set(table.column(column).to_pylist()))


def of_docstrings(sources: Sequence[Path], longest: int) -> Iterator[list[str]]:
    """The standard library's that are for calibration; first lines and the rest, `longest` words, of those in `sources`."""
    yield sorted(standard("calibration"))
    pairs = [pair for folder in sources for pair in docstring_pairs(folder)]
    for kind in ("query", "document"):
        found = {pair[kind] for pair in pairs} - standard(*JUDGED)  # backports have the standard library's docstrings
        yield sorted({" ".join(text.split()[:longest]) for text in found})


def standard(*splits: str) -> set[str]:
    """First lines and the rest of the standard library's docstrings in these splits."""
    own = pydoc_splits()
    return {pair[kind] for split in splits for pair in own[split] for kind in ("query", "document")}


def parts_of(texts: Sequence[str], draw: random.Random) -> set[str]:
    """Runs of one to three sentences, each from where the last one ended while there are three left."""
    found = set()
    for text in texts:
        sentences = SENTENCE_ENDS.split(text)
        while len(sentences) >= FEWEST_SENTENCES:
            count = draw.randint(1, MOST_TOGETHER)
            found.add(" ".join(sentences[:count]))
            sentences = sentences[count:]
    return found


def main(asked: argparse.Namespace) -> None:
    """Write at most `most` of each, on lines of their own, shuffled."""
    draw, names = random.Random(0), asked.names or [*COLUMNS, DOCSTRINGS]
    sources = [Path(sysconfig.get_path("purelib")), *asked.sources]
    columns = chain.from_iterable(
        of_docstrings(sources, asked.longest) if name == DOCSTRINGS else of_columns(name) for name in names
    )
    texts = [" ".join(text.split()) for column in columns for text in draw.sample(column, min(asked.most, len(column)))]
    if asked.parts:
        parts = sorted(parts_of(texts, draw) - standard(*JUDGED))
        texts += draw.sample(parts, min(asked.most, len(parts)))
    draw.shuffle(texts)
    asked.out.write_text("".join(f"{text}\n" for text in texts if text))
    print(f"{len(texts)} texts, {sum(len(text.split()) for text in texts)} words")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join([*COLUMNS, DOCSTRINGS])}; all where none is named")
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--longest", type=int, default=80, help="words of a docstring")
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="folders of Python sources, for docstrings")
    parser.add_argument("--parts", action="store_true")
    main(parser.parse_args())
