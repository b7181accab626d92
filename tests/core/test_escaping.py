"""Words of a command that is shown for people to copy: a shell reads them back as they were, and no page obeys them."""

from __future__ import annotations

import subprocess

import pytest

from fmopt.core import escaping

WORDS = [
    "a b", "it's", "<img src=x onerror=alert(1)>", "`x`", "out\n```\n<b>", "\x1b[2J", "\u202egnp.exe", "back\\slash<", "$HOME",
    "*", "\udcff", "",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_word_comes_back_from_a_shell(word: str) -> None:
    line = escaping.command_line(["printf", "%s", word])
    said = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert said.stdout.decode("utf8", "surrogateescape") == word
    assert "<" not in line
    assert "`" not in line
    assert line.isprintable()


def test_plain_words_stay_plain() -> None:
    assert escaping.command_line(["fmopt", "bench", "out/minilm"]) == "fmopt bench out/minilm"
    assert escaping.shell_word("what is it") == '"what is it"'
    assert "<" not in escaping.shell_word("a <b>")
