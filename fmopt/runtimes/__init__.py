"""Runtimes: each builds, opens and clocks artifacts, one file each."""
