"""Words of the command as values; a word that means nothing is a ConfigError that says what would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fmopt.core.errors import ConfigError
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import file_bytes

MOST = 65_536  # of items, tokens or threads of one call


def read_lines(path: Path) -> list[str]:
    """Texts of a file, one per line; empty lines are skipped."""
    try:
        lines = file_bytes(path).decode().split("\n")  # str.splitlines would also cut at characters inside texts
        return [text for line in lines if (text := line.removesuffix("\r")).strip()]
    except EdgeError as error:
        raise ConfigError(str(error) if path.exists() else f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error


def parse_columns(text: str | None) -> dict[str, str] | None:
    """`text=sentence,label=label` → {"text": "sentence", "label": "label"}."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(role and mark and column for role, mark, column in pairs):
        raise ConfigError(f"--columns {text!r} is not of the form text=sentence,label=label")
    return {role.strip(): column.strip() for role, _, column in pairs}


def parse_choice(name: str, value: str, allowed: tuple[str, ...]) -> Any:
    """One of a few words."""
    if value not in allowed:
        raise ConfigError(f"--{name} {value!r} is not one of {', '.join(allowed)}")
    return value


def parse_choices(name: str, text: str, allowed: tuple[str, ...]) -> Any:
    """Some of a few words: `offline,server`, each once."""
    return tuple(dict.fromkeys(parse_choice(name, part.strip(), allowed) for part in text.split(",")))


def parse_count(name: str, text: str, word: str) -> Any:
    """A positive number, or the word that stands for one."""
    if text == word:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--{name} {text!r} is neither a positive number nor {word!r}")
    return int(text)


def parse_threads(text: str, board: str | None) -> int:
    """A number, or "all" cores of this machine; ConfigError for "all" of a `board`, whose cores are counted there."""
    count = parse_count("threads", text, "all")
    if count != "all":
        return int(count)
    if board is not None:
        raise ConfigError("--threads all is about this machine; with --on say how many of the board's cores")
    from fmopt.measurement import host_probe

    return host_probe.cores()


def parse_counts(name: str, text: str) -> list[int]:
    """`1,8` → [1, 8]."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--{name} {text!r} is not a list of positive numbers like 1,8")
    counts = [int(part) for part in parts]
    if max(counts) > MOST:
        raise ConfigError(f"--{name} {max(counts)} is beyond what is timed; give at most {MOST}")
    return counts


def parse_share(name: str, text: str) -> float | None:
    """`5%` → 0.05; None for `none`."""
    if text == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
    if not match:
        raise ConfigError(f"--{name} {text!r} is not a share like 5%, or none")
    return float(match[1]) / 100


def parse_seconds(text: str) -> float:
    """`30m`, `90s`, `2h` → seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text)
    if not match:
        raise ConfigError(f"--time-limit {text!r} is not a time like 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def parse_bytes(text: str) -> int:
    """`500MB`, `1GB` → bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])B", text, re.IGNORECASE)
    if not match:
        raise ConfigError(f"{text!r} is not a size like 500MB or 1GB")
    return int(float(match[1]) * {"M": 1 << 20, "G": 1 << 30}[match[2].upper()])
