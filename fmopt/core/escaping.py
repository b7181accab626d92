"""Text that came from somewhere, made harmless for where it is shown: a terminal, Markdown, a command to copy.

HTML is escaped by its templates (reports/html.py).
"""

from __future__ import annotations

import re
import shlex

from fmopt.edge.files import printable

_MARKUP = re.compile(r"[\\`*_\[\]|~]|(?<=www)\.")
_HTML_OR_LINK = re.compile(r"[<>&]|:(?=//)|@(?=\w)")
_HARMLESS_IN_QUOTES = re.compile(r'[^"$`\\!\n]*')


def terminal(text: object) -> str:
    """For a terminal: characters that it would obey are spelled out."""
    return printable(text)


def one_line(text: object) -> str:
    """For a line of its own: what a terminal would obey is spelled out, and every run of blanks and line breaks is one blank."""
    return printable(" ".join(str(text).split()))


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
    return f'"{line}"' if _HARMLESS_IN_QUOTES.fullmatch(line) else shlex.quote(line)
