"""What is exported computes what the torch model computes, for every family, at every shape."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fmopt.core.errors import CheckpointError, ParityError
from fmopt.edge import runners
from fmopt.exporters import onnx_graph, openvino_graph, to_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models.loading import TorchModel
from tests.conftest import FAMILIES, TinyCheckpoint
from tests.torch_models import items_of, model_of, outputs_of, padded

pytestmark = pytest.mark.traced_anew


@pytest.mark.parametrize("family", FAMILIES)
def test_both_runtimes_agree_with_torch_at_several_shapes(family: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint(family))
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    batches = [padded(model, 3), items_of(model)[0], padded(model, 7)]
    ir = to_onnx.convert_openvino(graph, tmp_path / "ir")
    for runtime, path in (("onnxruntime", graph.path), ("openvino", ir.path)):
        runner = runners.open_runner(runtime, path, {}, 1)
        parity = exporters_parity.check_parity(runner, model.net, batches, 1e-4, outputs=graph.outputs)
        runner.close()
        assert parity.passed, (runtime, parity)
        assert parity.cosine > 0.99999
    assert exporters_parity.first_divergence(graph, model, padded(model), 1e-4) == "the head"


@pytest.mark.parametrize(
    ("family", "task", "outputs"),
    [
        ("bert", "question-answering", ("start_logits", "end_logits")),
        ("distilbert", "text-classification", ("logits",)),
        ("deberta-v2", "token-classification", ("logits",)),
    ],
)
def test_heads_export_their_own_outputs(
    family: str, task: str, outputs: tuple[str, ...], tiny_checkpoint: TinyCheckpoint, tmp_path: Path
):
    model = model_of(tiny_checkpoint(family, task))
    inputs = {name: np.full((2, 9), 7, np.int64) for name in model.metadata.pipeline["inputs"]}
    inputs |= {"attention_mask": np.ones((2, 9), np.int64), "token_type_ids": np.zeros((2, 9), np.int64)}
    graph = to_onnx.export_onnx(model, inputs, tmp_path)
    assert graph.outputs == outputs
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    assert exporters_parity.check_parity(runner, model.net, [inputs], 1e-4, outputs=outputs).passed


def test_the_same_model_gives_the_same_bytes_whatever_the_example(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    one = to_onnx.export_onnx(model, padded(model, 2), tmp_path / "one")
    two = to_onnx.export_onnx(model, items_of(model)[3], tmp_path / "two")
    assert one.path.read_bytes() == two.path.read_bytes()
    a, b = (to_onnx.convert_openvino(graph, tmp_path / f"ir{i}").path for i, graph in enumerate((one, two)))
    assert a.read_bytes() == b.read_bytes()
    assert a.with_suffix(".bin").read_bytes() == b.with_suffix(".bin").read_bytes()


def test_weights_are_counted_where_torch_has_them_in_both_formats(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    ir = to_onnx.convert_openvino(graph, tmp_path / "ir")
    linears = {name: module for name, module in model.net.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {name: module for name, module in linears.items() if name.startswith("encoder.")}
    assert len(layers) == 12
    for sizes in (onnx_graph.layer_bytes(graph.path), openvino_graph.layer_bytes(ir.path)):
        for name, module in layers.items():
            bias = 4 * module.out_features  # biases that are alike, all zeros here, are stored once
            assert 4 * module.weight.numel() <= sizes[name] <= 4 * module.weight.numel() + bias + 64, name


def test_nodes_are_named_after_modules_and_axes_after_their_meaning(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    graph = onnx.load(to_onnx.export_onnx(model, padded(model, 2), tmp_path).path)
    onnx.checker.check_model(graph)
    names = [node.name for node in graph.graph.node]
    assert len(names) == len(set(names))
    assert "encoder.layer.0.attention.self.query/MatMul" in names
    assert exporters_parity.layer_of("encoder.layer.1.output.dense/MatMul_1") == "encoder.layer.1.output.dense"
    assert exporters_parity.layer_of("Shape") == ""
    for value in graph.graph.input:
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "tokens"]
    assert [dim.dim_param for dim in graph.graph.output[0].type.tensor_type.shape.dim[:2]] == ["batch", "tokens"]
    assert not graph.metadata_props
    assert not any(node.metadata_props for node in graph.graph.node)


def test_export_leaves_terminal_and_model_alone(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    model = model_of(tiny_checkpoint("bert"))
    before = outputs_of(model, padded(model))
    capfd.readouterr()
    to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert np.array_equal(before, outputs_of(model, padded(model)))
    assert model.net.config._attn_implementation != "eager"  # type: ignore[union-attr]


def _spoil(path: Path, initializer: str) -> None:
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == initializer:
            values = -onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, initializer))
            break
    else:
        raise AssertionError(f"no initializer {initializer}: {[t.name for t in proto.graph.initializer]}")
    onnx.save(proto, path)


@pytest.mark.parametrize(
    ("family", "weight", "layer"),
    [
        ("bert", "encoder.layer.1.output.dense/MatMul.1", "encoder.layer.1"),
        ("bert", "embeddings.word_embeddings.weight", "embeddings"),
        ("distilbert", "transformer.layer.0.ffn.lin2/MatMul.1", "transformer.layer.0"),
    ],
)
def test_the_first_diverging_layer_is_named(
    family: str, weight: str, layer: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path
):
    model = model_of(tiny_checkpoint(family))
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    _spoil(graph.path, weight)
    inputs = padded(model)
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    parity = exporters_parity.check_parity(runner, model.net, [inputs], 1e-4, outputs=graph.outputs)
    assert not parity.passed
    assert exporters_parity.first_divergence(graph, model, inputs, 1e-4) == layer
    with pytest.raises(ParityError, match=rf"the first layer that diverges is {layer}$"):
        exporters_parity.require_parity(parity, graph, model, inputs)


def test_an_output_the_network_lacks_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    metadata = model.metadata.__class__(
        **{**model.metadata.__dict__, "pipeline": {**model.metadata.pipeline, "outputs": ["logits"]}}
    )
    with pytest.raises(ParityError, match=r"has no output 'logits'; it has last_hidden_state"):
        to_onnx.export_onnx(TorchModel(model.net, metadata, model.family), padded(model, 2), tmp_path)


def test_values_that_are_no_numbers_never_pass():
    class Broken:
        def run(self, inputs: object) -> dict[str, np.ndarray]:
            return {"y": np.full((1, 2, 3), np.nan, np.float32)}

        def close(self) -> None:
            """Nothing is held."""

    import torch

    class Net(torch.nn.Module):
        def forward(self, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": torch.zeros(1, 2, 3)}

    batch = {"attention_mask": np.ones((1, 2), np.int64)}
    parity = exporters_parity.check_parity(Broken(), Net(), [batch], 1e-3, outputs=["y"], min_cosine=0.5)
    assert not parity.passed
    assert parity.max_abs == float("inf")


def test_what_was_there_before_rests_while_a_network_is_exported():
    """Not looked through by the collector meanwhile, and again afterwards."""
    before = gc.get_freeze_count()
    with to_onnx.heap_at_rest():
        assert gc.get_freeze_count() > before + 10_000
    assert gc.get_freeze_count() == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
            "'dynamic', whose angles.* longer than 64 tokens",
        ),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 32}, "'su', .* longer than 32 tokens"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 16}}},
            "'longrope', .* longer than 16 tokens",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, None),
        ({"rope_scaling": None}, None),
    ],
)
def test_positions_whose_angles_depend_on_the_length_are_refused_before_the_export(settings, said) -> None:
    config = {"max_position_embeddings": 64, **settings}
    metadata: Any = SimpleNamespace(model_type="llama", config=config, source=SimpleNamespace(title="tiny"))
    with pytest.raises(CheckpointError, match=said) if said else nullcontext():
        to_onnx.check_positions(metadata)


def test_rules_of_several_outputs_are_tried_only_where_they_begin():
    """onnxscript lists the whole graph at every node for them: quadratic in the number of layers."""
    import onnx_ir
    from onnxscript.optimizer import optimize_ir
    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES

    def model() -> Any:
        text = (
            '<ir_version: 10, opset_import: ["" : 18]> halves (float[2, 8] x) => (float[2, 4] y) {'
            "start = Constant <value_ints = [0]> () middle = Constant <value_ints = [4]> () end = Constant <value_ints = [8]> ()"
            "axis = Constant <value_ints = [1]> () a = Slice(x, start, middle, axis) b = Slice(x, middle, end, axis)"
            "c = Neg(a) y = Add(c, b) }"
        )
        return onnx_ir.serde.deserialize_model(onnx.parser.parse_model(text))

    several = [rule for rule in _DEFAULT_REWRITE_RULES if not rule._matcher.pattern.has_single_output_node]
    assert several, "nothing to speed up any more: remove linear_rewriting"
    plain, quick = model(), model()
    optimize_ir(plain)
    with to_onnx.linear_rewriting():
        optimize_ir(quick)
        listed = [0]

        class Graph(list):
            def __iter__(self):
                listed[0] += 1
                return super().__iter__()

        nodes = Graph(quick.graph)
        for rule in several:
            assert not rule._matcher.match(quick, nodes, quick.graph[0].outputs[0].uses()[0].node, remove_nodes=True)
    assert listed[0] == 0
    assert [node.op_type for node in quick.graph] == [node.op_type for node in plain.graph]
    assert not any("match" in vars(rule._matcher) for rule in several)
