"""Source code of the standard library as data for language models, and how completions of it are judged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fmopt.core.errors import DataError
from fmopt.data import builtin_code

ROOT = Path(__file__).resolve().parents[2]
METHOD = '''class C:
    def area(self, width):
        """Twice.

        More.
        """
        return 2 * width
'''


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_completions", ROOT / "benchmarks" / "code_completions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(root: Path, modules: int) -> Path:
    root.mkdir(exist_ok=True)
    for number in range(modules):
        functions = [f"def f{number}_{each}(x):\n    y = x + {each}\n    return y\n" for each in range(4)]
        (root / f"m{number}.py").write_text("\n\n".join(functions))
    return root


def test_functions_are_whole_dedented_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(METHOD)
    (tmp_path / "b.py").write_text(METHOD + "\n\ndef one(): return 1\n")  # a copy, and one that is too short
    (tmp_path / "c.py").write_text("def broken(:\n    a\n    b\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "d.py").write_text("def t():\n    a = 1\n    return a\n")
    (row,) = builtin_code.functions(tmp_path)
    assert row["module"] == "a"
    assert row["text"].startswith('def area(self, width):\n    """Twice.\n')
    assert row["text"].endswith("    return 2 * width\n")


def test_splits_are_by_module_and_the_same_each_time(tmp_path: Path) -> None:
    splits = builtin_code.stdlib_splits(library(tmp_path, 50))
    assert sum(map(len, splits.values())) == 200
    modules = [{row["module"] for row in rows} for rows in splits.values()]
    assert sum(map(len, modules)) == len(set().union(*modules))
    for name, share in builtin_code.SHARES.items():
        assert len(splits[name]) == pytest.approx(200 * share, abs=8)
    assert builtin_code.stdlib_splits(tmp_path) == splits


def test_a_python_without_sources_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 8 functions; this Python came without its sources"):
        builtin_code.stdlib_splits(library(tmp_path, 2))


def test_a_completion_parses_by_whole_lines() -> None:
    script = _script()
    prompt = script.prompt_of("def f(x):\n    y = 1\n    z = 2\n    return y\n")
    assert prompt == "def f(x):\n    y = 1\n"
    for written, right in (
        ("    return y\n", True),
        ("    return y\n    if x:\n        z = (", True),  # cut in the middle of a statement
        ("    return return y\n    a = 1\n    b = 2\n    c = 3\n", False),
        ("    return (y\n    z\n    a\n    b\n", False),
        ("    return", False),  # not one whole line
        ("", False),
    ):
        assert script.is_python(prompt, written) is right, written
