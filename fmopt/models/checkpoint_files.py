"""JSON files of a checkpoint, read with an error that says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.models import received


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top level is `kind` (of a list, all objects); None when there is no such file."""
    if not path.is_file():
        return None
    got = received.read_json(path, kind)
    if kind is list and not all(isinstance(one, dict) for one in got):
        raise CheckpointError(f"{path} is no list of JSON objects; get the file again")
    return got
