"""Files that somebody names: recipes and targets in TOML, records in JSON. What is wrong with one is a line that names it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fmopt.core.errors import BundleError, ConfigError, first_fault
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import file_bytes

T = TypeVar("T")
LARGEST = 1 << 20  # bytes


def record_bytes(path: Path) -> bytes:
    """A record's content; BundleError for what is no plain file, or cannot be read."""
    try:
        return file_bytes(path)
    except EdgeError as error:
        raise BundleError(f"{error}; name a folder that fmopt wrote, or a record in it") from error


def read_toml(path: Path, what: str, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the file's content. ConfigError where it is no TOML, or not `what` it should be."""
    try:
        return make(tomllib.loads(file_bytes(path, LARGEST).decode()))
    except EdgeError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        raise ConfigError(f"{path} is not {what}: {first_fault(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not {what}: it is nested too deep") from error
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not {what}: {' '.join(str(error).split())[:200]}") from error
