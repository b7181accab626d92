"""Benchmarks: matrix, scenarios, pages."""
