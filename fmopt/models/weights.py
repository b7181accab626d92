"""Weight files of a checkpoint: are they whole, what do they hold, and how pickles become safetensors.

Nothing is loaded to find out: a safetensors file begins with a header that says where every tensor lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from fmopt.core.errors import CheckpointError
from fmopt.core.stages.store import link_or_copy
from fmopt.models.received import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class Tensor(NamedTuple):
    """A tensor of a file, before it is loaded."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it: "F32", "BF16", "I64"


@dataclass(frozen=True)
class Weights:
    """What the headers of a checkpoint's safetensors files say."""

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int  # elements of floating-point tensors; position ids and the like are no parameters
    size_bytes: int


def read_weights(folder: Path) -> Weights:
    """Check the safetensors files of `folder` against their headers, and count; an error names the broken file."""
    files = weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    parameters = 0
    for path in files:
        for name, tensor in read_header(path).items():
            if name.endswith((".weight", ".bias")) and "F" not in tensor.dtype:
                raise CheckpointError(
                    f"{path} holds {name} as {tensor.dtype}, which are no weights of a network; get the checkpoint again, "
                    "or the one that it was quantized from"
                )
            shapes[name] = tensor.shape
            parameters += math.prod(tensor.shape) if "F" in tensor.dtype else 0
    if not shapes:
        raise CheckpointError(f"{files[0]} holds no tensors; get the checkpoint again")
    return Weights(files, shapes, parameters, sum(path.stat().st_size for path in files))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that transformers would load, all of them there."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        shards = sorted(set(_index(folder / INDEX).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {INDEX} names {len(shards)} shards and {', '.join(missing)} is missing; get the file again"
            )
        return tuple(folder / name for name in shards)
    if has_pickle(folder):
        raise CheckpointError(
            f"{folder} has only pickled weights ({next(name for name in PICKLES if (folder / name).is_file())}), and a "
            "pickle can run code; give --allow-pickle to read it with weights_only and convert it, or convert it "
            "yourself with AutoModel.from_pretrained(…).save_pretrained(…)"
        )
    formats = (".safetensors", ".h5", ".msgpack", ".onnx")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in formats)
    found = f" (there is {', '.join(others[:3])})" if others else ""
    raise CheckpointError(f"{folder} has no {SINGLE}{found}; fmopt starts from PyTorch weights in safetensors")


def has_pickle(folder: Path) -> bool:
    """Whether there are pickled PyTorch weights in `folder`."""
    return any((folder / name).is_file() for name in PICKLES)


def read_header(path: Path) -> dict[str, Tensor]:
    """What the header of a safetensors file says of its tensors, checked by the library against the file's length."""
    with path.open("rb") as stream:
        if stream.read(7) == b"version":
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Tensor(tuple(part.get_shape()), str(part.get_dtype())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or was not downloaded whole: {reason}; get the file again"
        ) from error


def convert_pickle(folder: Path, out: Path) -> None:
    """Read the pickled weights of `folder` with weights_only, which runs no code, and write `out`/model.safetensors."""
    import pickle

    import torch
    from safetensors.torch import save_file

    index = folder / PICKLES[1]
    names = [PICKLES[0]] if (folder / PICKLES[0]).is_file() else sorted(set(_index(index).values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        try:
            loaded = torch.load(folder / name, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder}: {PICKLES[1]} names {name}, which is missing; get it again") from error
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{folder / name} holds more than tensors, so it was not read; ask its authors for safetensors"
            ) from error
        except Exception as error:  # each kind of damage has its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{folder / name} cannot be read ({reason}); get it again") from error
        if not isinstance(loaded, Mapping):
            raise CheckpointError(f"{folder / name} holds no table of weights; save the model's state_dict")
        # Copies: safetensors refuses tensors that share memory, as tied embeddings do.
        tensors |= {key: value.contiguous().clone() for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{folder / names[0]} holds no tensors; save the model's state_dict")
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})


def link_files(folder: Path, out: Path, skip: frozenset[str]) -> None:
    """The files of `folder` in `out` too, but those in `skip`: as further names of the same files where the disk allows it, so
    that a converted checkpoint takes little room."""
    for path in sorted(folder.rglob("*")):
        place = out / path.relative_to(folder)
        if path.is_file() and path.name not in skip and not path.relative_to(folder).parts[0].startswith("."):
            link_or_copy(path, place)


def _index(path: Path) -> dict[str, str]:
    try:
        index = read_json(path, dict)
        weight_map = index["weight_map"]
        _ = index["metadata"]  # transformers insists on it
        # A name with a folder in it would reach outside the checkpoint.
        if not all(Path(name).name == name for name in weight_map.values()):
            raise ValueError("a shard lies outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of weights ({error}); get the file again") from error
    return dict(weight_map)
