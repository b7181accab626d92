"""JSON files of a checkpoint, read with an error that says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top level is `kind`; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        got = json.loads(path.read_text("utf8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(got, kind):
        raise CheckpointError(f"{path} should hold a JSON {'object' if kind is dict else 'list'}; get the file again")
    return got
