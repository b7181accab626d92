"""A tokenizer.json that came from somewhere: tried in a process of its own before the library that trusts it reads it here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EdgeError, need
from .files import is_left, leave, marker_of, parsed, tried_apart
from .parts import LARGEST_NUMBER, explained


def open_tokenizer(path: Path) -> Any:
    """A tokenizer.json as the tokenizers library reads it; EdgeError for one that it does not, or must not."""
    tokenizers = need("tokenizers", "tokenizers")
    if not path.is_file():
        raise EdgeError(f"{path} is missing; a model needs the tokenizer.json it was trained with")
    require_tokenizer(path)
    with explained(path):
        return tokenizers.Tokenizer.from_file(str(path))


def require_tokenizer(path: Path) -> None:
    """EdgeError for a tokenizer.json that the tokenizers library must not read: it trusts such a file, panics over some, and
    pads or replaces until memory ends by others. What was read once is not tried again."""
    tokenizers = need("tokenizers", "tokenizers")
    written = path.read_bytes()
    marker = marker_of("tried", RULES + tokenizers.__version__.encode() + written)
    if not is_left(marker):
        with explained(f"{path} is not a tokenizer this library reads"):
            _check_tokenizer(parsed(written, str(path)))
        wrong = tried_apart(
            [sys.executable, "-c", TRY_TOKENIZER, str(path), "\n".join(sys.path)], TRY_TOKENIZER_SECONDS
        )
        if wrong is not None:
            raise EdgeError(f"{path} is not a tokenizer this library reads: {wrong}")
        leave(marker)


TRY_TOKENIZER_SECONDS = 30.0
MOST_HOLES = 100_000  # numbers that no token has
RULES = b"2"  # counts up with `_check_tokenizer`, so that what was tried before is looked at by newer rules too
# What is tried of a tokenizer in a process of its own: it is read, and makes tokens of texts of several kinds.
TRY_TOKENIZER = r"""
import sys
sys.path[:] = sys.argv[2].split(chr(10))
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
except (ImportError, OSError, ValueError):
    pass
from tokenizers import Tokenizer
try:
    made = Tokenizer.from_file(sys.argv[1])
    made.no_padding()
    made.no_truncation()
    words = "The cat sat, on 12 mats! \u00e9\u4e2d\u0391 \U0001f600 a\tb\n"
    for text in ("", "a", words, words * 20, "a" * 200 + "!", "x" * 60, "aaaa " * 40):
        made.encode(text)
        made.encode(text, words)
    made.encode(["the", "cat"], is_pretokenized=True)
except BaseException as error:
    lines = str(error).splitlines() or [type(error).__name__]
    sys.exit("error: " + lines[-1][:200])
"""
MOST_GROWTH = 64  # times as long as a text may become by what a tokenizer replaces in it


def _check_tokenizer(written: Mapping[str, Any]) -> None:
    """ValueError for settings by which the library would never end, or end the process."""
    padding, truncation = written.get("padding") or {}, written.get("truncation") or {}
    fixed = padding["strategy"].get("Fixed", 0) if isinstance(padding.get("strategy"), dict) else 0
    for name, value in (("pads to", fixed), ("pads to multiples of", padding.get("pad_to_multiple_of") or 0)):
        if not isinstance(value, int) or not 0 <= value <= LARGEST_NUMBER:
            raise ValueError(f"it {name} {value} tokens")
    for name in ("max_length", "stride"):
        if not isinstance(truncation.get(name, 0), int) or not 0 <= truncation.get(name, 0) <= LARGEST_NUMBER:
            raise ValueError(f"its truncation says {truncation[name]!r} for {name!r}")
    model = written.get("model") or {}
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [one.get("id") for one in written.get("added_tokens") or () if isinstance(one, dict)]
    tokens = len(ids) + (len(vocabulary) if isinstance(vocabulary, list) else 0)
    for one in ids:  # the library walks all numbers up to the highest, and holds those that no token has
        if not isinstance(one, int) or not 0 <= one <= 4 * tokens + MOST_HOLES:
            raise ValueError(f"it gives a token the id {one!r:.40}, of {tokens} tokens")
    growth = 1.0
    todo: list[Any] = [written.get("normalizer")]
    while todo:
        step = todo.pop()
        if isinstance(step, dict) and step.get("type") == "Replace":
            pattern = step.get("pattern") or {}
            least = len(pattern["String"]) if isinstance(pattern.get("String"), str) else 1
            growth *= max(1.0, len(str(step.get("content", ""))) / max(1, least))
        elif isinstance(step, dict):
            todo += [inner for inner in step.get("normalizers") or () if isinstance(inner, dict)]
    if growth > MOST_GROWTH:
        raise ValueError(f"what it replaces makes a text {growth:.0f} times as long")
