"""Push a bundle into a folder, killed at some of its steps in turn (see test_interrupted.py).

A child is forked for each push, so that the imports are paid once. Prints what was found after each kill and after the same push
again, a JSON line each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from fmopt.edge.manifest import whole_manifest
from fmopt.edge.parts import EdgeError
from fmopt.workflow.push.folder import push_to_folder
from fmopt.workflow.push.release import Release, release_of

STRIDE = 4  # of the steps at which many files are linked or moved, all alike


def killed(release: Release, out: Path, step: int, *, replace: bool) -> bool:
    """Push in a child that SIGKILL ends before its `step`-th change of a name; False where it ended before by itself."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [step]

    def counted(change: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return change(*arguments, **options)

        return changed

    for name in ("replace", "rename", "link", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    push_to_folder(release, out, replace=replace)
    os._exit(0)


def state(out: Path) -> dict[str, Any]:
    """Whether the folder holds a bundle whose files are whole, and which licence its card states; what of ours lies beside it."""
    card, left = out / "README.md", [one.name for one in out.parent.iterdir() if one.name.startswith(".fmopt-making")]
    try:
        whole_manifest(out)
        whole = (out / ".gitattributes").is_file()
    except EdgeError:
        whole = False
    licence = (
        next((line for line in card.read_text().splitlines() if line.startswith("license: ")), "") if whole else ""
    )
    return {"whole": whole, "licence": licence, "mine": (out / "mine.txt").is_file(), "left": len(left)}


def at(bundle: Path, home: Path, kind: str) -> Path:
    """The folder that is pushed to, as it lies before."""
    shutil.rmtree(home, ignore_errors=True)
    out = home / "repo"
    if kind == "new":
        home.mkdir()
        return out
    (out / ".git").mkdir(parents=True)
    if kind == "replaced":
        push_to_folder(release_of(bundle, licence="isc"), out)
        (out / "mine.txt").write_text("mine")
    return out


def main() -> None:
    bundle, home, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    release, step = release_of(bundle, licence="mit"), 0
    while killed(release, out := at(bundle, home, kind), step, replace=kind == "replaced"):
        first = state(out)
        push_to_folder(release, out, replace=kind == "replaced")
        print(json.dumps([first, state(out)]))
        step += STRIDE if step >= 2 else 1


main()
