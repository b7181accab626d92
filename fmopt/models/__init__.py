"""Checkpoints and architectures."""
