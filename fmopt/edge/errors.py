"""How what went wrong is said; without numpy, so that a command which only prints its help answers at once."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class EdgeError(Exception):
    """Something that can be explained in one line: what, where, and the way out."""


def need(module: str, package: str) -> Any:
    """A module that may not be installed; EdgeError names the package that has it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EdgeError(f"{package} is not installed here; pip install {package}") from error


def last_line(error: BaseException) -> str:
    """The telling line of a library's error: the last, without addresses of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, 300)


def shorten(value: Any, most: int = 60) -> str:
    """A value as text of at most so many characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
