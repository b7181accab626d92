"""Mutated checkpoints, bundles, data and settings into the command: no traceback, no hang, no flood, nothing written elsewhere.

    python -m tests.fuzzing --count 20000 --seed 0 -o benchmarks/results/fuzz.json

Every input is a real one with a few bytes changed, or with a value of its JSON exchanged for one of another kind; manifests are
sealed again afterwards where an attacker would do so. The command runs in a fork of a process that has everything imported. A
seed and a number name an input: `--first N --count 1 --keep FOLDER` makes it again and leaves it there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.audio_models import audio, write_audio
from tests.conftest import LABELS, SENTENCES, write_checkpoint
from tests.vision_models import image, write_vision

TARGETS = Path(__file__).parents[1] / "targets"
SECONDS, MOST_BYTES = 60, 3 << 30  # of one command
EXIT_CODES = (0, 1, 2, 3, 4, 130)
DIFFERS = ("verify", "check-tensorrt", "compare", "history")  # exit code 1 is an answer of these
TOKENS = (
    b"9" * 30, b"-1", b"null", b"[]", b"{}", b"\x00", b"\xff\xfe", b'"', b"\\u0000", b"1e999", b"NaN", b"true", b"../", b"%s%n",
    b"\x1b[2J", b"A" * 1000, b"\n", b",", b"]", b"}", b":", b"0", b"\xf0\x9f\x98\x80", b"Infinity", b"\\ud800", b"\xe2\x80\xae",
    b"/dev/zero", b"-", b"'", b"=", b"#", b"\r",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, [], {}, "", "x", -1, 0, 1, 1.5, 10**20, -(10**20), True, False, [None], {"a": 1}, float("inf"), float("nan"), [[[]]],
    "\x1b[2J", "../../x", "/etc/passwd", "\ud800", "x" * 5000, 2**31, 2**63, 1e-320, "../run.py", "__main__",
    "../../canary/secret.txt", "../../canary", "/dev/zero",
)  # fmt: skip
SECRET = "canary 5d1c7f"  # what a file beside holds: it is never shown, sent, changed or deleted
RECIPE = """name = "mine"
runtime = "onnxruntime"
precision = "int8"
[[steps]]
use = "quantize_static"
options = { calibrator = "percentile", smooth = 0.5 }
[[steps]]
use = "quantize_embeddings"
"""


@dataclass(frozen=True)
class Attempt:
    """A command over an input that was changed. `outcome` is the folder that it may write."""

    kind: str
    argv: tuple[str, ...]
    outcome: Path


@dataclass(frozen=True)
class Ended:
    """How a command ended; `hung` or `flooded` when it was killed for its time or its memory."""

    code: int
    out: str
    err: str
    seconds: float
    hung: bool
    flooded: bool


class Sources:
    """Real inputs, made once in `work`/sources; `copy` hands out what may be changed. `canary` is beside them."""

    def __init__(self, work: Path) -> None:
        from fmopt import export

        self.work, self.folder = work, work / "sources"
        self.home = work / "home"
        for folder in (self.folder, self.home, work / "canary"):
            folder.mkdir(parents=True)
        (work / "canary" / "secret.txt").write_text(SECRET)
        folder = self.folder
        self.write_data()
        write_checkpoint(folder / "bert", "bert", "text-classification")
        write_checkpoint(folder / "gpt2", "gpt2", "text-generation")
        write_vision(folder / "vit", "vit")
        write_audio(folder / "wav2vec2", "wav2vec2", "audio-classification")
        for name in ("bert", "vit", "wav2vec2"):
            export(folder / name, folder / f"{name}-bundle")
        export(folder / "bert", folder / "openvino-bundle", format="openvino")

    def write_data(self) -> None:
        """Small data of every kind of file that is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{"text": f"{SENTENCES[n % 10]}, {n}", "label": LABELS["text-classification"][n % 3]} for n in range(12)]
        csv = "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
        self.write("rows.csv", f"text,label\n{csv}".encode())
        self.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        self.write("rows.json", json.dumps(rows).encode())
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "rows.parquet")
        numbers = {"label": np.array([0, 1, 2, 0])}
        sounds = np.zeros(3200, np.int16)
        np.savez_compressed(
            self.folder / "sounds.npz",
            audio=sounds,
            offsets=np.arange(0, 3201, 800),
            sample_rate=np.array(8000),
            **numbers,
        )
        np.savez_compressed(self.folder / "images.npz", image=np.zeros((4, 16, 16, 3), np.uint8), **numbers)
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
            self.write(f"image.{kind.lower()}", image(1, kind=kind))
        self.write("sound.wav", audio(1))
        self.write("recipe.toml", RECIPE.encode())
        self.write("target.toml", (TARGETS / "raspberry-pi-5.toml").read_bytes())

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def copy(self, name: str, to: Path) -> Path:
        """A copy of a folder or file of these, at `to`."""
        if (self.folder / name).is_dir():
            shutil.copytree(self.folder / name, to)
        else:
            shutil.copyfile(self.folder / name, to)
        return to


