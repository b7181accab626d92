"""Where an ONNX graph lies in a folder: beside config.json, as optimum writes it, or in `onnx/`, as transformers.js reads it."""

from __future__ import annotations

from pathlib import Path

from fmopt.core.errors import CheckpointError
from fmopt.edge.manifest import MANIFEST

FULL = ("model.onnx", "onnx/model.onnx")  # in full precision, where there are others
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
INNER = "onnx"  # transformers.js' folder for graphs, whose config.json lies one level up
BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
PARTS = ("decoder", "encoder")  # beginnings of names of graphs that hold a part of a network


def graph_in(folder: Path) -> Path | None:
    """The ONNX graph that a folder is for; None for one with a network's weights, a bundle, or without a graph.

    CheckpointError where there are several and none of them is the one in full precision.
    """
    if (folder / MANIFEST).is_file() or any(
        any(folder.glob(f"{place}{name}")) for name in WEIGHTS for place in ("", "*/")
    ):
        return None
    found = sorted([*folder.glob("*.onnx"), *(folder / INNER).glob("*.onnx")])
    if not found:
        return None
    full = [folder / name for name in FULL if (folder / name) in found]
    if full or len(found) == 1:
        return (full or found)[0]
    if any(path.name.startswith(PARTS) for path in found):
        return next(path for path in found if path.name.startswith(PARTS))  # refused by what it takes
    names = ", ".join(path.relative_to(folder).as_posix() for path in found[:6])
    raise CheckpointError(f"{folder} holds several ONNX graphs ({names}); name the one that you mean")


def home_of(graph: Path) -> Path:
    """The folder in which what belongs to a graph lies: its own, or the one above transformers.js' `onnx/`."""
    above = graph.parent.parent
    inside = graph.parent.name == INNER and not any((graph.parent / name).is_file() for name in BESIDE)
    return above if inside and any((above / name).is_file() for name in BESIDE) else graph.parent
