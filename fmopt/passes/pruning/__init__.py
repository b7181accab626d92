"""Scores of what can be left out, and the search over widths."""
