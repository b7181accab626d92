"""The mean of checkpoints that were fine-tuned from one base on the same data (model soups, Wortsman et al., 2022).

    .venv/bin/python benchmarks/soup.py out/finetuned/sst2 ../shared/data/sst2 out/finetuned/sst2-a out/finetuned/sst2-b

Costs nothing at inference. What each scores on the validation split is printed and kept in soup.json; the mean is written to
the first folder, with the tokenizer and settings of the first checkpoint, only where it is not worse there than the best of them.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fmopt.workflow import evaluate

FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
WEIGHTS = "model.safetensors"


def mean(folders: Sequence[Path], out: Path) -> None:
    """A checkpoint whose every weight is the mean of theirs."""
    nets = [load_file(folder / WEIGHTS) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folders[0] / name).is_file():
            shutil.copy(folders[0] / name, out / name)
    made = {name: torch.stack([net[name] for net in nets]).mean(0).contiguous() for name in nets[0]}
    save_file(made, out / WEIGHTS, metadata={"format": "pt"})


def validated(folder: Path, data: str) -> float:
    """The primary metric on the validation split."""
    scores = evaluate.evaluate(folder, data, split="validation", batch=16)
    return next(one.point for one in scores.values() if one.primary)


def main(out: Path, data: str, folders: Sequence[Path]) -> int:
    """Average, compare on validation, write."""
    found = {folder.name: validated(folder, data) for folder in folders}
    with tempfile.TemporaryDirectory(dir=out.parent) as made:
        mean(folders, Path(made))
        found["mean"] = validated(Path(made), data)
        print(found)
        if found["mean"] < max(found.values()):
            print("the mean is worse than one of them; nothing is written")
            return 1
        (Path(made) / "soup.json").write_text(json.dumps(found, indent=1))
        shutil.copytree(made, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], [Path(each) for each in sys.argv[3:]]))
