"""Progress where there is no terminal: a line for each stage, and one now and then while it lasts."""

from __future__ import annotations

import time

import pytest

from fmopt.cli import console


def test_a_long_stage_is_heard_of_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN", 0.5)
    lines: list[str] = []
    progress = console.LoggedProgress(lines.append)
    progress.start("building int8", 3)
    progress.step(2)
    until = time.monotonic() + 20
    while len(lines) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    progress.stop()
    progress.close()
    assert lines[0] == "building int8"
    assert lines[1].startswith("building int8, 2 of 3, for ")


def test_tables_fit_a_hundred_columns_and_lose_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("variant", "value")
    table.add_row("w" * 150, "v" * 30)
    console.show(table)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.count("w") == 150
