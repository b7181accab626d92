"""A bundle as a folder to commit: for git, or for whatever takes folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fmopt.core.errors import BundleError, StoreError
from fmopt.core.stages.store import disk_errors, forget_halves, link_or_copy, scratch_beside, write_whole
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
    nothing else is touched. A kill leaves nothing, or a folder that says it is unfinished, and the same call goes on from there;
    what is there already as it would be written is left. StoreError when something is there that is not to be replaced, or it
    cannot be written.
    """
    held = _held(out)
    if held and _is_there(release, out):
        with scratch_beside(out):  # which takes away what a killed push left there
            return out
    _refuse(out, held, replace)
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
            kept = attributes(release.files)  # before the bundle, which is whole only with it
            (made / ATTRIBUTES).write_text(kept)
            if out.is_dir() and any(out.iterdir()) and not os.path.lexists(out / ATTRIBUTES):
                write_whole(out / ATTRIBUTES, kept)
        bundle_writer.publish(made, out, beside=OF_GIT)
    return out


def _refuse(out: Path, held: set[str], replace: bool) -> None:
    """StoreError where something lies in the folder that is not to give way."""
    if held and not replace and not held <= _begun(out):
        raise StoreError(
            f"{out} holds files already, such as {min(held)}; --replace puts this bundle in place of the one there"
        )
    if held and not any(os.path.lexists(out / name) for name in (edge_manifest.MANIFEST, edge_manifest.UNFINISHED)):
        raise StoreError(
            f"{out} holds files already, such as {min(held)}, and no bundle to replace; choose another --output"
        )


def _held(out: Path) -> set[str]:
    """What lies in a folder but git's own and texts that a killed push had not written whole."""
    if not out.is_dir():
        return set()
    forget_halves(out)
    return {path.name for path in out.iterdir()} - OF_GIT


def _is_there(release: Release, out: Path) -> bool:
    """Whether the folder holds the very files of the release."""
    try:
        return edge_manifest.whole_manifest(out)["digest"] == release.digest
    except EdgeError:
        return False


def _begun(out: Path) -> set[str]:
    """What lies in a folder because writing a bundle there was cut off; nothing where none was."""
    names = bundle_writer.unfinished(out)
    return {Path(name).parts[0] for name in names} | {edge_manifest.UNFINISHED} if names else set()


def attributes(names: Iterable[str]) -> str:
    """What of these files git keeps by LFS, as .gitattributes says it."""
    endings = sorted({ending for name in names for ending in LARGE if name.endswith(ending)})
    return "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in endings)
