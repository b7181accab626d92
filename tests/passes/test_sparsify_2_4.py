"""Half the weights go, in the pattern that the hardware wants, and the right half."""

from __future__ import annotations

import pytest
import torch

from fmopt.measurement.host_probe import load_target
from fmopt.passes.sparsify_2_4 import Sparsify24, kept_2_4
from tests.conftest import TinyCheckpoint
from tests.torch_models import context_of, model_of


def test_every_four_inputs_keep_two_and_heads_stay_whole(tiny_checkpoint: TinyCheckpoint):
    model = model_of(tiny_checkpoint("bert", "text-classification"))
    made = Sparsify24().apply(model, context_of(model))
    linears = {name: m for name, m in made.net.named_modules() if isinstance(m, torch.nn.Linear)}
    sparse = {name: m for name, m in linears.items() if ".layer." in name}
    assert len(sparse) == 12
    for linear in sparse.values():
        assert ((linear.weight.reshape(-1, 4) != 0).sum(1) == 2).all()
    assert all((m.weight != 0).float().mean() > 0.99 for name, m in linears.items() if name not in sparse)
    assert made.history[-1] == "sparsify_2_4"


def test_an_input_that_is_large_saves_its_weight():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert kept_2_4(weight, torch.ones(4)).tolist() == [[0, 0, 1, 1]]
    assert kept_2_4(weight, torch.tensor([100.0, 1, 1, 1])).tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("target", "fits"), [("nvidia-a100", True), ("nvidia-h100", True), ("nvidia-t4", False), ("x86-amx", False)]
)
def test_only_where_zeros_are_skipped(target: str, fits: bool, tiny_checkpoint: TinyCheckpoint):
    metadata = model_of(tiny_checkpoint("bert")).metadata
    assert (Sparsify24().refusal(metadata, load_target(target)) is None) == fits
