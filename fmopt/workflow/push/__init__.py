"""Handing a bundle to where models are kept: a hub, a folder to commit, an MLflow registry."""
