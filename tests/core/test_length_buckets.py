"""Lengths to compile for: the least expected time, and answers that padding to one of them does not change."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fmopt.core import length_buckets
from fmopt.core.target import read_target
from fmopt.edge import runners
from fmopt.edge.runners import OnnxRuntimeRunner, OpenVinoRunner
from fmopt.runtimes.openvino import RUNTIME
from fmopt.workflow.search.candidates import BASELINES, compiled_for

CPU = read_target("x86-avx2")


def expected(lengths: list[int], buckets: list[int]) -> float:
    """What all texts cost, by the rule that is minimized."""
    total = 0
    for length in lengths:
        bucket = next((one for one in buckets if one >= length), None)
        total += length_buckets.FIXED + (length + length_buckets.DYNAMIC if bucket is None else bucket)
    return total


@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_of_as_many_lengths_costs_less(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = [int(n) for n in np.minimum(draw.lognormal(3, 0.6, 60).astype(int) + 3, 90)]
    chosen = length_buckets.choose(lengths, 3)
    sizes = sorted(set(lengths))
    least = min(expected(lengths, list(some)) for count in (1, 2, 3) for some in combinations(sizes, count))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(lengths)
    assert len(chosen) <= 3
    assert expected(lengths, chosen) <= length_buckets.NEAR * least


def test_one_length_is_one_bucket_and_a_rare_long_text_is_none() -> None:
    assert length_buckets.choose([17] * 50) == [17]
    assert length_buckets.choose([]) == []
    assert length_buckets.choose([10] * 5000 + [500], 1) == [10]


def test_large_weights_are_compiled_for_fewer_lengths() -> None:
    assert length_buckets.most_buckets(90_000_000) == length_buckets.MOST
    assert length_buckets.most_buckets(440_000_000) == 2
    assert length_buckets.most_buckets(7_000_000_000) == 1


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_padded_text_has_the_answer_that_it_has_alone(tiny_graph, task: str) -> None:
    path, names = tiny_graph(task)
    alone = OnnxRuntimeRunner(path, {}, 1)
    bucketed = OpenVinoRunner(path, {"buckets": [6, 12], "pad": {}}, 1)
    draw = np.random.default_rng(0)
    for rows, length in ((1, 4), (1, 6), (1, 9), (1, 30), (3, 5), (1, 4)):
        ids = draw.integers(5, 60, (rows, length))
        inputs = {name: np.ones_like(ids) if "mask" in name else np.zeros_like(ids) for name in names}
        inputs["input_ids"] = ids
        ours, theirs = bucketed.run(inputs), alone.run(inputs)
        for name, value in theirs.items():
            assert ours[name].shape == value.shape
            np.testing.assert_allclose(ours[name], value, atol=2e-5)
    # compiled for what came, and for each once: two lengths, and dynamic shapes for what is longer or has other rows
    assert set(bucketed.graphs) == {None, (1, 6), (1, 12)}


def test_what_is_padded_to_what() -> None:
    options = {"buckets": [8, 16], "rows": 2}
    assert runners.bucket_for(options, (2, 3)) == (2, 8)
    assert runners.bucket_for(options, (2, 16)) == (2, 16)
    assert runners.bucket_for(options, (2, 17)) is None
    assert runners.bucket_for(options, (1, 3)) is None
    assert runners.bucket_for({}, (1, 3)) is None
    got = runners.padded({"input_ids": np.array([[5, 6]])}, 4, {"input_ids": 1})
    assert got["input_ids"].tolist() == [[5, 6, 1, 1]]


@pytest.mark.parametrize("buckets", [[], [16, 8], [8, 8], [0, 4], ["8"], 8, [8.5]])
def test_a_list_that_means_nothing_is_refused(buckets: object) -> None:
    reason = RUNTIME.refusal(CPU, {"buckets": buckets})
    assert "a list of rising lengths" in str(reason)
    assert RUNTIME.refusal(CPU, {"buckets": [8, 16]}) is None
    reason = RUNTIME.refusal(CPU, {"buckets": [8, 16], "shape": [1, 8]})
    assert "leave one of them out" in str(reason)


def test_full_precision_has_the_same_lengths_as_what_is_held_to_it() -> None:
    options = {"buckets": [8, 16], "rows": 1, "pad": {"input_ids": 0}}
    made = {recipe.name: recipe for recipe in compiled_for(None, BASELINES, 64, buckets=options)}
    assert made["openvino-fp32"].options == {**options, "precision": "f32"}
    assert "buckets" not in made["onnxruntime-fp32"].options


@pytest.fixture
def tiny_graph(tiny_checkpoint, tmp_path: Path):
    """The exported graph of a tiny BERT, and the names of its inputs."""

    def make(task: str):
        from fmopt.workflow.export import export

        folder = export(str(tiny_checkpoint("bert", task)), tmp_path / task, format="onnx")
        return folder / "model.onnx", ("input_ids", "attention_mask", "token_type_ids")

    return make