# -------------------------------------------------------------------------------- changes


def mutated(draw: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut, repeated, or written over by what parsers trip on."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        if not found:
            break
        at = draw.randrange(len(found))
        token = draw.choice(TOKENS)
        match draw.randrange(7):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                found[at] = draw.randrange(256)
            case 2:
                del found[at : at + draw.choice((20, 20, 20, len(found)))]
            case 3:
                del found[at : at + draw.randrange(1, 20)]
            case 4:
                found[at:at] = token
            case 5:
                found[at : at + len(token)] = token
            case _:
                start = draw.randrange(len(found))
                found[at:at] = found[start : start + draw.randrange(1, 40)]
    return bytes(found)


def mutated_json(draw: random.Random, content: bytes) -> bytes:
    """One or two values of a JSON document taken out, or exchanged for others."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(at: Any) -> None:
        inside = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, value in list(inside)[:60]:
            places.append((at, key))
            walk(value)

    walk(document)
    for _ in range(draw.choice((1, 1, 2))):
        at, key = draw.choice(places)
        if isinstance(at, dict) and draw.random() < 0.15:
            at.pop(key, None)
        elif isinstance(at, dict) or key < len(at):
            at[key] = draw.choice(VALUES)
    return json.dumps(document).encode()


def change(draw: random.Random, path: Path, *, structured: bool = False) -> None:
    """Change a file; a structured one as JSON half the time."""
    content = path.read_bytes()
    path.write_bytes(mutated_json(draw, content) if structured and draw.random() < 0.5 else mutated(draw, content))


def change_header(draw: random.Random, path: Path) -> None:
    """Change the header of a safetensors file, half the time so that its length is right."""
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    if draw.random() < 0.5:
        path.write_bytes(mutated(draw, content[:length]) + content[length:])
    else:
        header = mutated_json(draw, content[8:length])
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[length:])


def seal(bundle: Path) -> None:
    """Write hashes and digest anew, as who makes bundles can."""
    path = bundle / "fmopt.json"
    try:
        manifest = json.loads(path.read_text())
        for name in manifest["files"]:
            content = (bundle / name).read_bytes()
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["digest"] = ""
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(text.replace('"digest": ""', f'"digest": "{digest}"', 1))
    except (ValueError, TypeError, LookupError, AttributeError, OSError):
        return  # what was changed cannot be sealed, and stays as it is


# -------------------------------------------------------------------------------- attempts


def attempt(sources: Sources, draw: random.Random, folder: Path) -> Attempt:
    """A changed input in `folder` and a command that reads it."""
    make: Callable[[Sources, random.Random, Path], tuple[str, tuple[Any, ...]]] = draw.choice(MAKERS)
    kind, argv = make(sources, draw, folder)
    return Attempt(kind, tuple(map(str, argv)), folder / "out")


def of_checkpoint(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    model, name = draw.choice(
        (
            ("bert", "config.json"), ("bert", "tokenizer.json"), ("bert", "tokenizer_config.json"), ("gpt2", "config.json"),
            ("gpt2", "generation_config.json"), ("vit", "config.json"), ("vit", "preprocessor_config.json"),
            ("wav2vec2", "config.json"), ("wav2vec2", "preprocessor_config.json"),
        )
    )  # fmt: skip
    copied = sources.copy(model, folder / "model")
    path = copied / name
    if not path.is_file():
        path.write_text('{"eos_token_id": 2, "max_new_tokens": 4, "do_sample": false}')
    change(draw, path, structured=True)
    exports = draw.random() < 0.2
    return f"{model}/{name}", ("export", copied, "-o", folder / "out") if exports else ("inspect", copied)


def of_weights(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    copied = sources.copy("bert", folder / "model")
    change_header(draw, copied / "model.safetensors")
    return "safetensors", ("export", copied, "-o", folder / "out") if draw.random() < 0.3 else ("inspect", copied)


def of_bundle(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    bundle = sources.copy(draw.choice(("bert-bundle", "openvino-bundle")), folder / "bundle")
    names = ["fmopt.json", "fmopt.json", "golden.json", "tokenizer.json", "run.py", "edge/text.py", "sbom.json"]
    names += (
        ["model.onnx", "model.onnx"] if (bundle / "model.onnx").is_file() else ["model.xml", "model.xml", "model.bin"]
    )
    name = draw.choice([one for one in names if (bundle / one).is_file()])
    change(draw, bundle / name, structured=name.endswith(".json"))
    sealed = draw.random() < 0.8
    if sealed:
        seal(bundle)
    command: tuple[Any, ...] = draw.choice(
        (
            ("verify", bundle), ("predict", bundle, "a good film"), ("eval", bundle, "--data", sources.folder / "rows.csv"),
            ("compare", bundle, sources.folder / "bert-bundle"), ("inspect", bundle, "--sbom"),
            ("explain", bundle, "--length", 8),
        )
    )  # fmt: skip
    return f"{name}{' sealed' if sealed else ''}", command


def of_graph(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    path = folder / "model.onnx"
    path.write_bytes(mutated(draw, (sources.folder / "bert-bundle" / "model.onnx").read_bytes()))
    return "graph", ("check-tensorrt", path)


def of_rows(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    name = draw.choice(("rows.csv", "rows.jsonl", "rows.json", "rows.parquet"))
    path = sources.copy(name, folder / name)
    change(draw, path, structured=name == "rows.json")
    return name, ("eval", sources.folder / "bert-bundle", "--data", path)


def of_arrays(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    name, bundle = draw.choice((("sounds.npz", "wav2vec2-bundle"), ("images.npz", "vit-bundle")))
    path = sources.copy(name, folder / name)
    change(draw, path)
    return name, ("eval", sources.folder / bundle, "--data", path)


def of_media(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    name = draw.choice([path.name for path in sorted(sources.folder.glob("image.*"))] + ["sound.wav"] * 3)
    path = sources.copy(name, folder / name)
    change(draw, path)
    return name, ("predict", sources.folder / ("wav2vec2-bundle" if name == "sound.wav" else "vit-bundle"), path)


def of_settings(sources: Sources, draw: random.Random, folder: Path) -> tuple[str, tuple[Any, ...]]:
    name = draw.choice(("recipe.toml", "target.toml"))
    path = sources.copy(name, folder / name)
    change(draw, path)
    if name == "target.toml" and draw.random() < 0.5:
        return name, ("targets", "show", path)
    asked = ("--data", sources.folder / "rows.csv", f"--{path.stem}", path, "--dry-run", "-o", folder / "out")
    return name, ("optimize", sources.folder / "bert", *asked)


MAKERS = (
    of_checkpoint, of_checkpoint, of_checkpoint, of_weights, of_bundle, of_bundle, of_bundle, of_bundle, of_graph, of_rows,
    of_rows, of_arrays, of_media, of_media, of_settings,
)  # fmt: skip


# -------------------------------------------------------------------------------- running


def run(argv: tuple[str, ...], folder: Path, home: Path) -> Ended:
    """The command in a fork of this process, with limits of time and memory on all that it starts."""
    paths = [folder / "stdout", folder / "stderr"]
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _command(argv, folder, home, paths)
    hung = flooded = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        hung = time.monotonic() - begun > SECONDS
        flooded = _resident(child) > MOST_BYTES
        if hung or flooded:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.02)
    out, err = (path.read_bytes().decode("utf8", "surrogateescape") for path in paths)
    for path in paths:
        path.unlink()
    return Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - begun, hung, flooded)


def _command(argv: tuple[str, ...], folder: Path, home: Path, paths: list[Path]) -> None:
    """The child: does not come back."""
    code = 97
    try:
        os.setsid()
        for number, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream = open(number, "w", encoding="utf8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        os.chdir(folder)
        os.environ |= {"HOME": str(home), "FMOPT_CACHE": str(home / "cache")}
        from fmopt.cli.app import main

        code = main(list(argv))
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 98)


def _resident(pid: int) -> int:
    """Bytes of memory of a process and its children."""
    total, left = 0, [pid]
    while left:
        one = left.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{one}/task").iterdir():
                left += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError, IndexError):
            continue
    return total


def problems(tried: Attempt, ended: Ended, changed: list[str]) -> list[str]:
    """What is wrong with how a command ended."""
    found = []
    if "Traceback (most recent call last)" in ended.err or "panicked at" in ended.err:
        found.append("traceback")
    if ended.hung or ended.flooded:
        found.append("hang" if ended.hung else "memory")
    elif ended.code not in EXIT_CODES or (ended.code == 1 and tried.argv[0] not in DIFFERS):
        found.append(f"exit code {ended.code}")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", ended.out + ended.err):
        found.append("control character")
    if ended.code == 2 and not ended.err.strip():
        found.append("no word")
    if SECRET in ended.out + ended.err:
        found.append("read out")
    return found + [f"changed {name}" for name in changed[:3]]


def state(work: Path, *allowed: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a folder, but for those that may change."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in work.rglob("*")
        if not path.is_dir() and not any(path.is_relative_to(one) for one in allowed)
    }


def fuzz(
    sources: Sources, seed: int, first: int, count: int, keep: Path | None = None
) -> Iterator[tuple[int, Attempt, Ended, list[str]]]:
    """Inputs `first` … of a seed, each with what went wrong. What failed, or all of it, stays in `keep`."""
    for number in range(first, first + count):
        draw = random.Random(f"{seed}-{number}")
        folder = sources.work / str(number)
        folder.mkdir()
        tried = attempt(sources, draw, folder)
        before = state(sources.work, tried.outcome, sources.home)
        ended = run(tried.argv, folder, sources.home)
        after = state(sources.work, tried.outcome, sources.home)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        found = problems(tried, ended, changed)
        if keep is not None and (found or count == 1):
            shutil.copytree(folder, keep / f"{seed}-{number}", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder)
        yield number, tried, ended, found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a part of the inputs")
    parser.add_argument("--minutes", type=float, default=1e9, help="no further input is tried after so many")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that failed")
    parser.add_argument("-o", "--output", type=Path, help="JSON with what came of them")
    asked = parser.parse_args()
    found = parts_of(asked) if asked.jobs > 1 else tried(asked)
    result = {
        "command": " ".join(["python -m tests.fuzzing", *sys.argv[1:]]), "seed": asked.seed, "first": asked.first,
        **found, **made_on(),
    }  # fmt: skip
    if asked.output:
        asked.output.write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{result['inputs']} inputs, {len(result['failed'])} failed")
    return 1 if result["failed"] else 0


def tried(asked: argparse.Namespace) -> dict[str, Any]:
    """What came of the inputs that are asked for."""
    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failed: list[dict[str, Any]] = []
    slowest, done = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-sources-") as folder:
        sources, begun = warm(Path(folder)), time.monotonic()
        for number, attempted, ended, found in fuzz(sources, asked.seed, asked.first, asked.count, asked.keep):
            done += 1
            tally[attempted.kind][f"exit code {ended.code}"] += 1
            slowest = max(slowest, ended.seconds)
            if found:
                last = (ended.err.strip().splitlines()[-1:] or [""])[0]
                verb = attempted.argv[0]
                failed.append(
                    {"number": number, "kind": attempted.kind, "verb": verb, "problems": found, "last": last[:300]}
                )
                print(number, attempted.kind, verb, found, last[:160], flush=True)
            if done % 500 == 0:
                print(f"{done} inputs, {len(failed)} failed, {time.monotonic() - begun:.0f} s", flush=True)
            if time.monotonic() - begun > 60 * asked.minutes:
                break
    return {
        "inputs": done, "failed": failed, "kinds": {kind: dict(tally[kind]) for kind in sorted(tally)},
        "seconds": round(time.monotonic() - begun), "slowest_s": round(slowest, 1),
    }  # fmt: skip


def parts_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What came of the inputs that are asked for, each part of them tried by a process of its own."""
    share = -(-asked.count // asked.jobs)
    with tempfile.TemporaryDirectory(prefix="fuzz-parts-") as folder:
        running = []
        for first in range(asked.first, asked.first + asked.count, share):
            count, path = min(share, asked.first + asked.count - first), Path(folder) / f"{first}.json"
            numbers = ["--seed", asked.seed, "--first", first, "--count", count, "--minutes", asked.minutes, "-o", path]
            kept = ["--keep", asked.keep] if asked.keep else []
            command = [sys.executable, "-m", "tests.fuzzing", *map(str, [*numbers, *kept])]
            running.append((subprocess.Popen(command), path))
        for process, _ in running:
            process.wait()
        parts = [json.loads(path.read_text()) for _, path in running]
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in parts:
        for kind, counts in part["kinds"].items():
            kinds[kind].update(counts)
    return {
        "inputs": sum(part["inputs"] for part in parts), "failed": [one for part in parts for one in part["failed"]],
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "seconds": max(part["seconds"] for part in parts), "slowest_s": max(part["slowest_s"] for part in parts),
    }  # fmt: skip


def warm(folder: Path) -> Sources:
    """The sources, in a process that has imported what commands need and starts no thread that a fork would lack."""
    import torch

    import fmopt
    from fmopt.models.checkpoint import inspect
    from fmopt.models.source import resolve

    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for module in pkgutil.walk_packages(fmopt.__path__, "fmopt."):
        if module.name != "fmopt.__main__" and not module.name.startswith("fmopt.edge.board"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    sources = Sources(folder)
    for name in ("bert", "gpt2", "vit", "wav2vec2"):
        inspect(resolve(str(sources.folder / name)))
    return sources


def made_on() -> dict[str, Any]:
    """When, where and with what."""
    from fmopt.measurement.host_probe import host_fingerprint, versions

    return {"host": host_fingerprint(), "versions": versions(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


if __name__ == "__main__":
    sys.exit(main())
