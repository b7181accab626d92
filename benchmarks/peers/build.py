"""Make every peer's variants of one model, each peer in the environment that setup.sh made for it.

    .venv/bin/python benchmarks/peers/build.py SUBJECT [--peers nncf,olive] [--out ARTIFACTS]

SUBJECT is minilm, or the name of a fine-tuned checkpoint (banking77, wnut17, stsb, sst2: see subjects.py). Runs in
fmopt's environment. Writes ARTIFACTS/calibration.jsonl, the same 300 training texts for every peer, and
ARTIFACTS/<peer>/<variant>/ with meta.json. A peer whose environment could not be made gets a meta.json saying so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import subjects

from fmopt.edge.parts import Sample

HERE = Path(__file__).resolve().parent
PEERS = ("optimum_onnx", "transformers", "nncf", "olive", "pytorch")
BUILT = ".built"  # lies beside the artifacts once everything was tried


def main() -> int:
    """The command line; 1 when a peer failed to make something."""
    parser = argparse.ArgumentParser(description="Make every peer's variants of one model.")
    parser.add_argument("subject", choices=subjects.TITLES, help="which checkpoint, with which data")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated (all)")
    parser.add_argument("--out", type=Path, help="where artifacts go (beside environments)")
    asked = parser.parse_args()
    subject = subjects.find(asked.subject)
    out = asked.out or artifacts_folder(subject.name)
    out.mkdir(parents=True, exist_ok=True)
    calibration = write_calibration(subject.calibration(), out / "calibration.jsonl")
    given = (subject.metadata.folder, subject.task.name, calibration)
    (out / BUILT).unlink(missing_ok=True)
    codes = [make(peer, given, out / peer) for peer in asked.peers.split(",")]
    (out / BUILT).touch()
    return int(any(codes))


def make(peer: str, given: tuple[Path, str, Path], out: Path) -> int:
    """Run make_<peer>.py on `given` (model, task, calibration) in its environment, without network or telemetry.

    Its exit code: 1 when a variant failed.
    """
    home = peers_folder() / peer
    python = home / "env" / "bin" / "python"
    if not (home / ".ready").is_file():
        reported = home / "install-error.txt"
        why = reported.read_text().strip() if reported.is_file() else "setup.sh was not run for it"
        write_missing(peer, out, f"not installed: {why}")
        return 1
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)  # what this environment imports is not what the peer's may
    command = [str(python), str(HERE / f"make_{peer}.py"), *map(str, given), str(out)]
    return subprocess.run(command, env=environment).returncode


def write_missing(peer: str, out: Path, error: str) -> None:
    """A meta.json for a peer that could not be installed: that is a result too."""
    print(f"{peer}: {error}", file=sys.stderr)
    folder = out / "all"
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"peer": peer, "variant": "all", "runtime": "", "file": "", "options": {}, "full_precision": False,
            "minutes": None, "lines": None, "versions": {}, "error": error}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def write_calibration(samples: Sequence[Sample], path: Path) -> Path:
    """One line a text: what a user gives the tokenizer for it (see harness.py)."""
    path.write_text("".join(json.dumps(_call(sample)) + "\n" for sample in samples), encoding="utf-8")
    return path


def _call(sample: Sample) -> dict[str, object]:
    if isinstance(sample, tuple):
        return {"text": sample[0], "text_pair": sample[1]}
    return {"text": sample, "is_split_into_words": True} if isinstance(sample, list) else {"text": sample}


def peers_folder() -> Path:
    """Where setup.sh puts the environments: $FMOPT_PEERS, or fmopt-peers in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FMOPT_PEERS") or cache / "fmopt-peers")


def artifacts_folder(subject: str) -> Path:
    """Where the artifacts of a subject go by default."""
    return peers_folder() / "artifacts" / subject


if __name__ == "__main__":
    raise SystemExit(main())
