"""Docstrings as retrieval data: what is kept, where modules go, and that nothing is random."""

from __future__ import annotations

import json

import pytest

from fmopt.core.errors import DataError
from fmopt.data import builtin_docstrings

SOURCE = '''
"""A module's docstring is not used."""

def kept(x):
    """Return the first of   several things.

    The rest says a good deal more
    about it than eight words.
    """

def short_query():
    """Too short.

    The rest says a good deal more about it than eight words would.
    """

def short_rest():
    """Return the second of several things.

    Not enough here.
    """

if True:
    class Kept:
        """A class with a method inside.

        Classes count, methods count, and so do definitions below conditions and others.
        """

        async def method(self):
            """Wait until the thing is done.

            It waits as long as it takes, and then it returns what came of it.
            """
else:
    try:
        pass
    except ValueError:
        def handled():
            """Do something about an error.

            Definitions may also be found inside of an exception handler, however rare.
            """
'''


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_first_line_and_its_rest(tmp_path):
    root = tmp_path / "lib"
    for name in ("a.py", "package/b.py", "test/c.py", "package/tests/d.py", "site-packages/e.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE.replace("first", f"first {path.stem}"))
    (root / "broken.py").write_text('"""not Python')
    (root / "latin.py").write_bytes(b'"""\xff"""')
    found = builtin_docstrings.docstring_pairs(root)
    assert [(pair["module"], pair["query"]) for pair in found] == [
        ("a", "Return the first a of several things."),
        ("a", "A class with a method inside."),
        ("a", "Wait until the thing is done."),
        ("a", "Do something about an error."),
        # of b.py only what a.py did not have: the query is new, but its document is not
    ]
    assert found[0]["document"] == "The rest says a good deal more about it than eight words."


def test_modules_stay_whole_and_shares_are_kept():
    pairs = [{"query": f"q{n}", "document": f"d{n}", "module": f"m{n % 97}"} for n in range(2000)]
    splits = builtin_docstrings.split_by_module(pairs)
    modules = [{pair["module"] for pair in splits[name]} for name in builtin_docstrings.SHARES]
    assert sum(map(len, modules)) == 97
    for name, share in builtin_docstrings.SHARES.items():
        assert len(splits[name]) / 2000 == pytest.approx(share, abs=0.02)
    assert builtin_docstrings.split_by_module(pairs) == splits


def test_the_standard_library_gives_two_thousand_pairs_the_same_every_time(monkeypatch):
    first = builtin_docstrings.pydoc_splits()
    assert sum(map(len, first.values())) >= 2000
    for name, share in builtin_docstrings.SHARES.items():
        assert len(first[name]) / sum(map(len, first.values())) == pytest.approx(share, abs=0.03)
    everything = [pair for rows in first.values() for pair in rows]
    assert (
        len({pair["query"] for pair in everything}) == len({pair["document"] for pair in everything}) == len(everything)
    )
    assert min(len(pair["query"].split()) for pair in everything) == 3
    assert min(len(pair["document"].split()) for pair in everything) == 8
    assert not {"test", "idlelib", "lib2to3", "site-packages"} & {pair["module"] for pair in everything}

    def read_again(root):
        raise AssertionError("the second time comes from the cache")

    monkeypatch.setattr(builtin_docstrings, "docstring_pairs", read_again)
    assert builtin_docstrings.pydoc_splits() == first


def test_the_cache_follows_the_sources_and_survives_damage(tmp_path):
    root = tmp_path / "lib"
    root.mkdir()

    def write(count):
        text = [
            f'def f{n}():\n    """Return thing number {n}.\n\n    {"word " * 8}{n}\n    """\n' for n in range(count)
        ]
        (root / "a.py").write_text("".join(text))

    write(120)
    assert sum(map(len, builtin_docstrings.pydoc_splits(root).values())) == 120
    write(130)
    splits = builtin_docstrings.pydoc_splits(root)
    assert sum(map(len, splits.values())) == 130
    kept = sorted((tmp_path / "cache" / "fmopt").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"damaged")
    assert json.dumps(builtin_docstrings.pydoc_splits(root)) == json.dumps(splits)


def test_a_python_without_sources_says_so(tmp_path):
    with pytest.raises(
        DataError, match=r"has 0 docstrings to make retrieval data of; .* give data of your own with --data"
    ):
        builtin_docstrings.pydoc_splits(tmp_path)


def test_a_cache_that_cannot_be_written_is_only_slower(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = tmp_path / "lib"
    root.mkdir()
    text = [f'def f{n}():\n    """Return thing number {n}.\n\n    {"word " * 8}{n}\n    """\n' for n in range(120)]
    (root / "a.py").write_text("".join(text))
    assert sum(map(len, builtin_docstrings.pydoc_splits(root).values())) == 120
