"""Distil a damaged tiny network in a folder, on however many processes torchrun starts this with (see test_several.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fmopt import several
from fmopt.passes.distill import Distill
from tests.passes.test_distill import FAST, context, damaged


def main() -> None:
    torch.set_num_threads(1)
    teacher, out = Path(sys.argv[1]), Path(sys.argv[2])
    if several.follows():
        return several.follow()
    try:
        student = damaged(teacher)
        Distill(**{**FAST, "epochs": 6.0}).apply(student, context(student, out))
    finally:
        several.dismiss()


main()
