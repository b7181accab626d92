"""OpenVINO graphs that keep keys and values themselves: token by token what torch says, in beams, batches and pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmopt
from fmopt.core.errors import PassError
from fmopt.core.model import Artifact
from fmopt.core.recipe import Recipe
from fmopt.edge import kv_cache as edge_kv_cache
from fmopt.edge import loading, runners
from fmopt.edge import text as edge_text
from fmopt.edge.generation import GenerationConfig, Session, continuations, in_two_steps, likeliest, timed
from fmopt.edge.kv_cache import cache_of, can_cut, can_share, shorten
from fmopt.exporters.openvino_graph import read_ir
from fmopt.exporters.openvino_stateful import make_stateful
from fmopt.measurement import host_probe
from fmopt.measurement.roofline.openvino_work import ir_work
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.runtimes.openvino import RUNTIME
from fmopt.workflow import explain
from fmopt.workflow.search.candidates import refusal
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.edge.test_lookup import Eager, answers_known
from tests.torch_models import outputs_of, padded

NEW = 8
FAMILIES = ("gpt2", "llama", "gpt_neox")


@pytest.fixture(scope="module")
def built(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """built("gpt2", kv_cache="u8"): (the network, its artifact for OpenVINO)."""

    def make(family: str, **options: Any) -> tuple[Any, Artifact]:
        model, graph = tiny_decoder(family)
        building = {"precision": "f32", "stateful": True, **options}
        made = RUNTIME.build(graph, building, tmp_path_factory.mktemp(f"{family}-ir"))
        return model, Artifact("openvino", made.path, {**made.options, **building})

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_texts_and_steps_are_torchs(built: Any, family: str) -> None:
    """Padded rows, in one piece and in two; every attention is the operator that reads the cache where it lies."""
    model, artifact = built(family)
    runner = RUNTIME.open(artifact, 1)
    inputs = padded(model)
    wanted, seen = outputs_of(model, inputs), inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(runner.run(inputs)["logits"][seen], wanted[seen], atol=1e-4)
    np.testing.assert_allclose(in_two_steps(runner, inputs)["logits"][seen], wanted[seen], atol=1e-4)
    kinds = [op.get_type_name() for op in read_ir(artifact.path).get_ops()]
    assert (kinds.count("ScaledDotProductAttention"), kinds.count("ReadValue")) == (2, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_with_texts_as_the_other_runtime_does(built: Any, tiny_decoder: Any, family: str) -> None:
    """Prompts of several lengths at once, and beams, which go on from one another's past."""
    model, artifact = built(family)
    other = runners.open_runner("onnxruntime", tiny_decoder(family)[1].path, {}, 1)
    runner = RUNTIME.open(artifact, 1)
    pipeline = model.metadata.pipeline
    preprocessor = edge_text.open_preprocessor(model.metadata.folder, dict(pipeline))
    prompts = [preprocessor.ids(text)[:length] for text, length in zip(SENTENCES, (3, 5, 9), strict=False)]
    config = GenerationConfig(max_new_tokens=NEW)
    both = [list(continuations(one, prompts, pipeline, config)) for one in (runner, other)]
    assert both[0] == both[1]
    beams = [
        likeliest(one, prompts[1], pipeline, GenerationConfig(max_new_tokens=NEW, beams=3)) for one in (runner, other)
    ]
    assert beams[0] == beams[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_proposed_ahead_and_what_a_prompt_left_change_nothing(
    built: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state is cut where it holds keys and values as they are; in 8 bits they would be rounded anew."""
    model, artifact = built(family)
    runner = RUNTIME.open(artifact, 1)
    assert can_cut(runner)
    assert can_share(runner)
    assert not can_cut(RUNTIME.open(built(family, kv_cache="u8")[1], 1))
    pipeline = model.metadata.pipeline
    prompt = edge_text.open_preprocessor(model.metadata.folder, dict(pipeline)).ids(SENTENCES[0])[:12]
    off = GenerationConfig(max_new_tokens=NEW, speculation="off")
    plain = [int(token or 0) for (token,) in continuations(runner, [prompt], pipeline, off)]
    session = Session()
    session.gain = eager = Eager()
    for number in range(3):
        with monkeypatch.context() as told:
            if number:
                answers_known(told, prompt, plain)
            made = continuations(runner, [prompt], pipeline, GenerationConfig(max_new_tokens=NEW), session)
            assert [token for (token,) in made] == plain
    assert 0 < eager.accepted < eager.proposed


@pytest.mark.parametrize("cache", ["f32", "u8"])
def test_an_earlier_cache_goes_on_until_rows_went_on_from_others(built: Any, cache: str) -> None:
    model, artifact = built("gpt2", kv_cache=cache)
    runner = RUNTIME.open(artifact, 1)
    inputs = {name: value[:1, :9] for name, value in padded(model).items()}
    inputs["attention_mask"] = np.ones_like(inputs["attention_mask"])
    first = {name: value[:, :5] for name, value in inputs.items()}
    rest = {name: value if name == "attention_mask" else value[:, 5:] for name, value in inputs.items()}
    kv_cache = cache_of(runner.run(first))
    wanted = runner.run({**rest, **kv_cache})["logits"]
    # 8 bits are rounded anew when they are put back
    np.testing.assert_allclose(runner.run({**rest, **kv_cache})["logits"], wanted, atol=1e-5 if cache == "f32" else 0.1)
    two = {name: np.repeat(value, 2, axis=0) for name, value in first.items()}
    after = cache_of(runner.run(two))
    swapped = {name: value[::-1] for name, value in after.items()}
    runner.run({**{name: np.repeat(value, 2, axis=0) for name, value in rest.items()}, **swapped})
    with pytest.raises(ValueError, match="begin the text again"):
        runner.run({**{name: np.repeat(value, 2, axis=0) for name, value in rest.items()}, **after})


def test_texts_begun_together_go_on_and_are_forgotten_with_their_cache(built: Any) -> None:
    import gc
    import weakref

    model, artifact = built("gpt2")
    runner = RUNTIME.open(artifact, 1)
    inputs = {name: value[:1, :9] for name, value in padded(model).items()}
    pasts = [runner.run(inputs) for _ in range(20)]
    kept = weakref.ref(pasts[0]["present.held"].kept)
    assert kept() is not None
    pasts.pop(0)
    gc.collect()
    assert kept() is None


def test_a_step_that_is_timed_stays_the_same_step(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is repeated is masked for a while, then forgotten; the answer is that of the step, and no text grows without end."""
    model, artifact = built("llama")
    runner = RUNTIME.open(artifact, 1)
    inputs = {name: value[:1, :9] for name, value in padded(model).items()}
    inputs["attention_mask"] = np.ones_like(inputs["attention_mask"])
    wanted = runner.run(inputs)["logits"][:, -1]
    calls = [timed(runner, inputs) for _ in range(2)]
    forgotten = []
    monkeypatch.setattr(edge_kv_cache, "shorten", lambda request, tokens: forgotten.append(shorten(request, tokens)))
    for _ in range(40):
        for call in calls:
            np.testing.assert_allclose(runner.run(call)["logits"][:, 0], wanted, atol=1e-4)
    assert len(forgotten) == 2 * 2
    assert max(call["past_key_values.held"].kept.taken for call in calls) <= 9 + 16


def test_its_cache_has_8_bits_where_asked(built: Any) -> None:
    model, artifact = built("llama")
    inputs = padded(model)
    seen = inputs["attention_mask"].astype(bool)
    said = {}
    for kind in ("f32", "u8"):
        runner = RUNTIME.open(Artifact("openvino", artifact.path, {**artifact.options, "kv_cache": kind}), 1)
        batch = edge_text.Batch(inputs, inputs["attention_mask"], list(range(len(inputs["input_ids"]))))
        said[kind] = loading.run_batch(model.metadata.pipeline, runner, batch, 2)["logits"][seen]  # as it is judged
    assert 1e-4 < np.abs(said["u8"] - said["f32"]).mean() < 0.05


def test_it_is_profiled_and_its_work_is_counted(built: Any) -> None:
    model, artifact = built("gpt2", kv_cache="u8")
    runner = RUNTIME.open(artifact, 1)
    inputs = {name: value[:1] for name, value in padded(model).items()}
    kinds = {op.kind.partition("/")[0] for op in RUNTIME.profile(artifact, timed(runner, inputs), 1)}
    assert "FullyConnected" in kinds  # attention takes less than the clock of the profiler tells here
    assert "Softmax" not in kinds
    net = model.net.config
    work = [one for one in ir_work(artifact.path, 1, 10) if one.kind == "MatMul"]
    weights = net.n_layer * 12 * net.n_embd**2 + net.n_embd * net.vocab_size
    attention = net.n_layer * 2 * 10 * net.n_embd  # one token against ten
    assert sum(one.operations for one in work) == 2 * (weights + attention)


def test_only_a_cache_that_grows_can_be_kept(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = fmopt.export(tiny_checkpoint("bert", "text-classification"), tmp_path / "bert", format="openvino")
    with pytest.raises(PassError, match="networks that generate by attention"):
        make_stateful(read_ir(folder / "model.xml"))
    target = host_probe.load_target("host")
    for options, said in (
        ({"kv_cache": "u4"}, "has no kv_cache 'u4'"), ({"kv_cache": "u8"}, "give stateful = true too"),
        ({"stateful": "yes"}, "it is true or false"),
    ):  # fmt: skip
        assert said in str(RUNTIME.refusal(target, options))
    metadata = checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "text-classification"))))
    recipe = Recipe(name="mine", runtime="openvino", options={"stateful": True})
    assert "text-classification by bert does not" in str(refusal(recipe, metadata, target))


def test_the_bundle_of_its_int8(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    """Exported by the word, opened without torch, streams; and the ports are those that optimum-intel knows."""
    data = tmp_path / "text.txt"
    data.write_text("".join(f"the cat sat on mat {n}, and a small dog ran over the hill. " for n in range(300)))
    out = fmopt.export(
        tiny_checkpoint("llama", "text-generation"), tmp_path / "out", format="openvino", precision="int8", data=data
    )
    bundle = loading.load(out, 1)
    whole = bundle("the cat sat on", max_new_tokens=NEW)
    assert explain.explain(out, length=16).p50_ms > 0
    assert "".join(bundle.stream("the cat sat on", max_new_tokens=NEW)).strip("\ufffd") in whole["text"]
    assert whole["tokens"] == NEW
    graph = read_ir(out / "model.xml")
    assert {port.any_name for port in graph.inputs} == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert any(op.get_output_element_type(0).get_type_name() == "i8" for op in graph.get_ops() if op.get_output_size())
