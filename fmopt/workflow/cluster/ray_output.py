"""What Ray prints by itself on stdout, where a command's answer belongs: a worker that died becomes one line of ours."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

LISTENER = "ray_listen_error_messages"  # the thread of Ray that prints what its nodes report


class _WithoutRay:
    """A stream that takes Ray's reports apart from what others write."""

    def __init__(self, stream: TextIO, say: Callable[[str], object]) -> None:
        self._stream, self._say = stream, say

    def write(self, text: str) -> int:
        """Pass it on, or say it in our words."""
        if threading.current_thread().name != LISTENER:
            return self._stream.write(text)
        if "so the task will be retried" in text:
            self._say("a worker died at its task, which begins anew")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def without_ray_output(say: Callable[[str], object]) -> Iterator[None]:
    """While entered, Ray's own thread writes nothing to stdout."""
    before = sys.stdout
    sys.stdout = _WithoutRay(before, say)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout = before
