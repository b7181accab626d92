"""Weights that another tool rounded: its integers are those of the graph, and no layer is left out in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fmopt.core import plugins
from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import Inputs
from fmopt.edge.runners import open_runner
from fmopt.exporters import to_onnx
from fmopt.exporters.onnx_graph import array_of, read_onnx, weights
from fmopt.models.loading import TorchModel
from fmopt.models.surgery.projections import weight_of
from fmopt.passes.autoround import AutoRound
from fmopt.passes.gptq import Gptq
from fmopt.passes.quantization import rounding_process
from fmopt.passes.quantization.rounded_linears import Rounded, layer_linears, put_rounded
from fmopt.passes.quantize_weights import QuantizeWeights
from tests.conftest import write_checkpoint
from tests.torch_models import context_of, model_of, outputs_of, padded

BLOCK = 32


def random_rounding(model: TorchModel, bits: int, *, symmetric: bool) -> dict[str, Rounded]:
    """Any integers, scales of both signs and, where asked for, any zero points, for all Linears of the layers."""
    seeded = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2**bits, shape, generator=seeded, dtype=torch.uint8)

    made = {}
    for name, module in layer_linears(model.net).items():
        out, width = weight_of(module).shape
        scales = (torch.rand(out, width // BLOCK, generator=seeded) - 0.5) * 1.6 / 2**bits
        zeros = None if symmetric else integers(out, width // BLOCK)
        made[name] = Rounded(integers(out, width), scales, zeros, bits)
    return made


def products(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(integers [out, in], scales, zero points) of the products in a graph by module, read as the operator is defined."""
    model = read_onnx(path)
    known, found = weights(model), {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            given = {one.name: one.i for one in node.attribute}
            packed, scales, *zeros = (array_of(known[name], path.parent) for name in node.input[1:])
            numbers = unpacked(packed.reshape(given["N"], -1), given["bits"])[:, : given["K"]]
            points = unpacked(zeros[0].reshape(given["N"], -1), given["bits"]) if zeros else None
            found[node.name.rpartition("/")[0]] = (numbers, scales.reshape(given["N"], -1), points)
    return found


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    together = [(packed >> place) & ((1 << bits) - 1) for place in range(0, 8, bits)]
    return np.stack(together, axis=-1).reshape(len(packed), -1)


def logits(runtime: str, path: Path, inputs: Inputs) -> np.ndarray:
    options = {"precision": "f32"} if runtime == "openvino" else {}
    return np.asarray(open_runner(runtime, path, options, 1).run(inputs)["logits"])


@pytest.mark.parametrize(("family", "bits", "symmetric"), [
    ("llama", 4, True), ("llama", 3, True), ("gpt2", 4, False), ("qwen2", 2, False), ("llama", 2, True), ("llama", 8, True),
])  # fmt: skip
def test_the_graph_has_the_integers_and_computes_what_the_rounded_network_computes(
    tiny_checkpoint: Any, tmp_path: Path, family: str, bits: int, symmetric: bool
) -> None:
    model = model_of(tiny_checkpoint(family, "text-generation"))
    rounded, inputs = random_rounding(model, bits, symmetric=symmetric), padded(model)
    put_rounded("a tool", model.net, rounded)
    graph = to_onnx.export_onnx(model, inputs, tmp_path)
    found = products(graph.path)
    assert set(found) == set(rounded)
    for name, (integers, scales, zeros) in found.items():
        middle = 2 ** (bits - 1) if zeros is None else 0
        stored = {3: 8}.get(bits, middle) if zeros is None else 0
        assert np.array_equal(integers.astype(int) - stored, rounded[name].integers.numpy().astype(int) - middle)
        assert np.array_equal(scales, rounded[name].scales.numpy())
        if not symmetric:
            asked: Any = rounded[name].zeros
            assert zeros is not None
            assert np.array_equal(zeros[:, : asked.shape[1]], asked.numpy())
    mask, wanted = np.asarray(inputs["attention_mask"], dtype=bool), outputs_of(model, inputs)
    for runtime in ("onnxruntime", "openvino"):
        assert np.abs(logits(runtime, graph.path, inputs) - wanted)[mask].max() < 1e-4


def test_narrowing_the_head_leaves_integers_alone_and_computes_in_integers(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    model = model_of(tiny_checkpoint("llama", "text-generation"))
    put_rounded("a tool", model.net, random_rounding(model, 4, symmetric=True))
    graph = to_onnx.export_onnx(model, padded(model), tmp_path / "rounded")
    made = QuantizeWeights(bits=4, method="mse").apply(graph, context_of(model), tmp_path / "narrow")
    before, after = products(graph.path), products(made.path)
    assert set(after) - set(before) == {"lm_head"}
    assert all(np.array_equal(after[name][0], integers) for name, (integers, *_) in before.items())
    nodes = [node for node in onnx.load(made.path).graph.node if node.op_type == "MatMulNBits"]
    assert all({one.name: one.i for one in node.attribute}["accuracy_level"] == 4 for node in nodes)


def test_a_layer_that_was_left_out_is_told(tiny_checkpoint: Any) -> None:
    model = model_of(tiny_checkpoint("gpt2", "text-generation"))
    some = dict(list(random_rounding(model, 4, symmetric=True).items())[2:])
    with pytest.raises(PassError, match=r"^gptq left 2 of 8 layers as they were \(transformer\.h\.0\.attn\.c_attn, "):
        put_rounded("gptq", model.net, some)


def test_a_block_that_does_not_divide_a_row_is_refused_before_work(tiny_checkpoint: Any) -> None:
    model = model_of(tiny_checkpoint("llama", "text-generation"))
    with pytest.raises(PassError, match=r"rows of .*q_proj.* are no whole number of blocks of 64 weights"):
        AutoRound(block=64).apply(model, context_of(model))


def test_rows_are_filled_with_items_one_after_the_other(tiny_checkpoint: Any) -> None:
    ctx = context_of(model_of(tiny_checkpoint("llama", "text-generation")))
    ids = np.concatenate([item["input_ids"].ravel() for item in ctx.calibration()])
    rows = rounding_process.calibration_rows("autoround", ctx, 2, 5)
    assert np.array_equal(rows, ids[:10].reshape(2, 5))
    assert rounding_process.calibration_rows("autoround", ctx, 2, 10_000).shape == (1, len(ids))
    with pytest.raises(PassError, match="autoround has no calibration items"):
        rounding_process.calibration_rows("autoround", replace(ctx, calibration=lambda: iter(())), 2, 5)


@pytest.mark.parametrize(("log", "step"), [
    ("loading", None), ("Quantizing model.layers.1:  50%|#####     | 1/2 [00:07<00:07]", (1, 2)),
    ("Quantizing layer 1 / 30..\nQuantizing layer 2 / 30..", (2, 30)),
])  # fmt: skip
def test_how_far_a_tool_is_stands_in_its_log(tmp_path: Path, log: str, step: tuple[int, int] | None) -> None:
    (tmp_path / "log").write_text(log)
    assert rounding_process.how_far(tmp_path / "log") == step


def test_a_tool_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(PassError, match=r"^the process that rounds weights failed: KeyError: 'threads'$"):
        rounding_process.run_tool(tmp_path, lambda text: None)


@pytest.mark.long
@pytest.mark.parametrize(("family", "use", "options"), [
    ("gpt2", "autoround", {"iterations": 2, "symmetric": True}), ("gpt2", "gptq", {"symmetric": True}),
])  # fmt: skip
def test_a_tool_rounds_every_layer_and_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    family: str,
    use: str,
    options: Any,
) -> None:
    model = model_of(write_checkpoint(tmp_path / "network", family, "text-generation"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before, inputs, said = (
        {name: weight_of(one).clone() for name, one in layer_linears(model.net).items()},
        padded(model),
        [],
    )
    plain = outputs_of(model, inputs)
    step = plugins.find("passes", use)(samples=4, tokens=16, **options)
    capfd.readouterr()  # of writing the checkpoint
    made = step.apply(model, replace(context_of(model), progress=said.append))
    assert made.history == (f"{use}(4 bit, 32)",)
    assert said[0] == f"{use}: rounding to 4 bits on 4 rows of 16 tokens"
    for (
        name,
        weight,
    ) in before.items():  # GPTQ moves single weights by steps, to make up for others; not a row's direction
        module: Any = made.net.get_submodule(name)
        assert torch.cosine_similarity(module.weight, weight).min() > 0.95, name
    rounded = outputs_of(made, inputs)
    assert float((plain * rounded).sum() / np.linalg.norm(plain) / np.linalg.norm(rounded)) > 0.95
    assert list((tmp_path / "here").iterdir()) == []
    assert "".join(capfd.readouterr()) == ""


def test_what_makes_no_sense_is_refused(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"autoround\.bits is 5; it is one of 2, 3, 4, 8"):
        AutoRound(bits=5)
    with pytest.raises(ConfigError, match=r"gptq\.samples is 0; it takes at least one"):
        Gptq(samples=0)
    encoder = model_of(tiny_checkpoint("bert", "text-classification"))
    assert "text-classification does not" in str(AutoRound().refusal(encoder.metadata, context_of(encoder).target))
    decoder = model_of(tiny_checkpoint("llama", "text-generation"))
    monkeypatch.setattr(rounding_process, "find_spec", lambda name: None)
    reasons = [step.refusal(decoder.metadata, context_of(decoder).target) for step in (AutoRound(), Gptq())]
    assert reasons == [
        "autoround is not installed: pip install 'fmopt[autoround]'",
        "neural-compressor is not installed: pip install 'fmopt[neural-compressor]'",
    ]
