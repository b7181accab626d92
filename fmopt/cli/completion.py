"""What a shell offers after TAB: names read from where they are kept, so that a new target or task is offered at once.

Nothing heavy is imported: a shell waits for the answer. Where nothing is offered, shells go on with names of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fmopt.core import plugins

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FMOPT_COMPLETE"  # by which a shell asks, instead of running a command
BUILTIN_DATA = ("builtin:pydoc", "builtin:stdlib")


def words(*known: str) -> Callable[[str], list[str]]:
    """Some fixed words; typer keeps those that begin as what was typed."""

    def offered(incomplete: str) -> list[str]:
        return list(known)

    return offered


def listed(*known: str) -> Callable[[str], list[str]]:
    """Some fixed words that may stand in a row, with commas between: `offline,server`."""

    def offered(incomplete: str) -> list[str]:
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in known if word not in before.split(",")]

    return offered


def models(incomplete: str) -> list[str]:
    """Entries of models/, and folders here that hold a checkpoint."""
    return [*plugins.data_names("models"), *_folders_with("config.json")]


def bundles(incomplete: str) -> list[str]:
    """Folders here that hold a bundle."""
    return _folders_with("fmopt.json")


def models_and_bundles(incomplete: str) -> list[str]:
    """Either of them."""
    return [*models(incomplete), *bundles(incomplete)]


def targets(incomplete: str) -> list[str]:
    """`host` and every entry of targets/."""
    return ["host", *plugins.data_names("targets")]


def tasks(incomplete: str) -> list[str]:
    """Every task, those of other packages too."""
    return [name.replace("_", "-") for name in plugins.names("tasks")]


def data(incomplete: str) -> list[str]:
    """Built-in data for whoever begins to type it; files else, by the shell itself."""
    return list(BUILTIN_DATA) if incomplete else []


def arrivals(incomplete: str) -> list[str]:
    """How inputs of a workload come."""
    from fmopt.core.workload import ARRIVALS

    return list(ARRIVALS)


def scenarios(incomplete: str) -> list[str]:
    """Some of MLPerf's scenarios, with commas between."""
    from fmopt.workflow.benchmark.scenarios import SCENARIOS

    return listed(*SCENARIOS)(incomplete)


def layouts(incomplete: str) -> list[str]:
    """What a bundle can be laid out for."""
    from fmopt.exporters.bundles.layouts import LAYOUTS

    return list(LAYOUTS)


def script(shell: str) -> str:
    """What a shell reads once to offer what this command knows; made by the library that reads the command line."""
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="fmopt", complete_var=VARIABLE, shell=shell)


def prepare() -> None:
    """Let the library that reads the command line answer a shell that asks."""
    if os.environ.get(VARIABLE):
        from typer.completion import completion_init

        completion_init()


def _folders_with(name: str) -> list[str]:
    try:
        return sorted(path.parent.name for path in Path.cwd().glob(f"*/{name}"))
    except OSError:
        return []  # a folder that cannot be read offers nothing
