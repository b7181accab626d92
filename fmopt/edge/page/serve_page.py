"""Serves the folder it lies in to browsers of this machine, with the headers that let a page use threads.

    python serve.py [PORT]        then open the address it prints

Copied into bundles for browsers as `serve.py`; Python alone, nothing to install. Any web server does instead that sends
`.wasm` as application/wasm and, for threads, Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy:
require-corp (HTML standard, "cross-origin isolation").
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

IN_BUNDLE = "serve.py"
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; tells nothing but errors."""

    extensions_map = {  # noqa: RUF012 - the base class's own
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def __init__(self, *arguments: Any, isolated: bool = True, **more: Any):
        self.isolated = isolated
        super().__init__(*arguments, **more)

    def end_headers(self) -> None:
        """The usual headers and those of isolation."""
        for name, value in ISOLATION.items() if self.isolated else ():
            self.send_header(name, value)
        super().end_headers()

    def parse_request(self) -> bool:
        """Whether to answer: only to who asks for this machine by its own name, so that no other site's page can read along."""
        if not super().parse_request():
            return False
        asked = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if asked in ("127.0.0.1", "localhost", "[::1]", ""):
            return True
        self.send_error(403, "this server answers to 127.0.0.1 alone")
        return False

    def translate_path(self, path: str) -> str:
        """The file that an address means; one that is not there for a link, which could lead out of the folder."""
        found = super().translate_path(path)
        inside = os.path.realpath(found) == os.path.join(
            os.path.realpath(self.directory), os.path.relpath(found, self.directory)
        )
        same = os.path.realpath(found) == os.path.realpath(self.directory)
        return found if inside or same else os.path.join(self.directory, ".not-there")

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing of what went well."""


@contextmanager
def served(folder: Path, *, port: int = 0, isolated: bool = True) -> Iterator[str]:
    """The address of `folder` on this machine, served while the block runs; port 0 takes any that is free."""
    handler = partial(Handler, directory=str(folder), isolated=isolated)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def main(arguments: list[str]) -> int:
    """Serve until interrupted; returns the exit code."""
    wanted = arguments[0] if arguments else "8000"
    if len(arguments) > 1 or not wanted.isdigit() or int(wanted) > 65535:
        print(f"error: {' '.join(arguments)!r} is not a port; python {IN_BUNDLE} [PORT]", file=sys.stderr)
        return 2
    try:
        with served(Path(__file__).resolve().parent, port=int(wanted)) as address:
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            _until_interrupted()
    except OSError as error:
        print(f"error: port {wanted} cannot be used: {error.strerror}; name another", file=sys.stderr)
        return 2
    return 0


def _until_interrupted() -> None:
    try:
        Event().wait()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
