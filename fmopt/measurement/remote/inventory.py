"""Which boards `--on` means: addresses, or a TOML file that lists a fleet with the keys of each.

```toml
require = 9                       # so many have to pass; all where it is left out

[[board]]
name = "kitchen"
address = "ssh://pi@kitchen:2222"
host_key = "ssh-ed25519 AAAA…"    # the only one that is taken; the user's known hosts where it is left out
identity = "keys/kitchen"         # private key, from this file's folder; the user's where it is left out
```
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fmopt.core.errors import ConfigError
from fmopt.core.plugins import did_you_mean
from fmopt.core.received import read_toml
from fmopt.core.results import Frozen
from fmopt.measurement.remote.ssh import Address

SUFFIX = ".toml"
MOST_BOARDS = 256
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class Entry(Frozen):
    """One `[[board]]` of an inventory."""

    name: Name
    address: str
    host_key: str | None = None
    identity: str | None = None


class Inventory(Frozen):
    """The file."""

    require: int | None = Field(None, ge=1)
    board: list[Entry] = Field(min_length=1, max_length=MOST_BOARDS)


@dataclass(frozen=True)
class Member:
    """A board of a fleet. `name` is also that of its folder among the results."""

    name: str
    address: Address


@dataclass(frozen=True)
class Fleet:
    """Boards, in the order they were named, and how many of them have to pass."""

    members: tuple[Member, ...]
    require: int


def is_fleet(words: Sequence[str]) -> bool:
    """Whether `--on` names several boards, or an inventory: one address alone is one board, as it always was."""
    return len(words) > 1 or any(_file(word) for word in words)


def fleet_of(words: Sequence[str], keys: Path) -> Fleet:
    """The boards of several addresses or of one inventory; `FILE#a,b` are some of it. Host keys are written into `keys`, a
    folder that has to last as long as the fleet is used.

    ConfigError, in one line with file and key, for what cannot be: a board that is named twice, a key that is none.
    """
    files = [word for word in words if _file(word)]
    if files and len(words) > 1:
        raise ConfigError(f"--on takes addresses or one inventory; put the other boards into {_file(files[0])}")
    if files:
        return _from_file(files[0], keys)
    addresses = [Address.parse(word) for word in words]
    _once((str(one) for one in addresses), "--on")
    return Fleet(tuple(Member(_folder_name(one), one) for one in addresses), len(addresses))


def _file(word: str) -> Path | None:
    """The inventory that a word names; None for an address."""
    path = Path(word.partition("#")[0])
    return path if path.suffix == SUFFIX and "://" not in word else None


def _from_file(word: str, keys: Path) -> Fleet:
    path, chosen = Path(word.partition("#")[0]), word.partition("#")[2]
    if not path.is_file():
        raise ConfigError(f"there is no inventory {path}; docs/board.md says how one is written")
    inventory = read_toml(path, "an inventory of boards", Inventory.model_validate)
    names = [entry.name for entry in inventory.board]
    _once(names, f"{path}: board.name")
    members = [_member(path, number, entry, keys) for number, entry in enumerate(inventory.board)]
    _once((str(member.address) for member in members), f"{path}: board.address")
    if chosen:
        wanted = [part.strip() for part in chosen.split(",")]
        for name in wanted:
            if name not in names:
                raise ConfigError(f"{path} has no board {name!r}{did_you_mean(name, names)}")
        members = [member for member in members if member.name in wanted]
    require = inventory.require or len(members)
    if inventory.require is not None and inventory.require > len(inventory.board):
        raise ConfigError(f"{path}: require is {require}, and there are {len(inventory.board)} boards")
    return Fleet(tuple(members), min(require, len(members)))


def _member(path: Path, number: int, entry: Entry, keys: Path) -> Member:
    where = f"{path}: board.{number} ({entry.name})"
    try:
        address = Address.parse(entry.address)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).replace('--on', 'address')}") from error
    if entry.identity is not None:
        identity = path.parent / Path(entry.identity).expanduser()
        # a quote or a control character would end the word in ssh's own reading of its options
        if not identity.is_file() or re.search(r'["\\\x00-\x1f%]', str(identity)):
            raise ConfigError(f"{where}: there is no file {identity}; identity is a private key")
        address = replace(address, identity=identity.absolute())
    if entry.host_key is not None:
        known = keys / f"{entry.name}.known_hosts"
        known.write_text(f"{entry.name} {_host_key(where, entry.host_key)}\n")
        address = replace(address, known_hosts=known.absolute(), alias=entry.name)
    return Member(entry.name, address)


def _host_key(where: str, text: str) -> str:
    """Type and key of a line like that in /etc/ssh/ssh_host_ed25519_key.pub; ConfigError for what is none."""
    words = text.split()
    wrong = ConfigError(
        f"{where}: host_key is not a public key; give the line of the board's /etc/ssh/ssh_host_ed25519_key.pub"
    )
    if len(words) < 2 or not re.fullmatch(r"[a-z0-9@.-]+", words[0]):
        raise wrong
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong from error
    kind = words[0].encode()
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind) or len(blob) <= 4 + len(kind):
        raise wrong
    return f"{words[0]} {words[1]}"


def _once(values: Iterable[str], where: str) -> None:
    """ConfigError for what is named twice: a board does one thing at a time."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"{where}: {value} is named twice; name every board once")
        seen.add(value)


def _folder_name(address: Address) -> str:
    """An address as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(address).removeprefix("ssh://")).strip("-")
