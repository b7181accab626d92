"""A checkpoint's folder before any library reads it: only plain files, of sizes that make sense, that name no code to run.

Libraries open files of a folder by themselves, so the folder is looked through first: no link leads out of it, nothing in it is a
device or a FIFO, and its configurations name no module, no kernel and no number beyond what the weights hold.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.edge import files
from fmopt.edge.errors import EdgeError, shorten

READ = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja")  # ends of the names of what libraries read
LARGEST = {".json": 64 << 20, ".txt": 64 << 20, ".model": 64 << 20, ".jinja": 1 << 20}  # bytes
LARGEST_TOKENIZER = 512 << 20
CONFIGURATIONS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "adapter_config.json", "sentence_bert_config.json",
)  # fmt: skip
CODE = (
    "custom_pipelines",
    "custom_generate",
    "auto_mapping",
    "base_model_class",
)  # keys that name modules to import; auto_map is left to who knows whether transformers has the network by itself
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "attention_implementation")
OWN_ATTENTION = (
    None,
    "",
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "paged_attention",
)
# Keys of numbers that a network is built by, one part after the other; others are rates, factors and ids.
COUNTED = ("num_", "n_", "layers", "depths")
SIZES = ("_size", "_dim", "d_model", "d_ff", "d_kv", "_positions", "position_embeddings", "_length", "_layers")
FEWEST_ALLOWED = 65_536  # of what is counted: ALBERT's layers, say, share their tensors
LARGEST_SIZE = 1 << 24


def look_through(folder: Path) -> dict[Path, dict[str, Any]]:
    """The configurations of a folder by their paths; CheckpointError for one that names code, and for a file in the folder that
    must not be read."""
    allowed = _allowed(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in READ:
            _require_plain(path, allowed)
    paths = (folder / name for name in CONFIGURATIONS)
    found = {path: read_config(path, allowed) for path in paths if path.is_file()}
    for path, config in found.items():
        _refuse_code(path, config)
    return found


def read_config(path: Path, allowed: tuple[Path, ...] | None = None) -> dict[str, Any]:
    """A JSON file of a checkpoint whose top level is an object; CheckpointError for anything else."""
    return read_json(path, dict, allowed)


def read_json(path: Path, kind: type, allowed: tuple[Path, ...] | None = None) -> Any:
    """A JSON file of a checkpoint whose top level is `kind`; CheckpointError for anything else."""
    _require_plain(path, _allowed(path.parent) if allowed is None else allowed)
    try:
        return files.parsed(path.read_bytes(), "it", kind)
    except (EdgeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); get the file again") from error


def inner_folder(folder: Path, name: object) -> Path:
    """A folder that a file of a checkpoint names, inside it; CheckpointError for any other place."""
    if name == "":
        return folder
    if not files.is_plain_name(name) or not _lies_in(folder / str(name), _allowed(folder)):
        raise CheckpointError(f"{folder} names {shorten(files.printable(name))}, which is no folder inside it")
    return folder / str(name)


def require_possible(path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """CheckpointError for a config.json with numbers that its weights cannot have: a network of them is never begun."""
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    most = max(FEWEST_ALLOWED, len(shapes), widest)
    for key, value in _numbers(config):
        counted = (
            key.startswith(COUNTED) or key in ("layers", "depths") or key.endswith(("_layers", "_labels", "_heads"))
        )
        limit = most if counted else LARGEST_SIZE if key.endswith(SIZES) else None
        if limit is not None and not -1 <= value <= limit:
            raise CheckpointError(
                f"{path} says {key} {value!r}, which its weights ({len(shapes)} tensors, none with more than {widest:,} rows) do "
                "not have; get the file again"
            )


def _numbers(config: Any, key: str = "") -> Iterator[tuple[str, float]]:
    todo = [(key, config)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            todo += [(key, inner) for inner in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _allowed(folder: Path) -> tuple[Path, ...]:
    """Where links of a folder may lead: into itself, and of the hub's own cache into that model's part of it."""
    place = folder.resolve()
    of_hub = place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--")
    return (place, place.parent.parent) if of_hub else (place,)


def _lies_in(path: Path, allowed: tuple[Path, ...]) -> bool:
    found = path.resolve()
    return any(found == place or found.is_relative_to(place) for place in allowed)


def require_plain(path: Path, home: Path) -> None:
    """CheckpointError unless `path` is a plain file in the folder `home`, or of the same model in the hub's own cache."""
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(f"there is no file {path}")
    _require_plain(path, _allowed(home))
    if not path.is_file():
        raise CheckpointError(f"{path} is no plain file; get it again")


def _require_plain(path: Path, allowed: tuple[Path, ...]) -> None:
    """CheckpointError unless `path` is a plain file within `allowed`, of a size that makes sense; or is not there."""
    try:
        if not _lies_in(path, allowed):
            raise CheckpointError(f"{path} is a link that leads out of the folder; copy the file there")
        at = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to nothing; get the file again") from None
        return
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise CheckpointError(f"{path} cannot be read ({error}); get the file again") from error
    if not stat.S_ISREG(at.st_mode) and not stat.S_ISDIR(at.st_mode):
        raise CheckpointError(f"{path} is no plain file; get it again")
    most = LARGEST_TOKENIZER if path.name == "tokenizer.json" else LARGEST.get(path.suffix)
    if most is not None and at.st_size > most and stat.S_ISREG(at.st_mode):
        raise CheckpointError(f"{path} has {at.st_size:,} bytes, too many for what it should be; get the file again")


def _refuse_code(path: Path, config: Any) -> None:
    """CheckpointError for a configuration that names code: a module, a kernel of the hub."""
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key in CODE and inner:
                    raise CheckpointError(
                        f"{path} wants to run code of its own ({key}); fmopt runs no code from a checkpoint. If transformers "
                        f"knows the model by itself, remove {key} from the file, else pick another model"
                    )
                if key in ATTENTION:
                    _refuse_kernel(path, key, inner)
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _refuse_kernel(path: Path, key: str, value: Any) -> None:
    for name in value.values() if isinstance(value, Mapping) else (value,):
        if name not in OWN_ATTENTION:
            raise CheckpointError(
                f"{path} names a kernel to fetch and run ({key}: {shorten(files.printable(name))}); fmopt runs no code that a "
                "checkpoint names. Remove it from the file"
            )
