"""Three hundred changed inputs into the command: each ends in an answer or in one line, and nothing beside is touched.

`make fuzz` tries 20,000 others; docs/security.md says what counts as failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_three_hundred_changed_inputs_end_as_they_should(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzzing", "--seed", "26", "--count", "300", "--keep", str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1:] == ["300 inputs, 0 failed"], ended.stdout + ended.stderr
