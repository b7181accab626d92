"""What a run is said to take before it begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmopt.core.recipe import Recipe, Step
from fmopt.data.datasets import load_data
from fmopt.measurement.host_probe import load_target
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import find_task
from fmopt.workflow.job import estimates
from fmopt.workflow.job.estimates import Amounts, amounts, estimate
from fmopt.workflow.search.plan import Estimates, make_plan

FEW = Amounts(calibration=100, validation=100, test=100, positions=20.0)


@pytest.fixture(scope="module")
def metadata(tiny_checkpoint):
    return checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "text-classification"))), "text-classification")


def taken(metadata, target: str = "x86-amx", found: Amounts = FEW, effort: str = "quick", **more: Any) -> Estimates:
    plan = make_plan(metadata, load_target(target), effort=effort, texts=more.get("texts", 0))
    return estimate(metadata, plan, effort, found, load_target("host"), **more)


def test_they_grow_with_what_is_built(metadata):
    base = dataclasses.replace(metadata, parameters=110_000_000)
    more, fewer = taken(base), taken(base, "x86-avx2")
    assert more.minutes > fewer.minutes
    assert more.disk_gb >= fewer.disk_gb


def test_effort_is_estimated_too(metadata):
    minutes = [taken(metadata, "host", effort=effort, texts=1000).minutes for effort in ("quick", "standard", "max")]
    assert minutes == sorted(minutes)
    assert minutes[0] < minutes[1]


def test_they_grow_with_the_network_its_items_and_their_length(metadata):
    base = dataclasses.replace(metadata, parameters=110_000_000)
    for other in (
        taken(dataclasses.replace(base, parameters=330_000_000)),
        taken(base, found=dataclasses.replace(FEW, positions=200.0)),
        taken(base, found=dataclasses.replace(FEW, test=2_000)),
    ):
        assert other.minutes > 1.1 * taken(base).minutes


def test_quick_judges_no_longer_than_it_says(metadata):
    """A test split of a million items is not predicted to its end."""
    base = dataclasses.replace(metadata, parameters=110_000_000)
    whole, part = (taken(base, found=dataclasses.replace(FEW, test=count)).minutes for count in (10**9, 0))
    assert whole - part == pytest.approx(estimates.QUICK_SECONDS / 60, abs=0.1)


def test_disk_is_what_a_run_of_a_tiny_model_takes(metadata):
    """960 kB were counted on disk, stages and bundle, for this one with one recipe beside the baselines."""
    recipe = Recipe(name="mine", runtime="onnxruntime", precision="int8", steps=(Step(use="quantize_dynamic"),))
    plan = make_plan(metadata, load_target("host"), effort="quick", recipe=recipe)
    found = estimate(metadata, plan, "quick", FEW, load_target("host"))
    assert 0.8 * 0.00096 < found.disk_gb < 1.2 * 0.00096


def test_rows_of_pairs_are_two_items(tiny_checkpoint, tmp_path: Path):
    """Of sentence embeddings each sentence of a scored pair is an item."""
    rows = [f"the cat sat {number},a dog ran over the hill {number},{number % 5}" for number in range(200)]
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,score\n" + "\n".join(rows))
    known = checkpoint.inspect(resolve(str(tiny_checkpoint())), "sentence-embedding")
    task = find_task("sentence-embedding")
    data = load_data(str(tmp_path / "pairs.csv"), task, known)
    found = amounts(known, task, data, "quick")
    assert found.test == len(task.items(data.split("test"), known)) == 2 * len(data.split("test"))
    assert found.calibration <= 300
    assert 4 < found.positions < 64


def test_images_are_patches(metadata):
    seen = dataclasses.replace(
        metadata,
        pipeline={"modality": "image", "inputs": ["pixel_values"], "axes": {"pixel_values": ["batch", 3, 32, 32]}},
        config={"image_size": 32, "patch_size": 4},
    )
    task = SimpleNamespace(items=lambda rows, metadata: [SimpleNamespace(sample=b"") for _ in rows])
    data = SimpleNamespace(split=lambda name: [{}] * 500)
    assert amounts(seen, task, data, "quick").positions == 65
    assert amounts(dataclasses.replace(seen, config={}), task, data, "quick").positions == estimates.IMAGE_POSITIONS


def test_a_pass_that_sends_many_tokens_through_the_network_is_seen(tiny_checkpoint):
    """AutoRound: 50 iterations of 8 rows of 128 tokens, forward and back, of 100 M weights."""
    known = checkpoint.inspect(resolve(str(tiny_checkpoint("gpt2", "text-generation"))), "text-generation")
    known = dataclasses.replace(known, parameters=100_000_000 + estimates.table_weights(known))
    recipe = Recipe(name="mine", runtime="onnxruntime", steps=(Step(use="autoround", options={"iterations": 50}),))
    host = load_target("host").model_copy(update={"cores": 2})
    host = host.model_copy(update={"gops": {**host.gops, "fp32": 50.0}})
    wanted = 3 * 2 * 50 * 1024 * 1e8 / (0.5 * 50e9 * 2)
    assert estimates.rounding_seconds(known, [recipe], host) == pytest.approx(wanted)
    assert estimates.rounding_seconds(known, [Recipe(name="plain", runtime="onnxruntime")], host) == 0
