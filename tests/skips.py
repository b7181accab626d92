"""With CI=true a skipped test fails the run unless allowed_skips.toml says why it may be: nothing passes by not being looked at.

Hooks of pytest, which conftest.py takes over.
"""

from __future__ import annotations

import os
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.toml")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _not_allowed(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = _not_allowed(config)
    if lines:
        terminalreporter.section(f"skipped, which only {ALLOWED.name} could allow: the run fails", red=True)
    for line in lines:
        terminalreporter.line(line)


def _not_allowed(config: pytest.Config) -> list[str]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")  # pytest-xdist's workers have none
    if terminal is None or os.environ.get("CI") != "true":
        return []
    patterns = tomllib.loads(ALLOWED.read_text("utf8"))
    skipped = [
        f"{one.nodeid}: {one.longrepr[2].removeprefix('Skipped: ')}" for one in terminal.stats.get("skipped", ())
    ]
    return [line for line in skipped if not any(fnmatchcase(line, pattern) for pattern in patterns)]
