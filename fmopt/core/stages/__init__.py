"""Stages that are finished once and used again: in a folder, shared by several, and sealed."""
