"""Passes: each makes a model smaller or faster, one file each."""
