"""Is an exported graph the torch model? Compared on real items; where not, the first layer that diverges is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import ParityError
from fmopt.core.model import Graph, Inputs, Runner, makes_answers, token_mask
from fmopt.core.results import Parity
from fmopt.edge.runners import CACHE_PREFIX, with_empty_cache
from fmopt.models.loading import TorchModel
from fmopt.models.wrappers import seq2seq


def layer_of(node_name: str) -> str:
    """The torch module a node came from: "encoder.layer.0.output.dense" of "encoder.layer.0.output.dense/MatMul"."""
    return node_name.rpartition("/")[0]


def check_parity(
    runner: Runner,
    net: Any,
    batches: Iterable[Inputs],
    tolerance: float,
    *,
    outputs: Sequence[str],
    min_cosine: float | None = None,
    any_order: bool = False,
) -> Parity:
    """Compare an opened graph with the torch network `net` on real batches, at the positions that are not padding, where
    the batch says which.

    Passed when no output is further off than `tolerance`, an absolute difference for outputs around one and a share of larger
    ones (of house prices single precision keeps two digits after the point, no more); `cosine` is the smallest of all.
    A Q/DQ graph rounds: a difference of 1e-7 moves a value that lies between two integers, and the next layers carry a
    whole step on. There `min_cosine` says how alike is alike enough, whatever the largest difference.

    With `any_order`, rows of an item's outputs are a set: RT-DETR ranks its queries by scores, and those that are as good
    as equal may change places.
    """
    gaps, sizes, cosine = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 1.0), 1.0
    for batch in batches:
        expected = torch_outputs(net, batch, outputs)
        got = runner.run(batch)
        mask = token_mask(batch)
        if any_order:
            got = _in_order(got, expected, outputs)
        for name in outputs:
            for index in range(len(expected[name])):
                own = None if mask is None else mask[index]
                ours, theirs = _attended(got[name][index], own), _attended(expected[name][index], own)
                gaps[name] = max(gaps[name], _distance(ours, theirs))
                sizes[name] = max(sizes[name], _size(theirs))
                cosine = min(cosine, _cosine(ours, theirs))
    worst = max(outputs, key=lambda name: gaps[name] / sizes[name])
    alike = min_cosine is not None and np.isfinite(gaps[worst]) and cosine >= min_cosine
    passed = bool(gaps[worst] <= tolerance * sizes[worst] or alike)
    return Parity(max_abs=gaps[worst], cosine=cosine, tolerance=tolerance, size=sizes[worst], passed=passed)


def _size(values: np.ndarray) -> float:
    """How large values are: their median, which a few huge ones do not move."""
    finite = np.abs(values[np.isfinite(values)])
    return float(np.median(finite)) if finite.size else 1.0


def _in_order(got: Mapping[str, Any], wanted: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Outputs [batch, rows, …] with the rows of each item in the order that is nearest to the wanted ones."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    ours, theirs = (np.concatenate([np.asarray(side[name]) for name in outputs], axis=-1) for side in (got, wanted))
    places = [linear_sum_assignment(cdist(theirs[i], np.nan_to_num(ours[i]), "cityblock"))[1] for i in range(len(ours))]
    return {name: np.stack([np.asarray(got[name])[i][at] for i, at in enumerate(places)]) for name in outputs}


def require_parity(parity: Parity, graph: Graph, model: TorchModel, inputs: Inputs) -> Parity:
    """`parity` itself when it passed; else a ParityError that names the first layer that diverges."""
    if parity.passed:
        return parity
    where = ""
    if graph.format == "onnx":
        where = f"; the first layer that diverges is {first_divergence(graph, model, inputs, parity.tolerance)}"
    raise ParityError(
        f"{graph.path.name} differs from the torch model by {parity.max_abs:.3g} (allowed {parity.tolerance * parity.size:g}), "
        f"with a cosine of {parity.cosine:.4g}{where}"
    )


def first_divergence(graph: Graph, model: TorchModel, inputs: Inputs, tolerance: float) -> str:
    """Name of the first layer whose output in an ONNX `graph` is further than `tolerance` from the torch network's.

    "embeddings" for what the first layer reads; "the head" when all layers agree; a layer used several times (ALBERT)
    carries the number of its call.
    """
    import onnx
    import onnxruntime

    if model.family is None:
        return "unknown (this architecture has no known layers)"
    layers = [layer.name for layer in model.family.layers(model.net)]
    expected = _layer_outputs(model.net, layers, inputs)
    proto = onnx.load(graph.path)
    ends = _layer_ends(proto, layers)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ends)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Unfused, so that every value asked for exists.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ports = {value.name: value.shape for value in session.get_inputs()}
    if makes_answers(model.metadata.pipeline):
        inputs = seq2seq.for_both_halves(model.net, inputs)
    given = with_empty_cache({name: shape for name, shape in ports.items() if name.startswith(CACHE_PREFIX)}, inputs)
    values = dict(zip(ends, session.run(list(ends), {n: v for n, v in given.items() if n in ports}), strict=True))
    every = token_mask(inputs)
    mask = None if every is None else every[0]
    for label, layer, wanted in expected:
        candidates = [value for name, value in values.items() if _belongs(ends[name], layer, value, wanted)]
        gaps = [_distance(_attended(value[0], mask), _attended(wanted[0], mask)) for value in candidates]
        if min(gaps, default=float("inf")) > tolerance * max(1.0, _size(_attended(wanted[0], mask))):
            return label
    return "the head"


def torch_outputs(net: Any, inputs: Inputs, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Outputs of the torch network by name, as float32 arrays."""
    import torch

    known = _accepted(net, inputs)
    with torch.inference_mode():
        result = net(**{name: torch.from_numpy(np.asarray(inputs[name])) for name in known})
    return {name: result[name].float().numpy() for name in outputs}


