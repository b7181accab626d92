"""Train what a recipe distils on another machine, one with a GPU, and go on here with what was learned there.

    .venv/bin/python benchmarks/elsewhere.py pack minilm ../shared/data/stsb --recipe RECIPE -o out/NAME --to FOLDER    here
    PYTHONPATH=. python benchmarks/elsewhere.py train FOLDER                                                            there
    cp -r FOLDER/distill-* out/NAME/stages/                                  here: the run in out/NAME finds it trained

`pack` does the recipe's steps before its last distillation, or before the one that --number names, and writes what that needs:
teacher, student, texts as token ids. `train` needs torch, transformers, accelerate and pydantic, and trains as `fmopt optimize`
would. What was trained lies under a key of all that it depends on, so that another recipe's is never taken for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from fmopt.core.stages.store import own_folder
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint
from fmopt.passes.base import Context
from fmopt.passes.distill import Distill
from fmopt.passes.distillation import trainer
from fmopt.training.examples import Example

EXAMPLES, SETTINGS = "examples.safetensors", "distill.json"


def pack(asked: argparse.Namespace) -> None:
    """What the folder needs, made in the very folder that the run will be in."""
    if asked.to.exists():
        sys.exit(f"{asked.to} is there already; name a new folder")
    with own_folder(Path(asked.out)):
        _pack(asked)


def _pack(asked: argparse.Namespace) -> None:
    """Prune, and train what no earlier run did, up to the distillation that is meant; write the folder."""
    from fmopt.core import progress
    from fmopt.core.workload import Workload
    from fmopt.workflow.job import request as workflow_request
    from fmopt.workflow.job.prepare import prepare
    from fmopt.workflow.job.start import start
    from fmopt.workflow.search.network_timer import RecipeTimer

    request = workflow_request.Request(
        model=asked.checkpoint, data=asked.data, effort="max", workload=Workload(length=128), recipe=asked.recipe,
        out=asked.out,
    )  # fmt: skip
    run = start(prepare(request), progress.Silent())
    (recipe,) = run.job.plan.candidates
    places = [place for place, step in enumerate(recipe.steps) if step.use == "distill"]
    if not 1 <= (asked.number or 1) <= len(places):
        sys.exit(f"{asked.recipe} has {len(places)} distillations; --number is of those")
    place = places[(asked.number or len(places)) - 1]
    builder, options = run.builder, recipe.steps[place].build()
    assert isinstance(options, Distill)
    if options.teacher is not None:
        sys.exit("this packs distillations from the baseline, not from another teacher")
    ctx = replace(
        builder.pass_context(), timer=RecipeTimer(builder, recipe), progress=lambda text: print(text, flush=True)
    )
    model = checkpoint.load(builder.metadata)
    for step in recipe.steps[:place]:
        model = step.build().apply(model, ctx)
    examples = trainer.texts_to_learn(options, builder.metadata, ctx)
    asked.to.mkdir(parents=True)
    shutil.copytree(builder.metadata.folder, asked.to / "teacher")
    save_checkpoint(model, asked.to / "student")
    save_file(packed(examples), asked.to / EXAMPLES)
    reported = {**asdict(options), "unlabelled": None, "seed": ctx.seed, "weights": dict(options.weights)}
    (asked.to / SETTINGS).write_text(json.dumps(reported, indent=1))
    print(f"{len(examples)} texts to learn from, in {asked.to}")


def packed(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """All values of each name, one after another, and how many each example has."""
    found = {}
    for name in examples[0]:
        parts = [np.asarray(example[name]) for example in examples]
        found[name] = np.concatenate([part.reshape(-1) for part in parts])
        found[f"{name}:count"] = np.array([-1 if part.ndim == 0 else len(part) for part in parts], dtype=np.int32)
    return found


def unpacked(path: Path) -> list[Example]:
    """What `packed` was given: arrays of one axis, or numbers."""
    stored, columns = load_file(path), {}
    for name in (name for name in stored if ":" not in name):
        counts = stored[f"{name}:count"]
        ends = np.cumsum(np.abs(counts))
        parts = np.split(stored[name], ends[:-1])
        columns[name] = [part if count >= 0 else part[0] for part, count in zip(parts, counts, strict=True)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def train(asked: argparse.Namespace) -> None:
    """Distil, and say what it was done with."""
    settings: dict[str, Any] = json.loads((asked.folder / SETTINGS).read_text())
    seed = settings.pop("seed")
    options, examples = Distill(**settings), unpacked(asked.folder / EXAMPLES)
    metadata = checkpoint.inspect(resolve(str(asked.folder / "teacher")))
    student = checkpoint.load(checkpoint.inspect(resolve(str(asked.folder / "student")), metadata.task))
    ctx = Context(
        metadata=metadata, target=host_probe.probe_host(), calibration=lambda: iter(()), seed=seed, scratch=asked.folder,
        progress=lambda text: print(text, flush=True), examples=lambda: examples, teacher=lambda _: checkpoint.load(metadata),
    )  # fmt: skip
    begun = time.monotonic()
    trainer.distill(replace(student, metadata=metadata), options, ctx)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes on {device}, torch {torch.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    here = verbs.add_parser("pack")
    here.add_argument("checkpoint")
    here.add_argument("data")
    here.add_argument("--recipe", required=True)
    here.add_argument("-o", "--out", required=True)
    here.add_argument("--number", type=int, help="which of the recipe's distillations, from 1")
    here.add_argument("--to", type=Path, required=True)
    here.set_defaults(do=pack)
    there = verbs.add_parser("train")
    there.add_argument("folder", type=Path)
    there.set_defaults(do=train)
    chosen = parser.parse_args()
    chosen.do(chosen)
