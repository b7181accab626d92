"""Timing in turn, inputs of an exact length, footprints of a fresh process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binom
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fmopt.core.errors import DataError, UnmeasuredError
from fmopt.core.model import Artifact
from fmopt.edge.board import interleaved
from fmopt.edge.text import Preprocessor
from fmopt.measurement import latency

PIPELINE = {"task": "sentence-embedding", "max_length": 64, "inputs": ["input_ids", "attention_mask"],
            "outputs": ["last_hidden_state"], "padding": {"id": 0, "type_id": 0, "token": "[PAD]", "side": "right"},
            "pooling": "mean", "normalize": True}  # fmt: skip


def preprocessor(folder: Path, **metadata: object) -> Preprocessor:
    """One token a word, [CLS] before and [SEP] after."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(50))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return Preprocessor(folder / "tokenizer.json", {**PIPELINE, **metadata})


def embedding_graph(folder: Path, rows: int = 1000) -> Path:
    """A graph that looks tokens up in a table of rows × 256 floats."""
    table = numpy_helper.from_array(np.zeros((rows, 256), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["out"])],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "tokens", 256])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"model{rows}.onnx")
    return folder / f"model{rows}.onnx"


class Counted:
    """A variant that writes down its calls in a common log."""

    def __init__(self, name: str, log: list[str], work: int = 200):
        self.name, self.log, self.work = name, log, work

    def __call__(self) -> None:
        assert not gc.isenabled()
        self.log.append(self.name)
        sum(range(self.work))


def counted(*names: str, **work: int) -> tuple[dict[str, Callable[[], object]], list[str]]:
    log: list[str] = []
    return {name: Counted(name, log, work.get(name, 200)) for name in names}, log


def test_every_round_calls_each_variant_once_in_changing_order() -> None:
    variants, log = counted("a", "b", "c")
    rounds: list[None] = []
    samples = interleaved.time_in_turn(variants, min_samples=40, progress=lambda: rounds.append(None), seed=1)
    assert [len(samples[name]) for name in "abc"] == [40, 40, 40]
    assert len(rounds) == 40
    turns = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]  # warm-up rounds included
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns[-40:])) == 6
    assert all(ms > 0 for each in samples.values() for ms in each)
    assert gc.isenabled()


def test_the_order_is_the_seeds() -> None:
    logs = []
    for _ in range(2):
        variants, log = counted("a", "b")
        interleaved.time_in_turn(variants, min_samples=20, seed=3)
        logs.append(log[-40:])
    assert logs[0] == logs[1]  # however many rounds warming up took


def test_a_settled_call_comes_after_one_on_the_same_input() -> None:
    log: list[str] = []
    replayed = interleaved.Replay([lambda: log.append("a"), lambda: log.append("b")])
    assert interleaved.settled_ms(replayed) < interleaved.SETTLING_MS
    interleaved.settled_ms(replayed)
    assert log == ["a", "a", "b", "b"]
    samples = interleaved.time_in_turn({"it": replayed}, min_samples=20, clock=interleaved.settled_ms)
    assert len(samples["it"]) == 20
    assert log[4::2] == log[5::2] == ["a", "b"] * (len(log[4:]) // 4) + ["a"] * (len(log[4:]) // 2 % 2)


def test_what_takes_long_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "SETTLING_MS", 0.0)
    log: list[str] = []
    replayed = interleaved.Replay([lambda: log.append("a"), lambda: log.append("b")])
    assert interleaved.settled_ms(replayed) > 0
    interleaved.settled_ms(replayed)
    assert log == ["a", "b"]


def test_the_collector_is_on_again_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        interleaved.time_in_turn({"a": broken})
    assert gc.isenabled()


def test_a_dominated_variant_stops_early_and_keeps_what_it_has() -> None:
    variants, _ = counted("fast", "slow", "base", slow=400_000, base=400_000)
    dropped: list[str] = []
    samples = interleaved.time_in_turn(
        variants, min_samples=60, on_drop=dropped.append,
        dominated=lambda so_far: interleaved.certainly_slower(so_far, keep=["base"]),
    )  # fmt: skip
    assert dropped == ["slow"]
    assert len(samples["slow"]) < 60
    assert len(samples["slow"]) >= interleaved.STOP_CHECK
    assert len(samples["fast"]) == len(samples["base"]) == 60


