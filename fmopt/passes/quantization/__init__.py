"""Quantized layers and their rounding."""
