"""Imports point down, without circles, in files that can be read; and nothing heavy loads until it is asked for."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import quantiles

import pytest

import fmopt

PACKAGE = Path(__file__).resolve().parents[1] / "fmopt"

# Top row first. A file may import from its own folder, from a folder inside it or around it, and from a lower row: never from a
# higher one, never from another folder of its own row. Typing-only imports and those inside functions count too.
ROWS = (
    {"__main__"},
    {"cli", "__init__"},
    {"workflow", "serving"},
    {"passes", "runtimes", "reports"},
    {"training", "measurement"},
    {"exporters", "evaluation"},
    {"models", "data"},
    {"tasks"},
    {"core"},
    {"edge"},
)
ROW = {folder: number for number, row in enumerate(ROWS) for folder in row}
PLUGINS = {
    "passes",
    "tasks",
    "models/families",
    "edge",
}  # one file for each (in edge: for each kind of answer): as many as there are
MOST_FILES = 15  # of a folder, its __init__.py among them
MOST_LINES, MOST_FUNCTION, P95_FUNCTION = 500, 80, 30
MOST_PARAMETERS = 12
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "datasets",
    "sklearn",
    "fastapi",
    "uvicorn",
}


def modules() -> dict[str, Path]:
    """Files of the package by their dotted name below it; that of a package is the folder's."""
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imported(path: Path, name: str, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it, for whatever reason."""
    package = ["fmopt", *name.split(".")] if path.name == "__init__.py" else ["fmopt", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            both = [(f"{module}.{alias.name}", module) for alias in node.names]
            wanted = [one if one.removeprefix("fmopt.") in known else whole for one, whole in both]
        else:
            continue
        for one in wanted:
            if one.startswith("fmopt.") and one.removeprefix("fmopt.") in known:
                yield one.removeprefix("fmopt.")


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(path, name, known)) - {name} for name, path in known.items()}


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, lines, parameters) of every function."""
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
            # without the signature: a command's options are each a line of help
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            yield f"{path.relative_to(PACKAGE)}:{node.name}", length, count


def commands() -> set[str]:
    """The functions whose parameters are the options of a command, by the names that `functions` gives."""
    from fmopt.cli.app import app

    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    callbacks = [command.callback for group in groups for command in group.registered_commands]
    verbs = [inspect.unwrap(one) for one in callbacks if one]  # a file of options may stand before one
    return {f"{Path(one.__code__.co_filename).relative_to(PACKAGE)}:{one.__name__}" for one in verbs}


def test_every_folder_has_a_row():
    assert {name.split(".")[0] for name in modules()} == set(ROW)


def test_imports_point_down():
    wrong = [
        f"{name} -> {used}"
        for name, all_used in arrows().items()
        for used in all_used
        if used.split(".")[0] != name.split(".")[0] and ROW[used.split(".")[0]] <= ROW[name.split(".")[0]]
    ]
    assert wrong == []


def test_there_is_no_circle():
    graph = arrows()
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_plugins_reach_each_other_only_through_their_base():
    groups = ("passes", "models.families", "tasks", "runtimes")

    def group(name: str) -> str | None:
        return next((one for one in groups if name.rpartition(".")[0] == one and not name.endswith(".base")), None)

    across = [
        f"{name} -> {used}"
        for name, all_used in arrows().items()
        for used in all_used
        if group(name) and group(used) and group(name) != group(used)
    ]
    assert across == []


def test_folders_hold_what_can_be_overseen():
    counts = {
        str(folder.relative_to(PACKAGE)): len(list(folder.glob("*.py")))
        for folder in PACKAGE.rglob("*")
        if folder.is_dir()
    }
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES and folder not in PLUGINS} == {}


def test_files_and_functions_can_be_read():
    paths = list(modules().values())
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text("utf8").splitlines()) for path in paths}
    found = [function for path in paths for function in functions(path)]
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert {name: length for name, length, _ in found if length > MOST_FUNCTION} == {}
    assert quantiles([length for _, length, _ in found], n=20)[-1] <= P95_FUNCTION
    # a command has a parameter for each of its options
    called = [(name, count) for name, _, count in found if name not in commands()]
    assert {name: count for name, count in called if count > MOST_PARAMETERS} == {}


@pytest.mark.parametrize("statement", ["import fmopt", "import fmopt.cli.app", "import fmopt.edge.command"])
def test_nothing_heavy_loads_on_import(statement):
    code = f"{statement}; import sys; print(sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_loading_a_bundle_never_imports_torch():
    code = "from fmopt import load; import sys; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_no_module_hides_a_public_name():
    """Importing fmopt.x puts the module x on the package, in place of the function that users call fmopt.x."""
    assert not {name for name in fmopt.__all__ if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}
