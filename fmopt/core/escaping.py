"""Text that came from somewhere, made harmless for where it is shown: a terminal, HTML, Markdown, a command to copy.

Whole pages are escaped by their templates (reports/html.py).
"""

from __future__ import annotations

import html as html_entities
import re
import shlex
from collections.abc import Iterable

from fmopt.edge.files import printable

_MARKUP = re.compile(r"[\\`*_\[\]|~]|(?<=www)\.")
_HTML_OR_LINK = re.compile(r"[<>&]|:(?=//)|@(?=\w)")
_NEEDS_SPELLING = re.compile(r"[<`\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\udc80-\udcff]")
_HARMLESS_IN_QUOTES = re.compile(r'[^"$`\\!\n]*')


def terminal(text: object) -> str:
    """For a terminal: characters that it would obey are spelled out."""
    return printable(text)


def one_line(text: object) -> str:
    """For a line of its own: what a terminal would obey is spelled out, and every run of blanks and line breaks is one blank."""
    return printable(" ".join(str(text).split()))


def html(text: object) -> str:
    """For HTML, inside an element or a quoted attribute: nothing in it is a tag, an entity or the end of a quote."""
    return html_entities.escape(printable(text))


def markdown(text: object) -> str:
    """For running text or a table's cell of a Markdown page: nothing in it is markup, a link, a picture or HTML."""
    plain = _MARKUP.sub(lambda found: f"\\{found.group()}", one_line(text))
    return _HTML_OR_LINK.sub(lambda found: f"&#{ord(found.group())};", plain)


def fenced(text: object) -> str:
    """A block of code of one line, whatever that line holds."""
    line = one_line(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", line)), default=0))
    return f"{fence}\n{line}\n{fence}"


def shell_word(text: str) -> str:
    """One word of a command line to copy, in double quotes where these are enough."""
    line = one_line(text)
    return f'"{line}"' if _HARMLESS_IN_QUOTES.fullmatch(line) and "<" not in line else _quoted(line)


def command_line(words: Iterable[str]) -> str:
    """Words as one line to copy into a shell, which a page or a terminal can show: nothing in it is HTML, a fence or obeyed."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if not _NEEDS_SPELLING.search(word):
        return shlex.quote(word)
    return "$'" + _NEEDS_SPELLING.sub(_spelled, word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _spelled(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found.group().encode("utf8", "surrogateescape"))
