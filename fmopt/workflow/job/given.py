"""Networks and data sets that callers hand over as objects: written once into the cache, as the files that everything reads."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from fmopt.core.errors import ConfigError, DataError
from fmopt.core.model import file_digest
from fmopt.core.plugins import did_you_mean
from fmopt.models.families.base import find_family
from fmopt.models.source import cache_folder, made_once
from fmopt.models.structure import STRUCTURE, structure_of

if TYPE_CHECKING:
    import datasets
    import torch

    Model: TypeAlias = str | Path | torch.nn.Module
    Data: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict | Sequence[dict[str, Any]]

READERS = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "vocab.json")  # one of them is needed


class ReadingOptions(TypedDict, total=False):
    """How a model and data are read, where they do not say it themselves."""

    tokenizer: Any  # what reads the samples of a live network of texts; of an ONNX file the folder that it lies in
    processor: Any  # the same of images or audio
    columns: Mapping[str, str] | None  # role -> column of the data
    allow_pickle: bool  # pickled weights are read (with weights_only)


def require_options(given: Collection[str], known: Collection[str]) -> None:
    """ConfigError for a keyword that there is not."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"there is no option {unknown!r}{did_you_mean(unknown, known)}")


def model_path(model: Model, tokenizer: Any = None, processor: Any = None) -> str:
    """What names a model: itself, or the folder in the cache that a live network was written to with what reads its samples.

    The same weights with the same tokenizer or processor (what `save_pretrained` writes of each) give the same folder. The
    network stays as it is. ConfigError for a network that transformers cannot save, or that nothing reads samples for.
    """
    live = None if tokenizer_folder(model, tokenizer) else tokenizer
    readers = [one for one in (live, processor) if one is not None]
    if isinstance(model, str | Path):
        if readers:
            raise ConfigError(f"tokenizer and processor go with a live network; {model} brings its own: leave them out")
        return str(model)
    kind = type(model).__name__
    for one in (model, *readers):
        if not hasattr(one, "save_pretrained"):
            raise ConfigError(
                f"{type(one).__name__} has no save_pretrained, so it cannot be written as a checkpoint; give a network, "
                "tokenizer or processor of transformers, or the name of a model or its folder"
            )

    def write(folder: Path) -> None:
        for one in (model, *readers):
            one.save_pretrained(folder)
        if not any((folder / name).is_file() for name in READERS):
            raise ConfigError(
                f"{kind} was given without what reads its samples; give tokenizer=… for texts, else processor=…"
            )
        family = find_family(str(getattr(getattr(model, "config", None), "model_type", "")))
        if family is not None and not family.pruning_refusal:  # it may be pruned, which its configuration does not say
            (folder / STRUCTURE).write_text(structure_of(model, family).model_dump_json(indent=1))

    return str(_kept("given-models", kind, write))


def tokenizer_folder(model: Model, tokenizer: Any) -> str | None:
    """Where the tokenizer of an ONNX file lies, by the `tokenizer` that was given; None for that of a live network."""
    named = isinstance(tokenizer, str | Path) and isinstance(model, str | Path)
    return str(tokenizer) if named else None


def data_path(data: Data | None) -> str | None:
    """What names a data set: itself, or where in the cache a `datasets.Dataset`, a `DatasetDict` or a list of dicts was written
    to as parquet, a file for each split. DataError for anything else, and for rows that are no table."""
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data)
    import datasets

    if isinstance(data, datasets.DatasetDict):
        splits = dict(data)
    elif isinstance(data, datasets.Dataset):
        splits = {"rows": data}
    elif isinstance(data, Sequence) and data and all(isinstance(row, dict) for row in data):
        try:
            splits = {"rows": datasets.Dataset.from_list(list(data))}
        except Exception as error:  # pyarrow's kinds of error are many
            raise DataError(f"the rows given are no table: {' '.join(str(error).split())[:200]}") from error
    else:
        raise DataError(
            f"data is a {type(data).__name__}; give a path, a name, a datasets.Dataset or DatasetDict, or a list of dicts"
        )

    def write(folder: Path) -> None:
        shown = not datasets.utils.are_progress_bars_disabled()
        datasets.utils.disable_progress_bars()
        try:
            for split, rows in splits.items():
                rows.to_parquet(folder / f"{split}.parquet")
        finally:
            if shown:
                datasets.utils.enable_progress_bars()

    folder = _kept("given-data", "data", write)
    return str(folder / "rows.parquet" if set(splits) == {"rows"} else folder)


def _kept(kind: str, name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache with the files that `write` makes, named by what they hold."""
    home = cache_folder() / kind
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".making-") as scratch:
        made = Path(scratch)
        write(made)
        files = sorted(path for path in made.rglob("*") if path.is_file())
        total = hashlib.sha256("".join(f"{path.relative_to(made)}:{file_digest(path)}\n" for path in files).encode())

        def move(folder: Path) -> None:
            for path in made.iterdir():
                path.rename(folder / path.name)

        return made_once(home / f"{name}-{total.hexdigest()[:16]}", move)