def test_slow_variants_have_enough_after_their_seconds() -> None:
    variants, _ = counted("a")
    samples = interleaved.time_in_turn(variants, min_samples=10_000, min_seconds=0.0)
    assert len(samples["a"]) == interleaved.FEWEST
    limited = interleaved.time_in_turn(variants, min_samples=10_000_000, max_seconds=0.0)
    assert len(limited["a"]) == 1


def test_certainly_slower_waits_for_samples_and_for_a_clear_case() -> None:
    rng = np.random.default_rng(0)
    fast, slow, near = (list(scale + rng.random(30)) for scale in (10, 20, 10.4))
    assert interleaved.certainly_slower({"fast": fast, "slow": slow, "near": near}) == {"slow"}
    assert interleaved.certainly_slower({"fast": fast, "slow": slow}, keep=["slow"]) == set()
    assert interleaved.certainly_slower({"fast": fast[:10], "slow": slow[:10]}) == {"slow"}
    assert interleaved.certainly_slower({"fast": fast[:9], "slow": slow[:9]}) == set()
    spread = list(rng.choice([5.0, 30.0], size=40))
    assert interleaved.certainly_slower({"fast": fast, "spread": spread}) == set()


def test_a_median_is_bounded_with_the_confidence_that_is_said() -> None:
    """By the exact binomial: of so many values, how often the median lies below the one that is taken."""
    for count in range(interleaved.STOP_CHECK, 401):
        place = int(interleaved._least_median(np.arange(count, dtype=float)))
        assert binom.cdf(place, count, 0.5) <= 0.01, count


# --------------------------------------------------------------------------------------------------------- inputs


def test_inputs_fill_exactly_the_length_with_real_text(tmp_path: Path) -> None:
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(40)]
    made = latency.latency_inputs(preprocessor(tmp_path), texts, batch=3, length=32)
    assert len(made) == latency.DISTINCT_INPUTS
    for inputs in made:
        assert inputs["input_ids"].shape == (3, 32)
        assert inputs["attention_mask"].all()
        assert (inputs["input_ids"][:, 0] == 2).all()
        assert (inputs["input_ids"][:, 1:-1] >= 4).all()  # words, nothing unknown or padded
    assert len({inputs["input_ids"].tobytes() for inputs in made}) > 1
    again = latency.latency_inputs(preprocessor(tmp_path), texts, batch=3, length=32)
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(made, again, strict=True))


def test_one_short_text_is_repeated_to_the_length(tmp_path: Path) -> None:
    made = latency.latency_inputs(preprocessor(tmp_path), ["w1"], batch=2, length=64)
    assert made[0]["input_ids"].shape == (2, 64)
    assert made[0]["attention_mask"].all()


def test_pairs_and_word_lists_are_filled_too(tmp_path: Path) -> None:
    pairs = latency.latency_inputs(
        preprocessor(tmp_path, task="text-classification"), [("w1 w2", "w3"), ("w4", "w5 w6")], batch=1, length=24
    )
    assert pairs[0]["attention_mask"].all()
    words = latency.latency_inputs(
        preprocessor(tmp_path, task="token-classification"), [["w1", "w2"], ["w3"]], batch=2, length=24
    )
    assert words[0]["input_ids"].shape == (2, 24)
    asked = latency.latency_inputs(
        preprocessor(tmp_path, task="question-answering"), [("w1 w2", "w3 w4 w5")], batch=2, length=24
    )
    assert asked[0]["input_ids"].shape == (2, 24)
    assert asked[0]["attention_mask"].all()


def test_the_datas_own_lengths_are_a_seeded_sample_in_order(tmp_path: Path) -> None:
    texts = [" ".join(["w1"] * (1 + i % 9)) for i in range(100)]
    first, same, other = (
        latency.latency_inputs(preprocessor(tmp_path), texts, batch=2, length=None, seed=seed) for seed in (0, 0, 1)
    )
    lengths = [inputs["input_ids"].shape for inputs in first]
    assert len(first) == latency.REPLAYED_CALLS // 2
    assert lengths == [inputs["input_ids"].shape for inputs in same]
    assert lengths != [inputs["input_ids"].shape for inputs in other]
    assert len(set(lengths)) > 3


