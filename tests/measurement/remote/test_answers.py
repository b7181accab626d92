"""A board's word is a stranger's: what makes no sense is one line, and a flood ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fmopt.core.errors import BoardError
from fmopt.edge.board import agent
from fmopt.measurement.remote import answers
from fmopt.measurement.remote.ssh import open_board

HELLO = {
    "python": [3, 11], "implementation": "CPython", "machine": "x86_64", "system": "Linux", "release": "1",
    "libc": ["glibc", "2.35"], "free": 10**12, "folder": "/x",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "not json", "[]", "{}", "null", "5", '{"python": "x"}', '{"python": null}', "[" * 300_000,
        json.dumps(HELLO | {"free": -1}), json.dumps(HELLO | {"libc": [5, {}]}), json.dumps(HELLO | {"python": [3]}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(text: str) -> None:
    with pytest.raises(BoardError, match="ssh://board gave an answer that makes no sense") as said:
        answers.understood(text, answers.Hello, "ssh://board")
    assert len(str(said.value)) < 400


def test_what_makes_sense_is_understood() -> None:
    assert answers.understood(json.dumps(HELLO), answers.Hello, "b").model_dump() == HELLO
    assert answers.last_of('warming up\n{"onnxruntime": "1.32.0"}\n', dict[str, str], "b") == {"onnxruntime": "1.32.0"}
    with pytest.raises(BoardError, match="samples"):
        answers.last_of('{"samples": {"a": [-1]}, "warnings": [], "failed": {}}', answers.Times, "b")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("head -c 200000000 /dev/zero; sleep 60", "says more than 64 MB at once"),
        (f"echo; echo '{agent.MARK}[]'", "gave an answer that makes no sense"),
        (f"echo; echo '{agent.MARK}{{}}'", "gave an answer that makes no sense"),
        (f"""echo; echo '{agent.MARK}{{"error": "full"}}'""", "is full"),
    ],
)
def test_a_line_that_leads_to_something_else_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/bash\ncat >/dev/null\n{script}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BoardError, match=said):
        open_board("ssh://user@board")
