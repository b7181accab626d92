"""Runs the model in this folder with numpy, the runtime and, for texts, tokenizers alone; nothing of fmopt is needed:

    python run.py predict "some text"        python run.py bench --length 128        python run.py verify

What it does stands in `edge/` beside this file. Every module there is compared with its sha256 in fmopt.json and compiled from
that very source; no other file of this folder can be imported, whatever its name.
"""

from __future__ import annotations

import os
import sys

# In the cache of a model hub this file is a link, and the others lie beside the link; elsewhere they lie beside what it leads to.
PLACES = [os.path.realpath(os.path.dirname(path)) for path in (os.path.abspath(__file__), os.path.realpath(__file__))]
HERE = PLACES[0] if os.path.isfile(os.path.join(PLACES[0], "fmopt.json")) else PLACES[1]
# Before anything is imported by its name: a file beside this one may have the name of a library.
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) not in PLACES]
if sys.version_info < (3, 10):  # noqa: UP036 - it may be run by an older one
    print("error: run.py needs Python 3.10 or newer; this is " + sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

import contextlib  # noqa: E402
import hashlib  # noqa: E402
import importlib  # noqa: E402
import importlib.abc  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
from importlib.machinery import ModuleSpec  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

MODULES = (
    "__init__", "audio", "bench", "classification", "command", "decoding", "detection", "embedding", "errors",
    "executorch", "files", "fill_mask", "generation", "host", "image", "image_features", "kv_cache", "loading", "lookup",
    "manifest", "parts", "question_answering", "recommendation", "regression", "runners", "segmentation", "seq2seq",
    "speech", "tagging", "tensorrt", "text", "tokenizer_file", "whisper",
)  # fmt: skip
EXTENSION = "extension_"  # what the modules of other packages are called, whose tasks and runtimes a bundle may be for
LARGEST_BYTES = 1 << 22  # of a manifest or a module


class Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one package from sources that are in memory, never from compiled files."""

    def __init__(self, package: str, sources: dict[str, bytes]):
        self.package, self.sources = package, sources

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of the package or of one of its modules; None for what is none of it."""
        if fullname != self.package and not fullname.startswith(self.package + "."):
            return None
        name = fullname[len(self.package) + 1 :] or "__init__"
        if name not in self.sources:
            return None
        origin = os.path.join(HERE, "edge", name + ".py")
        return importlib.util.spec_from_loader(fullname, self, origin=origin, is_package=name == "__init__")

    def exec_module(self, module: ModuleType) -> None:
        """Run the source of a module."""
        name = module.__name__[len(self.package) + 1 :] or "__init__"
        module.__file__ = os.path.join(HERE, "edge", name + ".py")
        exec(compile(self.sources[name], module.__file__, "exec"), module.__dict__)


def read(name: str) -> bytes:
    """The bytes of a plain file of this folder; no link at any level, but those that a hub's cache consists of."""
    path = os.path.join(HERE, *name.split("/"))
    real, above = os.path.realpath(path), os.path.dirname(HERE)
    blobs = os.path.join(os.path.dirname(above), "blobs")  # beside snapshots/REVISION, which is this folder
    cached = os.path.basename(above) == "snapshots" and os.path.dirname(real) == blobs
    if not (real == path or cached) or not os.path.isfile(path):
        raise ValueError(name + " is missing, or is no plain file")
    with open(path, "rb") as stream:
        found = stream.read(LARGEST_BYTES + 1)
    if len(found) > LARGEST_BYTES:
        raise ValueError(name + " is too large to be what it should be")
    return found


def package() -> str:
    """The name under which the modules of `edge/` can be imported now; ValueError when one is not what the manifest lists."""
    manifest = read("fmopt.json")
    listed = json.loads(manifest.decode())["files"]
    sources = {}
    others = [name[len("edge/") : -len(".py")] for name in listed if name.startswith("edge/" + EXTENSION)]
    others = [name for name in others if name.isidentifier()]
    for name in (*MODULES, *others):
        entry = listed.get("edge/" + name + ".py")
        if entry is not None:
            source = read("edge/" + name + ".py")
            if hashlib.sha256(source).hexdigest() != entry["sha256"]:
                raise ValueError("edge/" + name + ".py was changed: its sha256 is not the one in fmopt.json")
            sources[name] = source
    found = "fmopt_bundle_" + hashlib.sha256(manifest).hexdigest()[:16]
    if not any(isinstance(finder, Sources) and finder.package == found for finder in sys.meta_path):
        sys.meta_path.insert(0, Sources(found, sources))
    return found


def load(folder: str = HERE, threads: int | None = None) -> Any:
    """This bundle as a callable on raw inputs, its files verified: `load()("a text")`."""
    return importlib.import_module(package() + ".loading").load(folder, threads)


def main(argv: list[str] | None = None) -> int:
    """The command of this bundle; returns the exit code."""
    try:
        command = importlib.import_module(package() + ".command")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        print("error: " + HERE + " cannot be run: " + str(error) + "; copy the bundle again", file=sys.stderr)
        return 2
    except ImportError as error:
        print("error: " + str(error) + "; pip install numpy", file=sys.stderr)
        return 2
    return int(command.main(argv, command.Path(HERE)))


if __name__ == "__main__":
    sys.exit(main())
# Imported by a program: Python leaves a compiled copy beside it, and a bundle with one is refused, as anything may stand in it.
compiled = getattr(__spec__, "cached", None)  # none where it is run by runpy
if compiled is not None:
    with contextlib.suppress(OSError):
        os.unlink(compiled)
        os.rmdir(os.path.dirname(compiled))
