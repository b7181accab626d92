"""A user without HOME and without an entry among the users, as containers have: what wants a folder there does without."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from fmopt.edge import files, host


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_nothing_is_kept_and_nothing_is_lost(homeless: None) -> None:
    marker = files.marker_of("tried", b"a tokenizer")
    assert marker is None
    files.leave(marker)
    assert not files.is_left(marker)


def test_a_library_that_looks_for_a_home_finds_one_meanwhile(homeless: None) -> None:
    with host.some_home():
        assert Path.home().is_dir()
    assert "HOME" not in os.environ


def test_who_has_a_home_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with host.some_home():
        assert Path.home() == tmp_path
    assert os.environ["HOME"] == str(tmp_path)
