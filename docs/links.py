"""Links of the pages to files beside docs/: checked to exist, and pointed at the repository, where the site has none of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page's text, links out of docs/ made absolute. PluginError for one that leads nowhere."""

    def absolute(match: re.Match[str]) -> str:
        target = (Path(page.file.abs_src_path).parent / match[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists() or not target.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_path}: the link to {match[1]} leads nowhere")
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{target.relative_to(ROOT).as_posix()}{match[2] or ''})"

    return OUTSIDE.sub(absolute, markdown)
