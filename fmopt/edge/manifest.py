"""The manifest of a bundle, and whether its files are what it lists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EdgeError, last_line, shorten
from .files import (
    SHA256,
    damage_of,
    external_files,
    hashed,
    is_plain_name,
    parsed,
    printable,
    read_inside,
    strangers,
)
from .parts import check_pipeline

FORMAT = "fmopt-bundle-1"


MANIFEST, GOLDEN, UNFINISHED = "fmopt.json", "golden.json", ".fmopt-writing"


# What may lie beside the files of a manifest: written after it, or by a run of ours.
UNLISTED = frozenset(
    {
        MANIFEST,
        "record.json",
        "report.html",
        "report.md",
        "stages",
        "running",
        "checkpoint",
        "bundle.tmp",
        ".fmopt",
        ".fmopt.lock",
        ".git",  # where a bundle is kept by git, or was fetched from a model hub
        ".gitattributes",
        ".cache",
    }
)
LEFT_BY_PYTHON = {"__pycache__": "; Python leaves it where a file of a bundle is imported: remove it"}
SIGNED_WITHOUT = UNLISTED - {MANIFEST}  # what a signature does not cover: it is written after, or by a run of ours
KINDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "digest": str, "title": str, "task": str, "verdict": str, "runtime": str, "options": dict, "model_file": str,
    "needs_isa": list, "pipeline": dict, "recipe": dict, "checkpoint": dict, "versions": dict, "host": dict, "files": dict,
}  # fmt: skip  # of what a manifest says


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's fmopt.json, checked against its own digest and for what it must say. EdgeError when it is none, or damaged."""
    path = Path(folder) / MANIFEST
    if os.path.lexists(Path(folder) / UNFINISHED):
        raise EdgeError(f"{folder} is not finished: writing it was interrupted; make the bundle again")
    if not os.path.lexists(path):
        raise EdgeError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        text = read_inside(folder, MANIFEST).decode()
        metadata: dict[str, Any] = parsed(text, MANIFEST)
    except EdgeError as error:
        raise EdgeError(f"{Path(folder) / str(error)}") from error
    except ValueError as error:
        raise EdgeError(f"{path} is damaged: {last_line(error)}") from error
    if metadata.get("format") != FORMAT:
        raise EdgeError(
            f"{path} is of format {shorten(repr(metadata.get('format')))}, this file reads {FORMAT!r}; use the run.py beside it"
        )
    digest = metadata.get("digest")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest) or digest != manifest_digest(text, digest):
        raise EdgeError(f"{path} was changed after it was written; make the bundle again")
    try:
        _check_manifest(metadata)
    except EdgeError as error:
        raise EdgeError(f"{path} is damaged: {error}") from error
    metadata["pipeline"] = with_current_names(metadata["pipeline"])
    return metadata


# What a pipeline called settings of generation before it took the names of generation_config.json.
EARLIER_NAMES = {
    "start": "decoder_start_token_ids",
    "stop_ids": "eos_token_id",
    "beams": "num_beams",
    "suppress": "suppress_tokens",
    "suppress_first": "begin_suppress_tokens",
    "no_repeat": "no_repeat_ngram_size",
    "fewest": "min_new_tokens",
    "early": "early_stopping",
    "first": "forced_bos_token_id",
    "last": "forced_eos_token_id",
}


def with_current_names(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline as this version reads it, also one that an earlier version wrote."""
    found = {EARLIER_NAMES.get(name, name): value for name, value in pipeline.items()}
    if "early" in pipeline:
        found["early_stopping"] = bool(pipeline["early"])
    if "last" in pipeline:
        found["forced_eos_token_id"] = [pipeline["last"]]
    return found


def _check_manifest(metadata: Mapping[str, Any]) -> None:
    """EdgeError for a manifest that lacks something, or says it by another kind of value."""
    for key, kind in KINDS.items():
        if not isinstance(metadata.get(key), kind):
            raise EdgeError(f"it says {shorten(metadata.get(key))} for {key!r}")
    files, name = metadata["files"], metadata["model_file"]
    for listed, entry in files.items():
        entry = entry if isinstance(entry, dict) else {}
        size, digest = entry.get("bytes"), entry.get("sha256")
        if not is_plain_name(listed):
            raise EdgeError(f"it lists {shorten(printable(listed))}, which is not the name of a file inside the folder")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise EdgeError(f"it does not say how many bytes {listed} has, and which sha256")
    if name not in files and not (name == "." and any(one.endswith(".safetensors") for one in files)):
        raise EdgeError(f"the model is in {shorten(printable(name))}, which is none of its files")
    if not all(isinstance(feature, str) for feature in metadata["needs_isa"]):
        raise EdgeError("it says no names of CPU features for 'needs_isa'")
    host = metadata["host"]
    if not isinstance(host.get("cpu"), str) or not isinstance(host.get("isa"), list):
        raise EdgeError("it does not say on which host it was made")
    check_pipeline(metadata["pipeline"])


def manifest_digest(text: str, digest: str) -> str:
    """sha256 of a manifest's text without its own digest, so that it vouches for every other byte of itself."""
    return hashlib.sha256(text.replace(digest, "").encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashed(stream)


def verify(folder: Path) -> list[str]:
    """What is wrong with a bundle's files, one line each naming the file; empty when all is as it was written."""
    folder = Path(folder)
    try:
        metadata = read_manifest(folder)
    except EdgeError as error:
        return [str(error)]
    problems = damaged_files(folder, metadata)
    beside = strangers(folder, metadata["files"], UNLISTED)
    return problems + [
        f"{printable(name)} does not belong to the bundle{LEFT_BY_PYTHON.get(Path(name).name, '')}" for name in beside
    ]


def damaged_files(folder: Path, metadata: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that a manifest lists, and with those that its graph reads, one line each."""
    problems = [
        found
        for name, entry in metadata["files"].items()
        if (found := damage_of(folder, name, entry)) is not None
    ]  # fmt: skip
    model = metadata["model_file"]
    if problems or not model.endswith(".onnx"):
        return problems
    try:
        read = external_files(memoryview(read_inside(folder, model, metadata["files"][model]["bytes"])))
    except ValueError as error:
        return [f"{model} is no ONNX file: {error}"]
    beside = model.rpartition("/")[0]
    names = [f"{beside}/{name}" if beside else name for name in sorted(read)]
    return [
        f"{model} wants weights from {shorten(printable(name))}, which is none of the bundle's files"
        for name in names
        if name not in metadata["files"]
    ]


def whole_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all as they were written; EdgeError names those that are not."""
    metadata = read_manifest(folder)
    damage = damaged_files(Path(folder), metadata)
    if damage:
        raise EdgeError(f"{folder} is damaged: {'; '.join(damage)}; copy the bundle again, or make it again")
    return metadata
