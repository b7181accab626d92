"""Tiny checkpoints as ONNX files that somebody arrives with, in the layouts of optimum and transformers.js; also quantized."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from fmopt.core.model import Inputs
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.onnx_graph import quiet_quantizer
from fmopt.exporters.to_onnx import quiet
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.conftest import SENTENCES
from tests.torch_models import model_of

BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class _Outputs(torch.nn.Module):
    """A network that takes its inputs by place and gives the named outputs, as exporters of graphs want them."""

    def __init__(self, net: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.net, self.inputs, self.outputs = net, inputs, outputs

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = self.net(**dict(zip(self.inputs, given, strict=True)))
        if self.outputs == ("sentence_embedding",):  # the mean over what is no padding, of length 1
            hidden, mask = made.last_hidden_state, given[list(self.inputs).index("attention_mask")][:, :, None].float()
            return (torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1),)
        return tuple(made[name] for name in self.outputs)


def by_torchscript(
    folder: Path, path: Path, task: str | None = None, *, opset: int = 14, outputs: Sequence[str] = (), fixed: bool = False,
    names: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """A checkpoint traced by torch's older exporter, as optimum's files were for years: LayerNormalization in parts below opset
    17, constants as nodes. `names` renames ports, `fixed` leaves their axes as they were traced."""
    model = model_of(folder, task)
    model.net.set_attn_implementation("eager")
    inputs = list(model.metadata.pipeline["inputs"])
    kept = tuple(outputs or model.metadata.pipeline["outputs"])
    named = names or {}
    example = _example(model)
    axes = (
        {} if fixed else {named.get(name, name): {0: "batch_size", 1: "sequence_length"} for name in (*inputs, *kept)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        torch.onnx.export(
            _Outputs(model.net, inputs, kept).eval(),
            tuple(torch.from_numpy(example[name]) for name in inputs),
            str(path),
            input_names=[named.get(name, name) for name in inputs],
            output_names=[named.get(name, name) for name in kept],
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    return path


def _example(model: Any) -> Inputs:
    """Texts, or pairs where the task wants them, of different lengths."""
    pairs = model.metadata.task == "question-answering"
    samples: list[Any] = list(pairwise(SENTENCES[:3])) if pairs else list(SENTENCES[:3])
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    return dict(preprocessor.encode(samples).inputs)


def arrived(folder: Path, out: Path, task: str | None = None, *, layout: str = "optimum", **options: Any) -> Path:
    """A checkpoint as a folder with ONNX only: model.onnx beside config.json, or transformers.js' onnx/model.onnx."""
    by_torchscript(folder, out / ("onnx/model.onnx" if layout == "transformers.js" else "model.onnx"), task, **options)
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copy(folder / name, out / name)
    return out


def quantized(path: Path, out: Path, folder: Path, task: str | None = None) -> Path:
    """A graph with Q/DQ pairs around its products by ONNX Runtime's own tool, calibrated on a few sentences."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    metadata = checkpoint.inspect(resolve(str(folder)), task)
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    names = {value.name for value in onnx.load(str(path)).graph.input}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.items: Iterator[Any] = (dict(preprocessor.encode([sentence]).inputs) for sentence in SENTENCES)

        def get_next(self) -> Any:
            item = next(self.items, None)
            return None if item is None else {name: array for name, array in item.items() if name in names}

    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet_quantizer():
        quantize_static(
            str(path), str(out), Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    return out


def answers(path: Path, tokenizer: Path, text: Any, outputs: Sequence[str]) -> list[np.ndarray]:
    """What plain onnxruntime gives for a text that plain tokenizers encoded: outputs [1, …] by name."""
    import onnxruntime
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pair = text if isinstance(text, tuple) else (text,)
    made = Tokenizer.from_file(str(tokenizer)).encode(*pair)
    feed = {"input_ids": made.ids, "attention_mask": made.attention_mask, "token_type_ids": made.type_ids}
    wanted = [port.name for port in session.get_inputs()]
    return list(session.run(list(outputs), {name: np.array([feed[name]], dtype=np.int64) for name in wanted}))


def renamed_labels(folder: Path) -> None:
    """Take the names of labels out of a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
