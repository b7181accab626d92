"""What a checkpoint's files say and a bundle does not do: told to the user, once for each."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)


@cache
def tell(path: str, name: str, reason: str) -> None:
    """Warn that a file says what is not done, once."""
    log.warning("%s: %s is left out: %s", path, name, reason)


def tell_unknown(path: Path, known: frozenset[str]) -> None:
    """Warn of the keys of a processor's file that nobody acts upon."""
    for name, value in json.loads(path.read_text("utf8")).items():
        if name not in known and value is not None:
            tell(
                str(path),
                name,
                "fmopt does not know it; what the processor makes was tried, and is the same without it",
            )
