"""Real retrieval data that is on every machine: the standard library's own docstrings.

Query: the first line of a function's or class's docstring. Document: the rest of it. A model that embeds meaning finds
the rest from the first line. Splits are by module (a package is one), so that near-copies stay on one side. Nothing is
random: the same Python has the same pairs in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from fmopt.core.errors import DataError
from fmopt.edge.host import cache_folder, writable_by_others

Pair = dict[str, str]  # query, document, module

LEFT_OUT = frozenset(
    {
        "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "ensurepip",
        "turtledemo", "__pycache__",
    }
)  # fmt: skip
FEWEST_QUERY_WORDS, FEWEST_DOCUMENT_WORDS = 3, 8
SHARES = {"calibration": 0.20, "validation": 0.35, "test": 0.45}
FEWEST_PAIRS = 100  # a Python stripped of its docstrings has none
STATEMENTS = ("body", "handlers", "orelse", "finalbody", "cases")  # where an ast node keeps them


def pydoc_splits(root: Path | None = None) -> dict[str, list[Pair]]:
    """calibration, validation and test: rows of query, document and the module they are from.

    `root` is a folder of Python sources, by default this Python's standard library. DataError when it has too few.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    pairs = _kept_pairs(root)
    if len(pairs) < FEWEST_PAIRS:
        raise DataError(
            f"{root} has {len(pairs)} docstrings to make retrieval data of; this Python came without its sources, "
            "give data of your own with --data"
        )
    return split_by_module(pairs)


def split_by_module(pairs: list[Pair], shares: Mapping[str, float] = SHARES) -> dict[str, list[Pair]]:
    """Rows by split. Whole modules go, in the order of a hash, to the split that is furthest below its share."""
    groups: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair["module"]].append(pair)
    splits: dict[str, list[Pair]] = {name: [] for name in shares}
    for module in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        emptiest = min(shares, key=lambda name: len(splits[name]) / shares[name])
        splits[emptiest] += groups[module]
    return splits


def docstring_pairs(root: Path) -> list[Pair]:
    """Every docstring below `root` that has a first line and a rest; each query and each document once."""
    found, queries, documents = [], set(), set()
    for path in sources(root):
        module = path.relative_to(root).with_suffix("").parts[0]
        for query, document in _pairs_of(path):
            if query not in queries and document not in documents:
                queries.add(query)
                documents.add(document)
                found.append({"query": query, "document": document, "module": module})
    return found


def sources(root: Path) -> Iterator[Path]:
    """The Python files below `root` in a fixed order, without tests and what comes from elsewhere."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


def _pairs_of(path: Path) -> Iterator[tuple[str, str]]:
    try:
        source = path.read_text("utf-8")
        if '"""' not in source:  # one line in other quotes has no rest
            return
        tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return
    for node in _documented(tree):
        first, _, rest = (ast.get_docstring(node) or "").partition("\n")
        query, document = " ".join(first.split()), " ".join(rest.split())
        if len(query.split()) >= FEWEST_QUERY_WORDS and len(document.split()) >= FEWEST_DOCUMENT_WORDS:
            yield query, document


def _documented(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes in the order of the source, those inside others too.

    Only statements are walked: expressions hold no definitions and are most of a tree.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        inner = [part for name in STATEMENTS for part in getattr(node, name, None) or ()]
        waiting += reversed(inner)


def _kept_pairs(root: Path) -> list[Pair]:
    """The pairs, from the user's cache where this Python's sources were read before (reading them takes seconds)."""
    made_from = (platform.python_version(), str(root), Path(__file__).read_bytes().hex(), _stamp(root))
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    path = cache_folder() / f"pydoc-{key}.json.z"
    try:
        if writable_by_others(path.parent):
            raise OSError("what lies there may be anybody's")
        kept: list[Pair] = json.loads(zlib.decompress(path.read_bytes()))
        return kept
    except (OSError, ValueError, zlib.error):
        pairs = docstring_pairs(root)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):  # no cache is only slower
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(zlib.compress(json.dumps(pairs).encode()))
        beside.replace(path)
    with suppress(OSError):
        beside.unlink(missing_ok=True)
    return pairs


def _stamp(root: Path) -> str:
    """Changes with every source file: a patched standard library has other docstrings under the same version."""
    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in sources(root)]
    return hashlib.sha256(repr(stamps).encode()).hexdigest()
