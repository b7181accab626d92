"""A bundle's run.py in a process of its own that has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = "import runpy, sys; sys.modules['torch'] = None; sys.exit(runpy.run_path('run.py')['main'](sys.argv[1:]))"


def run_bundle(bundle: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `python run.py ARGUMENTS` in `bundle` gives, with nothing in its environment but what is said."""
    packages = ":".join(path for path in sys.path if "site" in path)
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=bundle, capture_output=True, text=True, env={"PYTHONPATH": packages, "PATH": "", **environment}, check=False,
    )  # fmt: skip
