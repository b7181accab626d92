"""Families: where the parts of an architecture are, one file each."""
