"""Files that a user names, whatever they hold: one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmopt.core.errors import BundleError, ConfigError
from fmopt.core.received import LARGEST, record_bytes
from fmopt.core.recipe import read_recipe
from fmopt.core.target import read_target

BROKEN = {
    "deep": b"a=" + b"[" * 50_000,
    "bytes": b"\xff\xfe",
    "kinds": b"name = 5\nruntime = []",
    "control": b'runtime = "\x1b[2J"',
    "large": b"#" * (LARGEST + 1),
    "half": b"runtime = ",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_toml_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.toml"
    path.write_bytes(BROKEN[kind])
    for read in (read_recipe, lambda path: read_target(str(path))):
        with pytest.raises(ConfigError) as said:
            read(path)
        assert path.name in str(said.value)
        assert len(str(said.value)) < 500 + len(str(path))


def test_a_record_is_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    assert record_bytes(tmp_path / "record.json") == b"{}"
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "missing"):
        with pytest.raises(BundleError, match="name a folder that fmopt wrote"):
            record_bytes(path)
