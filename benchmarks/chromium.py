"""A headless Chromium over its DevTools pipe: opens a page of this machine and tells what happened in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fmopt.core.errors import UnmeasuredError

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
)
HERE_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def installed() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `events` are all that the browser sent so far."""

    def __init__(self, reads: int, writes: int, *, offline: bool = True) -> None:
        self._reads, self._writes, self._number, self._rest = reads, writes, 0, b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer of a DevTools method; RuntimeError with the browser's words when it refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']['message']}")
                return dict(got["result"])

    def open(
        self, page: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False
    ) -> None:
        """Load a file, or an address, and wait until it is drawn; what was sent of the page before is forgotten."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def value(self, script: str) -> Any:
        """What a JavaScript expression is in the page."""
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(json.dumps(got["exceptionDetails"]))
        return got["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Tab": 9, "Escape": 27}[key],
            )

    def reported(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of one kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._reads, 1 << 16)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        whole, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def browser(profile: Path, *, offline: bool = True) -> Iterator[Browser]:
    """A browser that is gone afterwards; it keeps what it must in the folder `profile`.

    Unless `offline` it reaches this machine by its number 127.0.0.1, and nothing else. UnmeasuredError where there is none.
    """
    path = installed()
    if path is None:
        raise UnmeasuredError(f"no browser is installed; one of {', '.join(NAMES)} is needed")
    reads, theirs = os.pipe()
    ours, writes = os.pipe()

    def plug() -> None:  # the protocol is spoken on descriptors 3 (in) and 4 (out)
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours, theirs)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    started = subprocess.Popen(
        [path, *QUIET, HERE_ONLY, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        preexec_fn=plug, pass_fds=(3, 4), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    try:
        yield Browser(reads, writes, offline=offline)
    finally:
        started.terminate()
        started.wait(20)
        with suppress(ProcessLookupError):  # its own processes, which may still write into the profile
            os.killpg(started.pid, signal.SIGKILL)
        os.close(reads)
        os.close(writes)
