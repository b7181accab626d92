"""A bundle as a folder to commit: for git, or for whatever takes folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fmopt.core.errors import BundleError, StoreError
from fmopt.core.stages.store import disk_errors, link_or_copy, scratch_beside
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.parts import EdgeError
from fmopt.exporters.bundles import bundle_writer
from fmopt.workflow.push.release import Release

ATTRIBUTES = ".gitattributes"
LARGE = (".onnx", ".data", ".bin", ".safetensors", ".pte", ".wasm")  # what git keeps by LFS
OF_GIT = frozenset({".git", ATTRIBUTES})


def push_to_folder(release: Release, out: Path, *, replace: bool = False) -> Path:
    """Write the release to the folder `out`, new, empty or a fresh clone (`.git`), and return it.

    Weights are hard links to the bundle's where the disk has those. With `replace`, the bundle that is there gives way, and
    nothing else is touched. StoreError when something is there that is not to be replaced, or it cannot be written.
    """
    held = sorted({path.name for path in out.iterdir()} - OF_GIT) if out.is_dir() else []
    if held and not replace:
        raise StoreError(
            f"{out} holds files already, such as {held[0]}; --replace puts this bundle in place of the one there"
        )
    if held and not (out / edge_manifest.MANIFEST).is_file():
        raise StoreError(
            f"{out} holds files already, such as {held[0]}, and no bundle to replace; choose another --output"
        )
    with scratch_beside(out) as made:
        for name, content in release.files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (made / name).write_bytes(content)
            else:
                link_or_copy(content, made / name)
        try:
            edge_manifest.whole_manifest(made)  # what lies there now, not what lay in the bundle when it was read
        except EdgeError as error:
            raise BundleError(f"the bundle was changed while it was copied: {error}") from error
        with disk_errors(out):
            if out.is_dir() and not held:  # a fresh clone: its .git stays
                for path in sorted(made.iterdir()):
                    os.replace(path, out / path.name)
            else:
                bundle_writer.publish(made, out)
            if not os.path.lexists(out / ATTRIBUTES):
                (out / ATTRIBUTES).write_text(attributes(release.files))
    return out


def attributes(names: Iterable[str]) -> str:
    """What of these files git keeps by LFS, as .gitattributes says it."""
    endings = sorted({ending for name in names for ending in LARGE if name.endswith(ending)})
    return "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in endings)
