"""The quantized network, its exported graph and both runtimes compute the same, in integers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fmopt.core.errors import ConfigError, PassError
from fmopt.edge import runners
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.passes.calibration import statistics
from fmopt.passes.calibration.range_estimators import Histogram
from fmopt.passes.calibration.statistics import Observer
from fmopt.passes.quantization import linears as linears_module
from fmopt.passes.quantization import modules
from fmopt.passes.quantization.linears import fold_value_smoothing, quantize_linears
from fmopt.passes.quantization.modules import Grid, QuantizedEmbedding, QuantizedLinear, weight_integers
from fmopt.passes.quantize_static import QuantizeStatic
from tests.conftest import FAMILIES, TinyCheckpoint
from tests.torch_models import context_of, items_of, model_of, outputs_of, padded, target


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def optimized(path: Path, tmp_path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_equals_torch_and_runs_on_integers(family: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint(family))
    float_output = outputs_of(model, padded(model))
    model = QuantizeStatic().apply(model, context_of(model))
    quantized = sum(isinstance(module, QuantizedLinear) for module in model.net.modules())
    assert quantized >= 4
    assert cosine(outputs_of(model, padded(model)), float_output) > 0.99

    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    assert graph.history == ("quantize_static(minmax)",)
    items = items_of(model)
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    gaps = [np.abs(runner.run(item)["last_hidden_state"] - outputs_of(model, item)).max() for item in items]
    # Exact, until a value lies between two integers within 1e-7; that happens to few items.
    assert np.median(gaps) < 2e-3
    parity = exporters_parity.check_parity(runner, model.net, items, 2e-3, outputs=graph.outputs, min_cosine=0.999)
    assert parity.passed

    ops = optimized(graph.path, tmp_path)
    assert ops["MatMulIntegerToFloat"] >= quantized
    # DeBERTa projects constants, its relative positions, too; ONNX Runtime leaves those products in float.
    assert ops["DequantizeLinear"] == (8 if family == "deberta-v2" else 0)
    plain = onnx.load(graph.path).graph
    assert not any(re.search("weight|MatMul", v.name) and v.data_type == onnx.TensorProto.FLOAT and len(v.dims) == 2
                   and "embedding" not in v.name and "rel" not in v.name for v in plain.initializer)  # fmt: skip


def test_openvino_runs_the_same_graph_on_integers(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    import openvino

    model = model_of(tiny_checkpoint("bert"))
    model = QuantizeStatic().apply(model, context_of(model))
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    ir = to_onnx.convert_openvino(graph, tmp_path / "ir")
    compiled = openvino.Core().compile_model(str(ir.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = Counter(
        (
            str(op.get_rt_info()["layerType"].astype(str)),
            str(op.get_rt_info()["primitiveType"].astype(str)).lower()[-2:],
        )
        for op in compiled.get_runtime_model().get_ordered_ops()
    )
    assert kinds["FullyConnected", "i8"] == 12
    runner = runners.open_runner("openvino", ir.path, {}, 1)
    parity = exporters_parity.check_parity(
        runner, model.net, items_of(model), 2e-3, outputs=graph.outputs, min_cosine=0.999
    )
    assert parity.passed


def test_query_key_and_value_share_one_pair(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    model = QuantizeStatic(smooth=0.5).apply(model, context_of(model))
    graph = onnx.load(to_onnx.export_onnx(model, padded(model, 2), tmp_path).path).graph
    ops = Counter(node.op_type for node in graph.node)
    assert ops["QuantizeLinear"] == 8  # two layers: q/k/v, output, widen, narrow
    assert ops["DequantizeLinear"] == 8 + 12
    # smoothing: one Mul for q/k/v, widen and narrow; that of the output went into the value projection
    products = [node.name for node in graph.node if node.op_type == "Mul"]
    assert sum("query" in name or "dense" in name for name in products) == 6
    assert not any("attention.output" in name for name in products)
    assert not any(node.op_type == "Transpose" and node.input[0].endswith("DequantizeLinear") for node in graph.node)


def test_the_same_seed_gives_the_same_bytes(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    bytes_of = []
    for name in ("one", "two"):
        model = model_of(tiny_checkpoint("bert"))
        model = QuantizeStatic().apply(model, context_of(model, tmp_path if name == "two" else None))
        bytes_of.append(to_onnx.export_onnx(model, padded(model, 2), tmp_path / name).path.read_bytes())
    assert bytes_of[0] == bytes_of[1]


def test_folding_the_value_changes_nothing(tiny_checkpoint: TinyCheckpoint):
    model = model_of(tiny_checkpoint("bert"))
    ctx = context_of(model)
    found = statistics.statistics(model, ctx)
    quantize_linears(model, found, QuantizeStatic(smooth=0.6).scheme(ctx.target))
    before = outputs_of(model, padded(model))
    assert len(fold_value_smoothing(model)) == 2
    assert np.abs(outputs_of(model, padded(model)) - before).max() < 0.05
    assert cosine(outputs_of(model, padded(model)), before) > 0.9999
    kept = model_of(tiny_checkpoint("bert"))
    scheme = QuantizeStatic(smooth=0.6).scheme(ctx.target)
    quantize_linears(kept, found, scheme, ("encoder.layer.0.attention.self.value",))
    before = outputs_of(kept, padded(kept))
    fold_value_smoothing(kept)
    assert cosine(outputs_of(kept, padded(kept)), before) > 0.9999


def test_smoothing_saves_a_layer_with_an_outlier_channel():
    rng = np.random.default_rng(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.linear(x)}

    def batch() -> dict[str, np.ndarray]:
        x = rng.normal(size=(1, 16, 64)).astype(np.float32)
        x[..., 3] *= 100
        return {"x": x, "attention_mask": np.ones((1, 16), np.int64)}

    items = [batch() for _ in range(16)]
    errors = {}
    for smooth in (None, "search"):
        net = Net()
        from types import SimpleNamespace

        from fmopt.models.loading import TorchModel

        model = TorchModel(net, SimpleNamespace(), None)  # type: ignore[arg-type]
        found = statistics.collect(net, items)
        quantize_linears(model, found, QuantizeStatic(smooth=smooth).scheme(target()))  # type: ignore[arg-type]
        x = torch.from_numpy(items[0]["x"])
        mask = torch.ones(1, 16)
        errors[smooth] = float(((net(x, mask)["y"] - torch.nn.functional.linear(
            x, Net().linear.weight, Net().linear.bias)) ** 2).mean())  # fmt: skip
    assert errors["search"] < errors[None] / 5


def test_bits_follow_the_target(tiny_checkpoint: TinyCheckpoint):
    for isa, top in ((("avx2",), 63), (("avx512_vnni",), 127)):
        model = model_of(tiny_checkpoint("bert"))
        model = QuantizeStatic().apply(model, context_of(model, isa=isa))
        largest = max(int(m.weight.abs().max()) for m in model.net.modules() if isinstance(m, QuantizedLinear))
        assert largest == top


def test_layers_named_in_keep_float_stay_and_heads_always_do(tiny_checkpoint: TinyCheckpoint):
    model = model_of(tiny_checkpoint("bert", "text-classification"))
    model = QuantizeStatic(keep_float=("bert.encoder.layer.0",)).apply(model, context_of(model))
    quantized = [name for name, module in model.net.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(quantized) == 6
    assert all(name.startswith("bert.encoder.layer.1.") for name in quantized)
    assert isinstance(model.net.get_submodule("classifier"), torch.nn.Linear)
    model = model_of(tiny_checkpoint("bert"))
    with pytest.raises(PassError, match="no Linear of this model was left to quantize"):
        QuantizeStatic(keep_float=("encoder",)).apply(model, context_of(model))


def test_embeddings_become_int8_rows(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    before = outputs_of(model, padded(model))
    model = QuantizeStatic(embeddings=True).apply(model, context_of(model))
    assert isinstance(model.net.get_submodule("embeddings.word_embeddings"), QuantizedEmbedding)
    assert cosine(outputs_of(model, padded(model)), before) > 0.99
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    tables = {v.name: v.data_type for v in onnx.load(graph.path).graph.initializer if "word_embeddings" in v.name}
    assert onnx.TensorProto.INT8 in tables.values()
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    items = items_of(model)
    assert exporters_parity.check_parity(runner, model.net, items, 2e-3, outputs=graph.outputs, min_cosine=0.999).passed


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_stay_within_their_bits_and_close(bits: int):
    torch.manual_seed(0)
    weight = torch.randn(16, 64)
    integers, scales = weight_integers(weight, bits)
    top = 2 ** (bits - 1) - 1
    assert int(integers.abs().max()) == top
    assert integers.dtype == torch.int8
    error = ((integers * scales[:, None] - weight) ** 2).mean().sqrt()
    assert error < weight.abs().amax(1).mean() / top / 3


def test_each_row_has_the_range_with_the_least_error_of_all_that_are_tried():
    """By numpy, in double precision, row by row: what is done in pieces is what is done at once."""
    torch.manual_seed(0)
    weight, importance = torch.randn(96, 768), torch.rand(768)
    assert weight.numel() > 2 * modules.CACHED_NUMBERS
    integers, scales = weight_integers(weight, 7, importance)
    rows, weighed = weight.numpy().astype(np.float64), importance.numpy().astype(np.float64)
    for row, scale, whole in zip(rows, scales.tolist(), integers.numpy(), strict=True):
        tried = {share * np.abs(row).max() / 63 for share in np.linspace(1.0, 0.7, 16)}
        losses = {one: float((np.clip(np.rint(row / one), -63, 63) * one - row) ** 2 @ weighed) for one in tried}
        assert float((whole * scale - row) ** 2 @ weighed) <= min(losses.values()) * (1 + 1e-5)
        assert min(abs(scale - one) for one in tried) < 1e-6
    plain = weight_integers(weight, 7, importance, clip=False)[1]
    assert torch.allclose(plain, weight.abs().amax(1) / 63)


def test_a_sample_of_output_channels_finds_the_alpha_that_all_would(monkeypatch: pytest.MonkeyPatch):
    """Of activations with outliers in some channels, whose smoothing is worth it, and of even ones, whose is not."""
    torch.manual_seed(0)
    linears = [torch.nn.Linear(64, 700), torch.nn.Linear(64, 500)]
    chosen = []
    for outliers in (80.0, 1.0):
        rows = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
        rows[:, ::9] *= outliers
        low, high = rows.min(0), rows.max(0)
        observer = Observer(
            ("a", "b"), low, high, float(low.min()), float(high.max()), Histogram.of(rows), rows, 256
        )  # fmt: skip
        scheme = linears_module.Scheme("minmax", "search", True, 7)
        sampled = linears_module._plan(observer, linears, scheme).smoothing
        with monkeypatch.context() as patch:
            patch.setattr(linears_module, "SEARCHED_CHANNELS", 10_000)
            whole = linears_module._plan(observer, linears, scheme).smoothing
        assert (sampled is None) == (whole is None)
        assert sampled is None or torch.equal(sampled, whole)
        chosen.append(sampled is not None)
    assert chosen == [True, False]


def test_grids_hold_zero_exactly():
    for low, high, unsigned in ((-0.17, 24.7, True), (-3.0, 1.0, False), (0.0, 1.0, True)):
        grid = Grid.over(low, high, unsigned=unsigned)
        x = torch.tensor([0.0, low, high])
        back = grid.round_trip(x)
        assert back[0] == 0
        assert torch.abs(back - x).max() <= grid.scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrator": "magic"}, "it is one of minmax, moving_average, percentile, entropy, mse"),
        ({"smooth": 1.5}, "an alpha lies in (0, 1)"),
        ({"smooth": "maybe"}, "a number in (0, 1) or 'search'"),
        ({"activations": "int4"}, "it is 'uint8' or 'int8'"),
        ({"weight_bits": 4}, "it is 7 or 8"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantizeStatic(**options)


def test_a_target_without_int8_is_refused(tiny_checkpoint: TinyCheckpoint):
    metadata = model_of(tiny_checkpoint("bert")).metadata
    assert QuantizeStatic().refusal(metadata, target()) is None
    assert QuantizeStatic().refusal(metadata, target(precisions=("fp32",))) == "target test does not compute in int8"
