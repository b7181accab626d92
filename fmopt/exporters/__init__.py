"""Torch to graph, graph to graph, graph to bundle."""
