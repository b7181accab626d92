"""The runtimes: build, open, profile, and what each refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.core import plugins
from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata, Graph, ModelSource
from fmopt.measurement.roofline.findings import group_of
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from tests.passes.conftest import build_graph, items, target
from tests.passes.running import cosine, run


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(build_graph().SerializeToString(deterministic=True))
    return Graph("onnx", path, ("input_ids",), ("last_hidden_state",))


@pytest.fixture
def checkpoint(tiny_checkpoint):
    folder = tiny_checkpoint("bert", "text-classification")
    return CheckpointMetadata(
        source=ModelSource("tiny", folder, "tiny"), model_type="bert", architecture="BertForSequenceClassification",
        task="text-classification", pipeline={}, hidden_size=32, layers=2, parameters=1, weight_bytes=1, digest="0",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_runs_as_built(graph, tmp_path, name):
    runtime = plugins.find("runtimes", name)
    assert runtime.missing() is None
    artifact = runtime.build(graph, {}, tmp_path / "out")
    assert artifact.path.parent == tmp_path / "out"
    runner = runtime.open(artifact, threads=1)
    item = items(1)[0]
    got = runner.run({**item, "unwanted": item["input_ids"]})
    runner.close()
    assert list(got) == ["last_hidden_state"]
    np.testing.assert_allclose(got["last_hidden_state"], run(graph.path, item), atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_building_twice_gives_the_same_bytes(graph, tmp_path, name):
    runtime = plugins.find("runtimes", name)
    made = [runtime.build(graph, {}, tmp_path / folder) for folder in ("a", "b")]
    assert made[0].digest == made[1].digest


def test_openvino_stores_weights_in_half(graph, tmp_path):
    runtime = plugins.find("runtimes", "openvino")
    full, half = (runtime.build(graph, {"fp16_weights": fp16}, tmp_path / str(fp16)) for fp16 in (False, True))
    sizes = [artifact.path.with_suffix(".bin").stat().st_size for artifact in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    item = items(1)[0]
    assert cosine(runtime.open(half, 1).run(item)["last_hidden_state"], run(graph.path, item)) > 0.999


def test_openvino_compiled_for_a_shape_runs_at_every_shape(graph, tmp_path):
    runtime = plugins.find("runtimes", "openvino")
    free = runtime.open(runtime.build(graph, {}, tmp_path / "free"), threads=1)
    fixed = runtime.open(runtime.build(graph, {"shape": [1, 9]}, tmp_path / "fixed"), threads=1)
    for tokens in (9, 5, 9):
        given = {"input_ids": np.arange(1, 1 + tokens, dtype=np.int64)[None]}
        np.testing.assert_allclose(
            fixed.run(given)["last_hidden_state"], free.run(given)["last_hidden_state"], atol=1e-5
        )
    assert set(fixed.graphs) == {(1, 9), None}
    assert set(free.graphs) == {None}


def test_openvino_builds_from_its_own_graphs_too(graph, tmp_path):
    runtime = plugins.find("runtimes", "openvino")
    first = runtime.build(graph, {}, tmp_path / "a")
    ir = Graph("openvino", first.path, graph.inputs, graph.outputs)
    assert runtime.build(ir, {}, tmp_path / "b").digest == first.digest


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_profile_names_operators_and_their_layers(graph, tmp_path, name):
    runtime = plugins.find("runtimes", name)
    profile = runtime.profile(runtime.build(graph, {}, tmp_path / "out"), items(1)[0], threads=1)
    products = [op for op in profile if group_of(op.kind) == "matrix products"]
    assert {op.layer for op in products} == {f"layer.{i}.{side}" for i in (0, 1) for side in ("up", "down")}
    assert {op.precision for op in products} == {"fp32"}
    assert all(op.ms >= 0 for op in profile)
    assert [op.ms for op in profile] == sorted((op.ms for op in profile), reverse=True)


def test_a_profile_tells_int8(graph, tmp_path):
    ctx_target = target("avx2")
    from fmopt.passes.base import Context

    ctx = Context(metadata=None, target=ctx_target, calibration=lambda: iter(()))  # dynamic INT8 needs neither
    made = QuantizeDynamic().apply(graph, ctx, tmp_path / "int8")
    runtime = plugins.find("runtimes", "onnxruntime")
    profile = runtime.profile(runtime.build(made, {}, tmp_path / "out"), items(1)[0], threads=1)
    products = [op for op in profile if group_of(op.kind) == "matrix products"]
    assert len(products) == 4
    assert {op.precision for op in products} == {"int8"}
    assert {op.layer for op in products} == {f"layer.{i}.{side}" for i in (0, 1) for side in ("up", "down")}


def test_torch_runs_the_checkpoint(checkpoint, tmp_path):
    import torch
    import transformers

    runtime = plugins.find("runtimes", "torch")
    artifact = runtime.build(checkpoint, {"dtype": "fp32"}, tmp_path)
    assert dict(artifact.options) == {"auto_class": "AutoModelForSequenceClassification", "dtype": "fp32"}
    ids = np.array([[5, 6, 7, 8]])
    item = {"input_ids": ids, "attention_mask": np.ones_like(ids), "unwanted": ids}
    got = runtime.open(artifact, threads=1).run(item)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder).eval()
    with torch.inference_mode():
        want = net(input_ids=torch.from_numpy(ids), attention_mask=torch.ones(1, 4, dtype=torch.int64)).logits
    np.testing.assert_allclose(got["logits"], want.numpy(), atol=1e-5)
    assert got["logits"].dtype == np.float32


def test_torch_profile_holds_products(checkpoint, tmp_path):
    runtime = plugins.find("runtimes", "torch")
    artifact = runtime.build(checkpoint, {}, tmp_path)
    ids = np.array([[5, 6, 7, 8]])
    profile = runtime.profile(artifact, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, threads=1)
    assert "matrix products" in {group_of(op.kind) for op in profile}
    assert {op.precision for op in profile} == {"fp32"}


@pytest.mark.parametrize(("name", "options", "said"), [
    ("torch", {"dtype": "bf16"}, "test-cpu does not compute in bf16"),
    ("openvino", {"precision": "bf16"}, "test-cpu does not compute in bf16"),
    ("openvino", {"shape": [0, 9]}, "openvino option 'shape' is [0, 9]; it is [batch, tokens], for example [1, 128]"),
    ("openvino", {"precision": "f33"}, "openvino has no precision 'f33'; did you mean 'f32'?"),
    ("torch", {"device": "cuda"}, "test-cpu has no CUDA device"),
    ("torch", {"mode": "cuda_graph"}, "torch option mode = 'cuda_graph' is for GPUs; give device = 'cuda' too"),
    ("torch", {"dtype": "fp16"}, "torch option dtype = 'fp16' is for GPUs; give device = 'cuda' too"),
    ("torch", {"quantize": "int9"}, "torch has no quantize 'int9'; did you mean 'int8'?"),
    ("onnxruntime", {"providers": ["ACLExecutionProvider", "CPUExecutionProvider"]},
     "the ONNX Runtime installed here was built without ACLExecutionProvider"),
    ("torch", {"dtype": "fp23"}, "torch has no dtype 'fp23'; did you mean 'fp32'?"),
    ("onnxruntime", {"provider": ["x"]}, "onnxruntime has no option 'provider'; did you mean 'providers'?"),
    ("onnxruntime", {}, None), ("openvino", {"precision": "f32"}, None), ("torch", {"dtype": "fp32"}, None),
])  # fmt: skip
def test_refusals(name, options, said):
    assert plugins.find("runtimes", name).refusal(target("avx2"), options) == said


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_a_target_without_the_runtime(name):
    said = plugins.find("runtimes", name).refusal(target(runtimes=("tensorrt",)), {})
    assert said == f"test-cpu has no runtime {name!r}; it has tensorrt"


def test_wrong_sources(graph, checkpoint, tmp_path):
    with pytest.raises(PassError, match="torch runs a checkpoint, not a graph"):
        plugins.find("runtimes", "torch").build(graph, {}, tmp_path)
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(PassError, match="not from a checkpoint"):
            plugins.find("runtimes", name).build(checkpoint, {}, tmp_path)
