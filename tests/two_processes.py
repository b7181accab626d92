"""Distil a damaged tiny network in a folder, or train its rounding, on however many processes torchrun starts this with
(see test_several.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from fmopt.passes.distill import Distill
from fmopt.passes.distillation import teacher_cache
from fmopt.passes.qat import Qat
from fmopt.training import distributed
from tests.passes.test_distill import FAST, context, damaged
from tests.torch_models import items_of, model_of


def main() -> None:
    torch.set_num_threads(1)
    teacher_cache.SHARD_TOKENS = 100  # so that there is one for each process
    what, teacher, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if distributed.follows():
        return distributed.follow()
    try:
        if what == "distill":
            student = damaged(teacher)
            Distill(**{**FAST, "epochs": 6.0}).apply(student, context(student, out))
        else:
            student = model_of(teacher)
            items = items_of(student)
            ctx = replace(context(student, out), calibration=lambda: iter(items))
            # labels that contradict the teacher: something to learn, where 8 bits cost so small a network nothing
            options = {**FAST, "epochs": 6.0, "weights": {"task": 1.0}, "save_minutes": 0.0}
            Qat(**options, activations="uint8").apply(student, ctx)
    finally:
        distributed.dismiss()


main()
