"""The number of threads is the process's own: after a call it is what it was, whatever the call ran with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fmopt.core.model import Artifact
from fmopt.runtimes.torch import RUNTIME
from tests.conftest import TinyCheckpoint

INPUTS = {"input_ids": np.ones((1, 4), np.int64), "attention_mask": np.ones((1, 4), np.int64)}


@pytest.mark.parametrize("asked", [1, 2])
def test_a_call_puts_the_number_back(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, asked: int) -> None:
    folder = tiny_checkpoint("bert", "text-classification")
    runner = RUNTIME.open(Artifact("torch", folder, {"auto_class": "AutoModelForSequenceClassification"}), asked)
    torch.set_num_threads(3 - asked)
    runner.run(INPUTS)
    assert torch.get_num_threads() == 3 - asked
    with pytest.raises(IndexError):
        runner.run(INPUTS | {"input_ids": np.full((1, 4), 10**6)})
    assert torch.get_num_threads() == 3 - asked
