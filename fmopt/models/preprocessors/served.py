"""A folder whose tokenizer.json reads texts as transformers does with all settings beside it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from fmopt.core.model import TOKENIZER
from fmopt.models.preprocessors.tokenizer import as_served
from fmopt.models.source import cache_folder, made_once
from fmopt.models.weights import link_files

log = logging.getLogger(__name__)


def with_own_tokenizer(folder: Path, config: Any, origin: Path, *, lower_case: bool) -> Path:
    """`folder`, or a cached copy of it whose tokenizer.json does by itself what transformers makes of all of its settings."""
    content = as_served(folder, config, origin, lower_case=lower_case)
    if content is None:
        return folder
    key = hashlib.sha256(f"{folder.resolve()}\n{content}".encode("utf8", "surrogatepass")).hexdigest()[:16]

    def make(out: Path) -> None:
        link_files(folder, out, skip=frozenset({TOKENIZER}))
        (out / TOKENIZER).write_text(content, "utf8")

    place = made_once(cache_folder() / "converted" / f"{folder.name}-{key}", make)
    log.info("%s: tokenizer.json made as transformers reads it; using %s", folder, place)
    return place
