"""Real retrieval data that is on every machine: the standard library's own docstrings.

Query: the first line of a function's or class's docstring. Document: the rest of it. A model that embeds meaning finds
the rest from the first line. Splits are by module, so that near-copies within a module stay on one side.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "ensurepip",
    "turtledemo",
}
FEWEST_QUERY_WORDS, FEWEST_DOCUMENT_WORDS = 3, 8
CALIBRATION, VALIDATION = 0.2, 0.25  # shares of the modules; the rest judges


def pydoc_splits(root: Path | None = None) -> dict[str, list[dict[str, str]]]:
    """calibration, validation and test: rows of query, document and the module they are from."""
    root = root or Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[dict[str, str]]] = {"calibration": [], "validation": [], "test": []}
    queries: set[str] = set()
    documents: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if LEFT_OUT & set(module.parts):
            continue
        for query, document in docstring_pairs(path):
            if query in queries or document in documents:
                continue
            queries.add(query)
            documents.add(document)
            splits[split_of(str(module))].append({"query": query, "document": document, "module": str(module)})
    return splits


def split_of(module: str) -> str:
    """The split of a module: a hash of its path decides."""
    share = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) / 2**32
    return "calibration" if share < CALIBRATION else "validation" if share < CALIBRATION + VALIDATION else "test"


def docstring_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """First line and rest of every docstring in a file that has both."""
    try:
        source = path.read_text("utf8")
        if '"""' not in source and "'''" not in source:
            return
        tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first, _, rest = (ast.get_docstring(node) or "").partition("\n")
            query, document = " ".join(first.split()), " ".join(rest.split())
            if len(query.split()) >= FEWEST_QUERY_WORDS and len(document.split()) >= FEWEST_DOCUMENT_WORDS:
                yield query, document
