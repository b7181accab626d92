"""One pass gathers exact extremes, a full histogram and a uniform sample, in memory that does not grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmopt.core.errors import PassError
from fmopt.passes.calibration import statistics
from fmopt.passes.calibration.range_estimators import BINS
from tests.conftest import TinyCheckpoint
from tests.torch_models import context_of, items_of, model_of


class Two(torch.nn.Module):
    """Two Linears on one tensor, one on another, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.unused = (torch.nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + self.b(x)
        return self.c(y)


def stream(count: int, seed: int = 0, growth: float = 0.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.normal(size=(1, 5, 4)).astype(np.float32) * (1 + growth * i),
            "attention_mask": np.ones((1, 5), np.int64),
        }
        for i in range(count)
    ]


def test_linears_that_read_one_tensor_share_an_observer():
    found = statistics.collect(Two(), stream(8))
    assert [observer.names for observer in found.observers] == [("a", "b"), ("c",)]
    assert found.group_of("b") is found.observers[0]
    assert found.group_of("unused") is None


def test_extremes_and_histogram_are_those_of_all_values_though_the_range_grows():
    items = stream(20, growth=3.0)
    observer = statistics.collect(Two(), items).observers[0]
    values = np.concatenate([item["x"].reshape(-1, 4) for item in items])
    assert np.array_equal(observer.low, values.min(0))
    assert np.array_equal(observer.high, values.max(0))
    assert observer.histogram.counts.sum() == values.size
    assert observer.histogram.limit >= np.abs(values).max()
    # the same values counted at once into the same final range, up to values on the edge of two bins
    limit = observer.histogram.limit
    once = np.histogram(values, BINS, (-limit, limit))[0]
    assert np.abs(np.cumsum(once) - np.cumsum(observer.histogram.counts)).max() <= 2
    means = np.array([[item["x"].min(), item["x"].max()] for item in items]).mean(0)
    assert observer.mean_low == pytest.approx(means[0], rel=1e-5)
    assert observer.mean_high == pytest.approx(means[1], rel=1e-5)


def test_padding_does_not_count():
    items = stream(8)
    for item in items:
        item["x"][0, 3:] = 1e6
        item["attention_mask"][0, 3:] = 0
    observer = statistics.collect(Two(), items).observers[0]
    assert observer.absmax.max() < 10
    assert observer.histogram.counts.sum() == 8 * 3 * 4


def test_memory_is_constant_in_the_number_of_items_and_under_the_cap():
    cap = 2 * BINS * 8 + 20_000
    few, many = (statistics.collect(Two(), stream(n), memory_cap_bytes=cap) for n in (200, 1000))
    assert few.nbytes == many.nbytes <= cap
    assert len(many.observers[0].rows) >= statistics.MIN_ROWS


def test_a_base_size_encoder_at_512_items_of_256_tokens_stays_far_under_a_gigabyte():
    # What 12 layers of BERT-base hold is decided by the shapes alone: four tensors a layer.
    groups = [(name,) for _ in range(12) for name in ("qkv", "output", "widen", "narrow")]
    net = torch.nn.ModuleDict({"qkv": torch.nn.Linear(768, 1), "output": torch.nn.Linear(768, 1),
                               "widen": torch.nn.Linear(768, 1), "narrow": torch.nn.Linear(3072, 1)})  # fmt: skip
    rows = statistics._rows_within(groups, net, 1 << 30)
    features = 12 * (3 * 768 + 3072)
    assert rows == statistics.ROWS
    assert features * (4 * rows + 8) + 48 * BINS * 8 < 200e6


def test_rows_are_a_uniform_sample():
    marked = [
        {"x": np.full((1, 4, 4), i, np.float32), "attention_mask": np.ones((1, 4), np.int64)} for i in range(1, 501)
    ]
    rows = statistics.collect(Two(), marked).observers[0].rows
    assert rows.shape == (statistics.ROWS, 4)
    assert 220 < rows[:, 0].mean() < 280  # of 1 … 500; three standard errors are ± 20
    again = statistics.collect(Two(), marked).observers[0].rows
    assert np.array_equal(rows, again)


@pytest.mark.parametrize("count", [0, 7])
def test_too_little_data_is_refused(count: int):
    with pytest.raises(PassError, match=rf"at least 8 items of real data and has {count}"):
        statistics.collect(Two(), stream(count))


def test_a_cap_that_cannot_hold_the_least_says_what_is_needed():
    with pytest.raises(PassError, match=r"needs 0 MB for 2 tensors .* raise --max-calibration-memory"):
        statistics.collect(Two(), stream(8), memory_cap_bytes=1000)


def test_values_that_are_no_numbers_name_the_layer():
    items = stream(8)
    items[3]["x"][0, 0, 0] = np.inf
    with pytest.raises(PassError, match="the input of a is not finite"):
        statistics.collect(Two(), items)


def test_statistics_are_taken_once_and_shared(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    said: list[str] = []
    ctx = replace(context_of(model, tmp_path), progress=said.append)
    first = statistics.statistics(model, ctx)
    second = statistics.statistics(model, ctx)
    assert said == ["calibrating on 10 items"]
    assert first.digest == second.digest
    assert [o.names for o in first.observers] == [o.names for o in second.observers]
    for ours, theirs in zip(first.observers, second.observers, strict=True):
        assert (ours.mean_low, ours.mean_high, ours.items) == (theirs.mean_low, theirs.mean_high, theirs.items)
        assert np.array_equal(ours.rows, theirs.rows)
    other = replace(ctx, calibration=lambda: iter(items_of(model)[:9]))
    assert statistics.statistics(model, other).items == 9
    assert said[-1] == "calibrating on 9 items"
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_same_steps_with_other_weights_are_calibrated_anew(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    """A student that was trained for longer, or on more texts, has the history of the one before, and other ranges."""
    first, second = (model_of(tiny_checkpoint("bert")).after("distill(baseline)") for _ in range(2))
    with torch.no_grad():
        second.net.get_submodule("encoder.layer.0.attention.output.LayerNorm").weight.mul_(3.0)
    found = [statistics.statistics(model, context_of(model, tmp_path)) for model in (first, second, first)]
    alone = statistics.statistics(second, context_of(second))
    name = "encoder.layer.0.intermediate.dense"
    assert found[1].group_of(name).absmax.max() == alone.group_of(name).absmax.max()
    assert found[1].group_of(name).absmax.max() > 2 * found[0].group_of(name).absmax.max()
    assert found[2].digest == found[0].digest
    assert len(list(tmp_path.glob("statistics-*.safetensors"))) == 2
