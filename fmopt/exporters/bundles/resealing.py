"""A bundle with another README: what vouches for its files, made again for the one that changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fmopt.core.errors import BundleError
from fmopt.edge import files
from fmopt.edge.manifest import MANIFEST
from fmopt.edge.parts import EdgeError
from fmopt.exporters.bundles.bundle_writer import sealed
from fmopt.exporters.bundles.parts_list import SBOM

README = "README.md"


def with_readme(folder: Path, readme: str) -> dict[str, bytes]:
    """The files of the bundle in `folder` that differ once its README.md is `readme`: that, the parts list and the manifest.

    The same README always gives the same bytes. BundleError when what is there cannot be read.
    """
    made = {README: readme.encode()}
    try:
        manifest = files.read_json(folder, MANIFEST)  # as it was written: no name in it brought up to date
        listed = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != SBOM}
        listed[README] = hashlib.sha256(made[README]).hexdigest()
        if SBOM in manifest["files"]:
            made[SBOM] = _parts_list(files.read_json(folder, SBOM), listed)
    except EdgeError as error:
        raise BundleError(f"{folder}: {error}") from error
    entries = {
        **manifest["files"],
        **{name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in made.items()},
    }
    manifest["files"] = dict(sorted(entries.items()))
    return {**made, MANIFEST: sealed(manifest)}


def _parts_list(parts: dict[str, Any], listed: Mapping[str, str]) -> bytes:
    """The parts list with the README's sha256, under the serial number that its files have."""
    for part in parts.get("components", ()):
        if isinstance(part, dict) and part.get("bom-ref") == f"file:{README}":
            part["hashes"] = [{"alg": "SHA-256", "content": listed[README]}]
    numbered = "\n".join(f"{name} {sha256}" for name, sha256 in sorted(listed.items()))
    parts["serialNumber"] = uuid5(NAMESPACE_URL, numbered).urn
    return (json.dumps(parts, indent=1, ensure_ascii=False) + "\n").encode()
