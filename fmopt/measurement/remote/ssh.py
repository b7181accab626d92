"""A board at the other end of an ssh line: requests to it, files to it, programs there that outlive a cut line.

By the system's own ssh, so that the user's configuration, agent and known hosts count; host keys are always checked, and
nothing is asked for on the way. What a request means there is in board_agent.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from fmopt.core.errors import BoardError, ConfigError, UnmeasuredError
from fmopt.core.progress import Progress, Silent
from fmopt.edge.board import agent
from fmopt.edge.manifest import sha256_file
from fmopt.measurement.remote import answers

# A line that is dead is found out within some 15 s, also in the middle of a copy.
OPTIONS = (
    "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10",
    "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
PATIENCE_S = 600.0  # without a word from the board, once it was reached
PAUSES_S = (0.5, 1, 2, 4, 8)  # between tries; the last one again and again
WAIT_S = 15.0  # that the board waits for the end of a program before it answers
LEAST_PYTHON = (3, 10)
BLOCK = 1 << 18
SPARE_BYTES = 20_000_000  # left free beside what is copied: programs write too

# What ssh says -> what it means and the way out. {at} is the address, {said} ssh's own words.
LOST = re.compile(
    r"timed? ?out|not responding|No route to host|Network is (unreachable|down)|Connection (reset|refused|closed)|"
    r"closed by remote host|Broken pipe|lost connection|kex_exchange_identification|banner exchange",
    re.IGNORECASE,
)
HOST_KEY = r"REMOTE HOST IDENTIFICATION HAS CHANGED|No .*host key is known|Host key verification failed"
REFUSALS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED",
     "the host key of {at} is not the one that is known: another machine answers there, or it was set up again; "
     "compare its key, then `ssh-keygen -R` the old one"),
    (r"No .*host key is known|Host key verification failed",
     "the host key of {at} is not known yet; log in by ssh once, compare the key that it shows, and accept it"),
    (r"Permission denied",
     "{at} lets no key of yours in ({said}); a password is not asked for: `ssh-copy-id` your key, or load it in an agent"),
    (r"Could not resolve hostname", "there is no host of that name: {at} ({said})"),
    (r"Connection refused", "nothing answers ssh at {at}: connection refused; is sshd running, and at that port?"),
    (r"No route to host|Network is (unreachable|down)", "there is no route to {at} ({said}); is it on, and on this network?"),
    (r"timed? ?out", "{at} does not answer ({said}); is it on, and on this network?"),
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where a board is: `ssh://[user@]host[:port]`, and by which keys where an inventory names them."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None  # the private key to log in with; None: those of the user's configuration
    known_hosts: Path | None = None  # a file with the one host key that is taken, by `alias`; None: the user's
    alias: str = ""  # the name by which the host key stands in `known_hosts`

    @classmethod
    def parse(cls, url: str) -> Address:
        """ConfigError that says what is wrong with it."""

        def wrong(why: str) -> ConfigError:
            return ConfigError(f"--on {url!r} is not of the form ssh://user@host or ssh://user@host:port: {why}")

        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise wrong(str(error)) from error
        if parts.scheme != "ssh":
            raise wrong("it does not begin with ssh://")
        if not parts.hostname or not re.fullmatch(r"[\w.:%][\w.:%-]*", parts.hostname):
            raise wrong("it names no host" if not parts.hostname else f"{parts.hostname!r} is no host")
        if parts.password is not None:
            raise wrong("a password does not belong there; use a key")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise wrong("nothing comes after the host and the port")
        if parts.username is not None and not re.fullmatch(r"[\w.][\w.@-]*", parts.username):
            raise wrong(f"{parts.username!r} is no user")
        return cls(parts.hostname, parts.username, port)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}"

    @property
    def command(self) -> list[str]:
        """ssh to it, without what is run there."""
        port = ["-p", str(self.port)] if self.port else []
        user = ["-l", self.user] if self.user else []
        return ["ssh", *OPTIONS, *self._keys, *port, *user, "--", self.host]

    @property
    def _keys(self) -> list[str]:
        """Options that put the inventory's keys in place of the user's."""
        words = [] if self.identity is None else ["IdentitiesOnly=yes", f'IdentityFile="{self.identity}"']
        if self.known_hosts is not None:
            own = f'UserKnownHostsFile="{self.known_hosts}"'
            words += [f"HostKeyAlias={self.alias}", own, "GlobalKnownHostsFile=none", "UpdateHostKeys=no"]
        return [part for word in words for part in ("-o", word)]


class LineLostError(Exception):
    """The line was cut, or never was: what ssh said."""


class NotReachedError(BoardError):
    """A board that does not answer, and may do so later."""


@dataclass
class Board:
    """One board. Every request is a connection of its own, so that a cut line costs one request."""

    address: Address
    progress: Progress = field(default_factory=Silent)
    patience_s: float = PATIENCE_S
    reached: bool = False

    def greet(self) -> dict[str, Any]:
        """What it is; BoardError when it cannot be reached, has no Python, or one too old for a bundle's run.py."""
        answer = self.ask("hello")
        if tuple(answer["python"]) < LEAST_PYTHON:
            found, least = (".".join(map(str, one)) for one in (answer["python"], LEAST_PYTHON))
            raise BoardError(f"python3 on {self.address} is {found}; a bundle needs {least} or newer there")
        return answer

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        """One request and its answer; asked again while the line is down. BoardError for what the board refuses."""
        until = time.monotonic() + self.patience_s
        for number in range(10**9):
            try:
                return self._once(verb, request, [])
            except LineLostError as lost:
                self._wait(lost, number, until)
        raise AssertionError

    def send(self, files: Mapping[str, Path]) -> None:
        """Copy files, by their names in the board's folder; what is there already is not sent again, and a copy that was
        cut goes on where it ended. BoardError when the disk there is full."""
        wanted = {name: (path.stat().st_size, sha256_file(path)) for name, path in files.items()}
        until, least, number = time.monotonic() + self.patience_s, None, 0
        while True:
            try:
                left = self._missing(wanted)
                bytes_left = sum(wanted[name][0] - offset for name, offset in left.items())
                if not left:
                    return
                if least is None or bytes_left < least:
                    least, until, number = bytes_left, time.monotonic() + self.patience_s, 0
                answer = self._once(
                    "take",
                    {"files": [(name, *wanted[name], offset) for name, offset in left.items()]},
                    [(files[name], offset) for name, offset in left.items()],
                )
                if answer.get("error") == "damaged":
                    raise LineLostError(f"{answer.get('name')} arrived damaged")
            except LineLostError as lost:
                self._wait(lost, number, until)
                number += 1

    def job(self, name: str, argv: Sequence[str], *, cwd: str) -> tuple[str, str]:
        """What a program there prints, (stdout, stderr). It goes on while the line is down, and is fetched afterwards.

        A job of that name that runs or has ended there already is not started again. BoardError when it fails, with its
        last words.
        """
        request = {"job": name, "argv": list(argv), "cwd": cwd}
        self.ask("start", **request)
        while True:
            answer = self.ask("poll", job=name, wait=WAIT_S)
            if answer["state"] in ("lost", "absent"):
                self.progress.say(f"{self.address} was restarted; starting again there")
                self.ask("start", **request)
            if answer["state"] == "ended":
                break
        self.ask("forget", job=name)
        if answer["code"] != 0:
            words = [line for line in answer["err"].splitlines() if line.strip()]
            said = words[-1].removeprefix("error: ") if words else f"it ended with code {answer['code']}"
            raise BoardError(f"on {self.address}: {said}")
        return answer["out"], answer["err"]

    def clean(self) -> None:
        """Remove the board's own folder, and end what runs there."""
        if self.ask("clean")["left"]:
            raise BoardError(f"~/{agent.FOLDER} on {self.address} could not be removed; look who owns it")

    def _missing(self, wanted: Mapping[str, tuple[int, str]]) -> dict[str, int]:
        """Of each file that is not whole there, the offset to go on at."""
        answer = self._once("have", {"files": wanted}, [])
        left = {
            name: min(max(0, answer["have"].get(name, 0)), size)
            for name, (size, _) in wanted.items()
            if answer["have"].get(name) != size
        }
        need = sum(wanted[name][0] - offset for name, offset in left.items())
        if left and need + SPARE_BYTES > answer["free"]:
            raise BoardError(
                f"the disk of {self.address} is full: {need / 1e6:.0f} MB are to be copied and "
                f"{answer['free'] / 1e6:.0f} MB are free; make room there, or remove what earlier runs left with --clean"
            )
        if need > 1e6:
            self.progress.start(f"copying {need / 1e6:.0f} MB to {self.address.host}", need // BLOCK + 1)
        return left

    def _wait(self, lost: LineLostError, number: int, until: float) -> None:
        """Before the next try; the end of it where none makes sense."""
        if not self.reached:
            raise NotReachedError(str(explained(self.address, str(lost)))) from lost
        if time.monotonic() > until:
            raise UnmeasuredError(
                f"the line to {self.address} was cut and did not come back in {self.patience_s / 60:.0f} minutes "
                f"({lost}); what runs there goes on, and the same command fetches its result"
            ) from lost
        if number == 0:
            self.progress.say(f"the line to {self.address} was cut ({lost}); trying again")
        time.sleep(PAUSES_S[min(number, len(PAUSES_S) - 1)])

    def _once(self, verb: str, request: Mapping[str, Any], files: Sequence[tuple[Path, int]]) -> dict[str, Any]:
        """One connection. LineLostError when it was cut; BoardError for what cannot be mended by trying again."""
        source = Path(agent.__file__).read_bytes()
        remote = f"python3 -c 'import sys;exec(sys.stdin.buffer.read({len(source)}))'"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                ssh = subprocess.Popen([*self.address.command, remote], stdin=subprocess.PIPE, stdout=out, stderr=err)
            except FileNotFoundError as error:
                raise BoardError("there is no ssh here; install OpenSSH's client") from error
            try:
                assert ssh.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # what ended it is in its output
                    ssh.stdin.write(source + json.dumps({"verb": verb, **request}).encode() + b"\n")
                    for path, offset in files:
                        self._pour(path, offset, ssh.stdin)
                with contextlib.suppress(BrokenPipeError):
                    ssh.stdin.close()
                code = self._end(ssh, out, err)
            finally:
                if ssh.poll() is None:
                    ssh.kill()
                    ssh.wait()
            out.seek(0)
            err.seek(0)
            words, said = (stream.read(answers.LARGEST).decode(errors="replace") for stream in (out, err))
            return self._understood(verb, code, words, said)

    def _end(self, ssh: subprocess.Popen[bytes], *streams: IO[bytes]) -> int:
        """Its exit code; BoardError as soon as it says more than any answer has."""
        while True:
            if max(os.fstat(stream.fileno()).st_size for stream in streams) > answers.LARGEST:
                raise BoardError(
                    f"{self.address} says more than {answers.LARGEST >> 20} MB at once, which is no answer"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                return ssh.wait(timeout=0.2)

    def _pour(self, path: Path, offset: int, into: IO[bytes]) -> None:
        with path.open("rb") as file:
            file.seek(offset)
            while block := file.read(BLOCK):
                into.write(block)
                self.progress.step()

    def _understood(self, verb: str, code: int, out: str, err: str) -> dict[str, Any]:
        said = [line for line in err.splitlines() if line.strip()]
        found = [line for line in out.splitlines() if line.startswith(agent.MARK)]
        if found:
            self.reached = True
            text = found[-1].removeprefix(agent.MARK)
            answer: dict[str, Any] = answers.understood(text, dict[str, Any], self.address)
            if answer.get("error") == "full":
                raise BoardError(
                    f"the disk of {self.address} is full ({answer.get('text')}); make room there, or --clean"
                )
            if answer.get("error") == "system":
                raise BoardError(f"on {self.address}: {answer.get('text')}")
            if "error" in answer or verb not in answers.KINDS:
                return answer
            return dict(answers.understood(text, answers.KINDS[verb], self.address).model_dump())
        if code == 127 or re.search(r"python3.*not found", err):
            raise BoardError(
                f"there is no python3 on {self.address}; install Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} there"
            )
        if code in (255, -13, 141, 0) and (LOST.search(err) or not said):
            raise LineLostError(lost_words(said))
        raise explained(self.address, err)


def lost_words(said: Sequence[str]) -> str:
    """ssh's last word about a line that was cut."""
    telling = [line for line in said if LOST.search(line)]
    return (telling or ["connection closed"])[-1].strip().rstrip(".")


def explained(address: Address, err: str) -> BoardError:
    """What ssh said, as one line with the way out."""
    said = [line.strip().rstrip(".") for line in err.splitlines() if line.strip()]
    if address.known_hosts is not None and re.search(HOST_KEY, err, re.IGNORECASE):
        return BoardError(
            f"the host key of {address} is not the host_key of {address.alias} in the inventory: another machine answers "
            "there, or it was set up again; compare its key, then mend host_key"
        )
    for pattern, text in REFUSALS:
        telling = [line for line in said if re.search(pattern, line, re.IGNORECASE)]
        if telling:
            return BoardError(text.format(at=address, said=telling[-1]))
    return BoardError(f"ssh to {address} failed: {said[-1] if said else 'it said nothing'}")


def open_board(url: str, progress: Progress | None = None) -> tuple[Board, dict[str, Any]]:
    """A board that answers, and what it is."""
    board = Board(Address.parse(url), progress or Silent())
    if shutil.which("ssh") is None:
        raise BoardError("there is no ssh here; install OpenSSH's client")
    return board, board.greet()


def job_name(*parts: object) -> str:
    """The same for the same work, so that a command that is run again finds what goes on there."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
