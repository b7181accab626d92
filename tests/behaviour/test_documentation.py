"""What the documentation says can be done: its links lead somewhere, its commands exist, its example of a pass works."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from fmopt.cli.app import app, main
from fmopt.core.recipe import Step
from fmopt.core.target import read_target
from fmopt.passes.base import Context
from tests.conftest import TinyCheckpoint
from tests.torch_models import model_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every `fmopt …` line of a shell block, without its comment."""
    for page in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf8"), re.DOTALL | re.MULTILINE)
        for block in (text for language, text in blocks if language in ("", "bash")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True) if part.strip().startswith("fmopt ") else []
                    if words and "…" not in part and "MODEL_OR_BUNDLE" not in part:
                        yield page, words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def test_commands_exist_with_their_options() -> None:
    group = typer.main.get_command(app)
    found = list(commands())
    assert len(found) > 20
    for page, words in found:
        command: Any = group
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page.name}: there is no command fmopt {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        assert [option for option in options if option not in known] == [], f"{page.name}: {words}"


def test_the_example_of_a_pass_works(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf8"), re.DOTALL)
    (tmp_path / "example_pass.py").write_text(code)
    installed = tmp_path / "example_pass-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example-pass\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[fmopt.passes]\nround_weights = example_pass:RoundWeights\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    model = model_of(tiny_checkpoint("bert"))
    rounding = Step(use="round_weights", options={"step": 0.05}).build()
    made = rounding.apply(
        model, Context(metadata=model.metadata, target=read_target("x86-avx2"), calibration=lambda: iter(()))
    )
    matrices = [weight for weight in made.net.parameters() if weight.ndim == 2]
    assert all(torch.allclose(weight / 0.05, (weight / 0.05).round(), atol=1e-3) for weight in matrices)


def test_the_tables_of_openers_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    openers = importlib.import_module("openers")
    rows = json.loads((ROOT / "benchmarks" / "results" / "openers.json").read_text("utf8"))["rows"]
    assert {(row["name"], row["task"]) for row in rows} <= {(one.name, one.task) for one in openers.OPENERS}
    for page, made in ((openers.DOCS, openers.table(rows)), (openers.README, openers.short_table(rows))):
        assert made in page.read_text("utf8"), f"run benchmarks/openers.py: {page.name} is of another run"
    assert [row for row in rows if row.get("difference", 0) > 1e-3 or row.get("texts_that_differ", 0) > 2] == []


def test_the_first_minutes_as_their_page_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands that need no terminal and no minute, and its example of a file."""
    page = (ROOT / "docs" / "begin.md").read_text("utf8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    lines = [
        words for found, words in commands() if found.name == "begin.md" and words[0] in ("init", "optimize", "doctor")
    ]
    assert ["init", "--yes"] in lines
    assert ["doctor", "--fix"] in lines
    monkeypatch.chdir(tmp_path)
    for words in lines:
        assert main(words) == 0, words
    (tmp_path / "fmopt.toml").write_text(example)
    assert main(["optimize", "--dry-run"]) == 0
    for shell in re.findall(r"fmopt completion (\w+)", page):
        assert main(["completion", shell]) == 0
