"""A command at a terminal: a pseudo-terminal of so many columns, on which a test types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_terminal(
    *argv: str, cwd: Path | None = None, typed: str = "", columns: int = 80, **environment: str
) -> tuple[int, str]:
    """(exit code, everything that was shown) of `fmopt argv`, with the lines of `typed` as its input."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fmopt", *argv], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, close_fds=True,
        env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    while True:
        try:
            some = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not some:
            break
        shown += some
    os.close(ours)
    return process.wait(), shown.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Without colours."""
    return ANSI.sub("", text)
