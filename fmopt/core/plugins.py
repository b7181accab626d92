"""Find a pass, runtime, family or task by its name: the file name is the name.

Nothing registers itself and nothing heavy loads until it is asked for. Other packages offer the same objects through
entry points in the groups ``fmopt.passes``, ``fmopt.runtimes``, ``fmopt.families`` and ``fmopt.tasks``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fmopt.core.errors import ConfigError

ATTRIBUTES = {"passes": "PASS", "runtimes": "RUNTIME", "families": "FAMILY", "tasks": "TASK"}
PACKAGES = {
    "passes": "fmopt.passes",
    "runtimes": "fmopt.runtimes",
    "families": "fmopt.models.families",
    "tasks": "fmopt.tasks",
}
ROOT = Path(__file__).resolve().parents[1]


def find(group: str, name: str) -> Any:
    """The object called `name` in `group`; ConfigError with the nearest names when there is none."""
    module = name.replace("-", "_")
    if module in _own_modules(group):
        return getattr(importlib.import_module(f"{PACKAGES[group]}.{module}"), ATTRIBUTES[group])
    for entry in entry_points(group=f"fmopt.{group}"):
        if entry.name == name:
            return entry.load()
    raise ConfigError(f"there is no {group_noun(group)} {name!r}{did_you_mean(name, names(group))}")


def names(group: str) -> tuple[str, ...]:
    """Every name that `find` knows in `group`, sorted."""
    return tuple(sorted({*_own_modules(group), *(entry.name for entry in entry_points(group=f"fmopt.{group}"))}))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def group_noun(group: str) -> str:
    """What one member of a group is called in a message."""
    return {"passes": "pass", "runtimes": "runtime", "families": "family", "tasks": "task"}[group]


def data_folder(name: str) -> Path:
    """The folder of shipped TOML files: inside the package when installed, beside it in a checkout."""
    inside = ROOT / "catalog" / name
    return inside if inside.is_dir() else ROOT.parent / name


def data_names(name: str) -> tuple[str, ...]:
    """Names of the TOML files in a `data_folder`, sorted."""
    return tuple(sorted(path.stem for path in data_folder(name).glob("*.toml")))


@cache
def _own_modules(group: str) -> tuple[str, ...]:
    folder = ROOT.joinpath(*PACKAGES[group].split(".")[1:])
    return tuple(sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "base") and p.stem[0] != "_"))
