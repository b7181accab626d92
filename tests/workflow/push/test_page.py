"""The commands of docs/push.md, run in the order in which they stand there, say what stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from fmopt.cli.app import main
from tests.hub_server import Hub

PAGE = Path(__file__).resolve().parents[3] / "docs" / "push.md"


def test_the_page_is_true(
    judged: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    shutil.copytree(judged, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    blocks = re.findall(r"```\n(\$ .*?)```", PAGE.read_text("utf8"), re.DOTALL)
    steps = [step.splitlines() for block in blocks for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert len(steps) == 5
    try:
        for command, *expected in steps:
            code = main(shlex.split(command)[1:])
            said = capsys.readouterr()
            lines = [*said.out.splitlines(), *said.err.splitlines(), *([f"[exit {code}]"] if code else [])]
            assert len(lines) == len(expected), (command, lines)
            for line, wanted in zip(lines, expected, strict=True):
                assert re.fullmatch(re.escape(wanted).replace("…", ".+"), line), (command, line)
    finally:
        mlflow.set_tracking_uri(None)
