"""Real source code that is on every machine: the functions of the Python standard library.

A row is one function or method, its indentation taken away, from `def` to its last line; each text once. Splits are by
module (a package is one), so that near-copies stay on one side. Nothing is random: the same Python has the same rows in the
same order.
"""

from __future__ import annotations

import ast
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from fmopt.core.errors import DataError
from fmopt.data.builtin_docstrings import sources, split_by_module

Function = dict[str, str]  # text, module

FEWEST_LINES, MOST_LINES = 3, 40
SHARES = {"train": 0.84, "validation": 0.06, "test": 0.10}
FEWEST_FUNCTIONS = 100


def stdlib_splits(root: Path | None = None) -> dict[str, list[Function]]:
    """train, validation and test: rows of the text of a function and the module it is from.

    `root` is a folder of Python sources, by default this Python's standard library. DataError when it has too few.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found = functions(root)
    if len(found) < FEWEST_FUNCTIONS:
        raise DataError(
            f"{root} has {len(found)} functions; this Python came without its sources, give data of your own with --data"
        )
    return split_by_module(found, SHARES)


def functions(root: Path) -> list[Function]:
    """Every function below `root` of FEWEST_LINES to MOST_LINES lines that parses by itself, each text once."""
    found: dict[str, str] = {}
    for path in sources(root):
        module = path.relative_to(root).with_suffix("").parts[0]
        for text in _functions_of(path):
            found.setdefault(text, module)
    return [{"text": text, "module": module} for text, module in found.items()]


def _functions_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.end_lineno is None:
            continue
        part = lines[node.lineno - 1 : node.end_lineno]
        text = textwrap.dedent("\n".join(line.rstrip() for line in part)) + "\n"
        if FEWEST_LINES <= len(part) <= MOST_LINES and parses(text):
            yield text


def parses(text: str) -> bool:
    """Whether a text is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return False
    return True
