"""What of a bundle is pushed: the files that its manifest lists, found whole, and a model card for its README."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core import escaping
from fmopt.core.errors import BundleError, ConfigError
from fmopt.core.model import CheckpointMetadata
from fmopt.edge import files
from fmopt.edge.manifest import GOLDEN, MANIFEST
from fmopt.edge.parts import EdgeError
from fmopt.evaluation.record import FILE, Record
from fmopt.exporters.bundles.bundle import bundle_artifact, bundle_metadata, checked
from fmopt.exporters.bundles.resealing import with_readme
from fmopt.reports.model_card import model_card

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Release:
    """A bundle with its card, ready to be handed on. `files` are all that it consists of, by name: a path where they lie, or
    what they hold."""

    manifest: Mapping[str, Any]
    metadata: CheckpointMetadata
    record: Record | None
    licence: str
    files: Mapping[str, Path | bytes]

    @property
    def verdict(self) -> str:
        """What the gate said, by the record or else by the manifest."""
        return self.record.verdict.outcome.value if self.record else escaping.one_line(self.manifest["verdict"])

    @property
    def title(self) -> str:
        """What the model is called, in one line."""
        return escaping.one_line(self.metadata.source.title)

    @property
    def digest(self) -> str:
        """Of the manifest as it is pushed, with the card."""
        content = self.files[MANIFEST]
        text = content if isinstance(content, bytes) else content.read_bytes()
        return str(files.parsed(text, MANIFEST)["digest"])

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.files.values())


def release_of(bundle: str | Path, *, licence: str | None = None, base_model: str | None = None) -> Release:
    """The bundle in the folder `bundle` with its model card.

    Nothing but what its manifest lists is part of it, after every file's sha256 was checked; a record beside it is read for the
    card, and must be the bundle's own. `licence` is that of the model, where the bundle states none or another; `base_model` is
    the hub name "owner/name" of what it was made from. BundleError for a damaged bundle or another's record, ConfigError
    without a licence.
    """
    folder = Path(bundle)
    manifest, metadata = checked(folder), bundle_metadata(folder)
    licence = (licence or metadata.source.licence or "").strip()
    if not licence:
        raise ConfigError(
            f"{folder} states no licence, and a model card needs one; say which with --license, such as --license apache-2.0"
        )
    if base_model is not None and not HUB_NAME.fullmatch(base_model):
        raise ConfigError(f"--base-model {base_model!r} is no name of a hub; it is owner/name")
    record = record_of(folder, manifest)
    try:
        golden = files.read_json(folder, GOLDEN).get("origin", "data") if GOLDEN in manifest["files"] else "none"
    except EdgeError as error:
        raise BundleError(f"{folder}: {error}") from error
    card = model_card(
        metadata, bundle_artifact(folder), manifest, record, licence=licence, base_model=base_model, golden=str(golden)
    )
    listed = {name: (folder / name).resolve() for name in [*manifest["files"], MANIFEST]}
    return Release(manifest, metadata, record, licence, {**listed, **with_readme(folder, card)})


def record_of(folder: Path, manifest: Mapping[str, Any]) -> Record | None:
    """The record beside a bundle, None where there is none; BundleError for one of another model, recipe or verdict."""
    if not os.path.lexists(folder / FILE):
        return None
    record = Record.load(folder / FILE, lenient=True)
    said = (record.model.get("digest"), record.winner, record.verdict.outcome.value)
    known = (manifest["checkpoint"].get("digest"), manifest["recipe"].get("name"), manifest["verdict"])
    for what, ours, theirs in zip(("model", "recipe", "verdict"), known, said, strict=True):
        if ours != theirs:
            raise BundleError(
                f"{folder / FILE} is of another bundle: its {what} is not this one's; remove it, or run `fmopt optimize` again"
            )
    return record
