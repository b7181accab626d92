"""Runs the server of a bundle until it is asked to stop."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fmopt.core.errors import ConfigError
from fmopt.edge.host import available_cores
from fmopt.edge.loading import judged_threads
from fmopt.exporters.bundles import bundle

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
GRACE_S = 30  # that requests under way have once the server is asked to stop


def require_packages() -> None:
    """ConfigError with the way out where the packages of a server are not installed."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise ConfigError(f"{', '.join(absent)} not installed; pip install 'fmopt[serve]'")


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; ConfigError where that cannot be, such as on a port that is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is taken; choose another with --port, or 0 for any" if taken else f"cannot be had: {error.strerror}"
        raise ConfigError(f"port {port} of {host} {why}") from error
    return made


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    workers: int | None = None,
    ready: Callable[[str], None] = print,
    **limits: Any,
) -> None:
    """Serve the bundle in `folder` until SIGINT or SIGTERM; requests under way are then answered first.

    `threads` compute one batch (by default as many as the bundle was judged with), `workers` batches at once (as many as there
    are cores for). `ready` gets the address. `limits` are fields of `fmopt.serving.app.Settings`. Raises ConfigError for an
    address that cannot be had, BundleError for a bundle that is damaged.
    """
    require_packages()
    import uvicorn

    from fmopt.serving.app import LOOPBACK, Settings, create_app

    manifest = bundle.checked(folder)
    listening = bound_socket(host, port)
    with listening:
        threads = threads or judged_threads(manifest)
        model = bundle.load(folder, threads)
        named = tuple(dict.fromkeys((*LOOPBACK, host))) if host in LOOPBACK else ("*",)
        settings = Settings(
            name=str(manifest["title"]), workers=workers or max(1, available_cores() // threads), hosts=named, **limits
        )
        app = create_app(model, settings)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="on")
        )
        for number in (signal.SIGINT, signal.SIGTERM):  # it raises them again once it has stopped
            signal.signal(number, lambda *_: None)
        address = f"[{host}]" if ":" in host else host
        ready(f"http://{address}:{listening.getsockname()[1]}")
        server.run(sockets=[listening])
