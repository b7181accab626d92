"""Results as a notebook shows them: a title, sentences and a table, in which nothing of a text is HTML."""

from __future__ import annotations

from collections.abc import Sequence

from fmopt.core import escaping


def view(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], sentences: Sequence[str] = ()) -> str:
    """HTML of a title, sentences and a table; line breaks in a cell stay. Colours are those of the notebook."""
    said = "".join(f"<p>{escaping.html(sentence)}</p>" for sentence in sentences if sentence)
    head = "".join(f"<th>{escaping.html(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div><strong>{escaping.html(title)}</strong>{said}{table}</div>"


def _cell(text: str) -> str:
    lines = "<br>".join(escaping.html(line) for line in text.split("\n"))
    return f'<td style="text-align: left; vertical-align: top">{lines}</td>'
