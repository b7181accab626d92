"""A real OpenSSH server with a line to it that can be cut: in two network namespaces of our own, else on the loopback.

Nothing touches the user's keys or configuration: a script called ssh, put before the system's, names our own.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
TOOLS = ("ssh", "ssh-keygen")


def absent() -> str | None:
    """Why there can be no server here."""
    if SSHD is None:
        return "OpenSSH's server (sshd) is not installed"
    missing = [name for name in TOOLS if shutil.which(name) is None]
    return f"{missing[0]} is not installed" if missing else None


def namespaces_allowed() -> bool:
    """Whether this user may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"fmopt-try-{os.getpid()}"
    made = _quiet("ip", "netns", "add", name)
    return made and _quiet("ip", "netns", "del", name)


@dataclass
class Line:
    """Two ends of a line. With namespaces it is a pair of virtual cards; without, the loopback."""

    folder: Path
    spaces: bool
    client: str = field(init=False)
    device: str = field(init=False)

    def __post_init__(self) -> None:
        self.client, self.device = f"fmopt-c{os.getpid()}", f"fmopt-d{os.getpid()}"
        if not self.spaces:
            return
        for name in (self.client, self.device):
            _must("ip", "netns", "add", name)
        _must(
            "ip",
            "link",
            "add",
            "vcli",
            "netns",
            self.client,
            "type",
            "veth",
            "peer",
            "name",
            "vdev",
            "netns",
            self.device,
        )
        for name, card, address in ((self.client, "vcli", "10.77.0.1"), (self.device, "vdev", "10.77.0.2")):
            _must("ip", "-n", name, "addr", "add", f"{address}/30", "dev", card)
            _must("ip", "-n", name, "link", "set", "lo", "up")
            _must("ip", "-n", name, "link", "set", card, "up")

    @property
    def host(self) -> str:
        """The device's address."""
        return "10.77.0.2" if self.spaces else "127.0.0.1"

    def there(self, *command: str) -> list[str]:
        """A command at the device's end."""
        return ["ip", "netns", "exec", self.device, *command] if self.spaces else list(command)

    def here(self, *command: str) -> list[str]:
        """A command at our end."""
        return ["ip", "netns", "exec", self.client, *command] if self.spaces else list(command)

    def throttle(self, rate: str) -> None:
        """Make the line slow, so that there is time to cut it; the loopback stays fast."""
        if self.spaces:
            shaped = ("root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
            _must(*self.here("tc", "qdisc", "add", "dev", "vcli", *shaped))

    def unthrottle(self) -> None:
        """Fast again."""
        if self.spaces:
            _quiet(*self.here("tc", "qdisc", "del", "dev", "vcli", "root"))

    def close(self) -> None:
        """Remove both ends."""
        if self.spaces:
            for name in (self.client, self.device):
                _quiet("ip", "netns", "del", name)


@dataclass
class Device:
    """A machine to log in to: a folder with an own home, keys and an sshd."""

    line: Line
    folder: Path
    path: str  # PATH of those who log in
    home: Path
    before: tuple[str, ...] = ()  # what sshd is started by
    port: int = 0
    server: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        for name in ("host_key", "id"):
            _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copyfile(self.folder / "id.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {self.line.host}\nHostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nPidFile {self.folder}/pid\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nPermitRootLogin yes\nSetEnv PATH={self.path} HOME={self.home}\n"
        )
        self.know((self.folder / "host_key.pub").read_text())
        (self.folder / "ssh_config").write_text(
            f"Host *\n IdentityFile {self.folder}/id\n IdentitiesOnly yes\n UserKnownHostsFile {self.folder}/known_hosts\n"
            " GlobalKnownHostsFile none\n"
        )
        script = self.folder / "bin" / "ssh"
        script.parent.mkdir()
        real = " ".join(self.line.here(shutil.which("ssh") or "ssh"))
        script.write_text(f'#!/bin/sh\nexec {real} -F {self.folder}/ssh_config "$@"\n')
        script.chmod(0o755)
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"ssh://{getpass.getuser()}@{self.line.host}:{self.port}"

    @property
    def client_path(self) -> str:
        """PATH by which our own ssh is found first."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    def know(self, key: str | None) -> None:
        """What the client takes for this device's host key."""
        text = f"[{self.line.host}]:{self.port} {' '.join(key.split()[:2])}\n" if key else ""
        (self.folder / "known_hosts").write_text(text)

    def start(self) -> None:
        """Let sshd listen."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        command = self.line.there(*self.before, str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config"))
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while "Server listening" not in (self.folder / "log").read_text():
            if time.monotonic() > until or self.server.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def cut(self) -> None:
        """Cut the line: nobody is told."""
        if self.line.spaces:
            _must("ip", "-n", self.line.device, "link", "set", "vdev", "down")
        else:  # the nearest thing on a loopback: every connection ends, and none can be made
            self.stop()

    def mend(self) -> None:
        """Bring the line back."""
        if self.line.spaces:
            _must("ip", "-n", self.line.device, "link", "set", "vdev", "up")
        else:
            (self.folder / "log").write_text("")
            self.start()

    def stop(self) -> None:
        """End sshd and the sessions that it serves (not what they started)."""
        if self.server is None:
            return
        for pid in (*_sessions(self.server.pid), self.server.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.server.wait()
        self.server = None


def python_path() -> str:
    """PATH of a device whose python3 has everything."""
    return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def _sessions(server: int) -> list[int]:
    """Processes called sshd under a server."""
    found, parents = [], {server}
    while parents:
        children = {
            int(child)
            for parent in parents
            for task in Path(f"/proc/{parent}/task").glob("*/children")
            for child in task.read_text().split()
        }
        parents = {pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip().startswith("sshd")}
        found += sorted(parents)
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _quiet(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