def test_replayed_items_have_the_lengths_of_all(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    words = np.minimum(draw.lognormal(2, 0.8, 500).astype(int) + 1, 55)
    texts = [" ".join(["w1"] * int(count)) for count in words]
    chosen = latency.replayed(preprocessor(tmp_path), texts, batch=1)
    found = np.array([len(batch[0].split()) for batch in chosen])
    assert len(chosen) == latency.REPLAYED_CALLS
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(found, share) - np.quantile(words, share)) <= 1 + 0.1 * np.quantile(words, share)
    assert found.tolist() != sorted(found)  # long and short ones in turn
    for rounds in (20, 40):  # what a variant that is stopped early has seen
        assert abs(np.median(found[:rounds]) - np.median(words)) <= 1 + 0.15 * np.median(words)


def test_few_items_are_replayed_again_and_all_empty_ones_are_refused(tmp_path: Path) -> None:
    chosen = latency.replayed(preprocessor(tmp_path), ["w1", "w2 w3", ""], batch=2)
    assert {text for batch in chosen for text in batch} == {"w1", "w2 w3", ""}
    assert {len(batch) for batch in chosen} == {2}
    with pytest.raises(DataError, match="every item is empty"):
        latency.replayed(preprocessor(tmp_path), ["", "  "], batch=1)


def test_variants_are_compared_on_the_same_item_not_on_its_length() -> None:
    """Items differ by a factor of thirty; a variant that always takes a fifth longer is found all the same."""
    draw = np.random.default_rng(0)
    items = draw.lognormal(0, 1, 40)
    samples = {name: (factor * items * draw.normal(1, 0.02, 40)).tolist() for name, factor in (("a", 1.0), ("b", 1.2))}
    samples["c"] = (1.05 * items).tolist()
    assert interleaved.certainly_slower(samples) == {"b"}
    assert interleaved.certainly_slower(samples, keep=["b"]) == set()


def test_texts_without_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fill 32 tokens"):
        latency.latency_inputs(preprocessor(tmp_path), ["", " "], batch=1, length=32)
    with pytest.raises(DataError, match="nothing to time with"):
        latency.latency_inputs(preprocessor(tmp_path), [], batch=1, length=32)


# ------------------------------------------------------------------------------------------------------ footprint


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_footprint_is_that_of_a_process_without_torch(runtime: str, tmp_path: Path) -> None:
    ids = {"input_ids": np.ones((1, 8), np.int64)}
    ballast = np.ones(400_000_000 // 8)  # this process is large; the fresh one must not inherit its peak
    got = latency.footprint(Artifact(runtime, embedding_graph(tmp_path)), ids)
    assert 30 < got.peak_memory_mb < 300, ballast.sum()
    assert got.load_ms > 0


def test_a_larger_model_takes_more_memory(tmp_path: Path) -> None:
    ids = {"input_ids": np.ones((1, 8), np.int64)}
    small = latency.footprint(Artifact("onnxruntime", embedding_graph(tmp_path, 1_000)), ids)
    large = latency.footprint(Artifact("onnxruntime", embedding_graph(tmp_path, 100_000)), ids)
    assert large.peak_memory_mb > small.peak_memory_mb + 90  # 102 MB of weights more


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnmeasuredError, match=r"could not serve .*gone\.onnx: .*gone\.onnx is missing"):
        latency.footprint(Artifact("onnxruntime", tmp_path / "gone.onnx"), {"input_ids": np.ones((1, 8), np.int64)})


# -------------------------------------------------------------------------------------------------- quiet machine


def test_drift_is_said_in_percent_from_five_percent_on() -> None:
    assert interleaved.drift_warning(2.0, 2.08) == ""
    assert "took 10 % more time" in interleaved.drift_warning(2.0, 2.2)
    assert "took 20 % less time" in interleaved.drift_warning(2.0, 1.6)


def test_a_look_at_the_machine_gives_lines() -> None:
    warnings = latency.quiet_machine(seconds=0.05)
    assert all(isinstance(line, str) and line and "\n" not in line for line in warnings)
    assert interleaved.spin_ms() > 0
