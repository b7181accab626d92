"""From a network in PyTorch to an ExecuTorch program (.pte) with XNNPACK's kernels, by transformers' exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata, Graph, Inputs, axes_of
from fmopt.exporters.to_onnx import plain_attention, quiet, traceable_inputs
from fmopt.models.loading import TorchModel

ROWS = 8  # of a batch at most; memory for the largest batch is planned in the program
FILE = "model.pte"


def refusal(metadata: CheckpointMetadata) -> str | None:
    """Why a checkpoint cannot become a program; None when it can."""
    if {"eos_token_id", "speech"} & set(metadata.pipeline):
        return f"programs are made of networks that answer at once, and {metadata.task} is done in steps; use --format onnx"
    named = {axis for axes in axes_of(metadata.pipeline).values() for axis in axes if isinstance(axis, str)}
    others = sorted(named - {"batch", "tokens"})
    return (
        f"how long its {others[0]} may be is not known, and a program needs a limit; use --format onnx"
        if others
        else None
    )


def export_executorch(model: TorchModel, example: Inputs, out: Path, *, int8: bool) -> Graph:
    """Write `model` as a program into the folder `out`: batches of up to 8, and texts up to the pipeline's max_length.

    With `int8`, weights of every Linear are 8 bits per output channel, and activations are rounded as they come, per batch;
    embeddings stay fp32. PassError when the network gives something else than named tensors.
    """
    import torch
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    pipeline, axes = model.metadata.pipeline, axes_of(model.metadata.pipeline)
    inputs = traceable_inputs(model, example)
    with torch.inference_mode():
        given = model.net(**inputs)
    names = [name for name, value in given.items() if value is not None]
    if not all(isinstance(given[name], torch.Tensor) for name in names):
        raise PassError(
            f"{model.metadata.model_type} gives more than tensors ({', '.join(names)}), which a program cannot"
        )
    largest = {"batch": ROWS, "tokens": int(pipeline.get("max_length", 0))}
    dims: dict[str, Any] = {axis: torch.export.Dim(axis, min=1, max=most) for axis, most in largest.items() if most}
    shapes = {name: {n: dims[axis] for n, axis in enumerate(axes[name]) if isinstance(axis, str)} for name in inputs}
    with quiet(), plain_attention(model.net):
        config = ExecutorchConfig(
            backend="xnnpack", dynamic_shapes=shapes, quantizer=_of_linears(inputs) if int8 else None
        )
        net: Any = model.net
        program = ExecutorchExporter().export(net, inputs, config=config).program
    out.mkdir(parents=True, exist_ok=True)
    with (out / FILE).open("wb") as file:
        program.write_to_file(file)
    return Graph("executorch", out / FILE, tuple(inputs), tuple(names), model.history)


def _of_linears(example: dict[str, Any]) -> Any:
    """The exporter's quantizer of Linears, for activations that are rounded as they come."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from transformers.exporters import PT2EQuantizer

    class OfLinears(XNNPACKQuantizer):  # type: ignore[misc]
        def transform_for_annotation(self, model: Any) -> Any:
            """Nothing: the usual one turns numbers in the graph into floats, for additions that are left alone here, and
            those of a mask are indices."""
            return model

    kind = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return PT2EQuantizer(OfLinears().set_module_type(torch.nn.Linear, kind), calibration_dataset=[example])
