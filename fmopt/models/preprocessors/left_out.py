"""What a checkpoint's files say and a bundle does not do: reported to the user, once for each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@cache
def tell(path: str, name: str, reason: str) -> None:
    """Warn that a file says what is not done, once."""
    log.warning("%s: %s is left out: %s", path, name, reason)


def tell_unknown(path: Path, content: Mapping[str, Any], known: frozenset[str]) -> None:
    """Warn of the keys of a processor's file that nobody acts upon; `content` is what the file says."""
    for name, value in content.items():
        if name not in known and value is not None:
            tell(
                str(path),
                name,
                "fmopt does not know it; what the processor makes was tried, and is the same without it",
            )
