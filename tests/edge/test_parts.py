"""Every module that a bundle carries is one that its run.py loads."""

from __future__ import annotations

from pathlib import Path

from fmopt.edge import parts, run


def test_run_py_knows_every_module_of_a_bundle() -> None:
    beside = {path.stem for path in Path(parts.__file__).parent.glob("*.py")} - {"run"}
    carried = {path.stem for name in parts.NAMES for path in parts.module_files({"task": "", "part": name}, "")}
    assert carried <= set(run.MODULES) <= beside
