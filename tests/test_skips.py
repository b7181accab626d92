"""A run in which something was skipped fails on CI, with or without pytest-xdist, unless the list allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import skips

SKIPPED = """
import pytest
def test_passes(): pass
@pytest.mark.xfail
def test_known(): assert False
@pytest.mark.skipif(True, reason="{reason}")
def test_skips(): pass
"""
UNFOUND = "import pytest\npytest.importorskip('no_such_package')\ndef test_passes(): pass\n"


def run(folder: Path, *more: str, ci: str = "true") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", "--rootdir", folder]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(Path(skips.__file__).parents[1])}
    return subprocess.run(
        [*command, *more], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--numprocesses", "2")])
def test_what_is_skipped_fails_the_run_and_is_named(tmp_path: Path, more: tuple[str, ...]) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPED.format(reason="no such machine"))
    (tmp_path / "test_more.py").write_text(UNFOUND)
    got = run(tmp_path, *more)
    assert got.returncode == 1
    assert "\ntest_it.py::test_skips: no such machine\n" in got.stdout
    assert "\ntest_more.py: could not import 'no_such_package'" in got.stdout
    assert "test_known" not in got.stdout
    assert got.stdout.splitlines()[-1].startswith("1 passed, 2 skipped, 1 xfailed in ")


def test_what_the_list_allows_and_what_is_skipped_elsewhere_passes(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPED.format(reason="a GPU is here"))
    assert run(tmp_path).returncode == 0
    (tmp_path / "test_it.py").write_text(SKIPPED.format(reason="no such machine"))
    assert run(tmp_path, ci="").returncode == 0
