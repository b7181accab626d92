"""Bundles: written, opened, signed, described."""
