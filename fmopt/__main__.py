"""`python -m fmopt`: the command where its script is not on the path."""

from __future__ import annotations

from fmopt.cli.app import entry

entry()