def _accepted(net: Any, inputs: Mapping[str, Any]) -> list[str]:
    """The inputs that the network's forward names."""
    import inspect

    known = inspect.signature(net.forward).parameters
    return [name for name in inputs if name in known]


def _layer_outputs(net: Any, layers: Sequence[str], inputs: Inputs) -> list[tuple[str, str, np.ndarray]]:
    """(label, layer, output [batch, tokens, hidden]) of every call of a layer in order, the embeddings first."""
    import torch

    seen: list[tuple[str, str, np.ndarray]] = []
    calls: dict[str, int] = {}

    def before(module: Any, args: Any, kwargs: Any) -> None:
        if not seen:
            first = args[0] if args else kwargs["hidden_states"]
            seen.append(("embeddings", "", first.detach().float().numpy()))

    def after(name: str) -> Any:
        def hook(module: Any, args: Any, result: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            value = result[0] if isinstance(result, tuple) else result
            label = name if calls[name] == 1 else f"{name} (call {calls[name]})"
            seen.append((label, name, value.detach().float().numpy()))

        return hook

    handles = [net.get_submodule(layers[0]).register_forward_pre_hook(before, with_kwargs=True)]
    handles += [net.get_submodule(name).register_forward_hook(after(name)) for name in layers]
    try:
        with torch.inference_mode():
            net(**{name: torch.from_numpy(np.asarray(inputs[name])) for name in _accepted(net, inputs)})
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _layer_ends(proto: Any, layers: Sequence[str]) -> dict[str, str]:
    """Float values that leave a layer or enter the first one: name of the value -> the layer it leaves, "" for none."""
    owner: dict[str, str] = {}
    for node in proto.graph.node:
        scope = layer_of(node.name)
        home = next((layer for layer in layers if scope == layer or scope.startswith(layer + ".")), "")
        owner |= dict.fromkeys(node.output, home)
    already = {value.name for value in proto.graph.output}
    ends = {name: owner[name] for name in already}
    for node in proto.graph.node:
        home = owner[node.output[0]]
        for name in node.input:
            # ALBERT repeats one layer: what one call hands to the next stays inside, and is found by its operator.
            repeated = home and owner.get(name) == home and node.op_type in ("MatMul", "Add", "Mul", "QuantizeLinear")
            if name in owner and (owner[name] != home or repeated):
                ends[name] = owner[name]
    return ends


def _belongs(owner: str, layer: str, value: np.ndarray, wanted: np.ndarray) -> bool:
    return owner == layer and value.dtype.kind == "f" and value.shape == wanted.shape


def _attended(value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Without the rows of padding tokens, where there is a mask and the first axis is tokens."""
    value = np.asarray(value, dtype=np.float32)
    return value if mask is None or not value.ndim or value.shape[0] != len(mask) else value[mask]


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference; infinite when either holds a value that is no number."""
    gap = float(np.max(np.abs(ours - theirs), initial=0.0))
    return gap if np.isfinite(gap) else float("inf")


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(np.vdot(ours, theirs)) / norm if norm > 0 else float(not np.any(ours - theirs))
