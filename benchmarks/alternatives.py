"""Our pruning beside the simple ways, at the same latency and with the same training.

    .venv/bin/python benchmarks/alternatives.py out/finetuned/banking77 ../shared/data/banking77 [--layers 3] [--epochs 2]

The latency is that of the checkpoint with every other layer left (--layers of them), in INT8 on OpenVINO, batch 1, 128
tokens, 1 thread. To the same latency: ours (second order, chosen by the latency table), ours with Fisher scores, one width
for all layers, one threshold of magnitude for all units; and a fresh student of as many layers. Each is distilled from the
checkpoint with the same settings, then judged on the test split in full precision. Writes results/alternatives-NAME-L.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fmopt.core import progress
from fmopt.core.recipe import Recipe, Step
from fmopt.core.workload import Workload
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.families.base import Kind
from fmopt.models.loading import TorchModel
from fmopt.models.structure import save_checkpoint
from fmopt.models.surgery.pruned_modules import drop_layers, prune_layer, require_cuttable
from fmopt.passes.distill import Distill
from fmopt.passes.prune_structured import PruneStructured
from fmopt.passes.pruning.latency_table import LatencyTable, latency_table
from fmopt.workflow import evaluate
from fmopt.workflow.job import request as workflow_request
from fmopt.workflow.job.prepare import prepare
from fmopt.workflow.job.start import start
from fmopt.workflow.search.network_timer import RecipeTimer

RESULTS = Path(__file__).resolve().parent / "results"
KINDS: tuple[Kind, Kind] = ("attention", "ffn")
DEPLOYED = Recipe(
    name="pruned", runtime="openvino", precision="int8", options={"precision": "bf16", "shape": [1, 128]},
    steps=(Step(use="prune_structured", options={"speedup": 2.0}), Step(use="quantize_nncf")),
)  # fmt: skip


def every_other(model: TorchModel, count: int) -> TorchModel:
    """`count` layers, as far apart as can be, the first and the last among them."""
    layers = len(require_cuttable(model).layers(model.net))
    kept = {round(i * (layers - 1) / (count - 1)) for i in range(count)}
    drop_layers(model, sorted(set(range(layers)) - kept))
    return model


def fresh(model: TorchModel, count: int) -> TorchModel:
    """A student of random weights with so many layers."""
    config = copy.deepcopy(model.net.config)
    config.num_hidden_layers = count
    torch.manual_seed(0)
    return replace(model, net=type(model.net)(config).eval())


def magnitudes(model: TorchModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For every layer the root mean square of the weights that each head and each neuron feeds."""
    found = []
    for layer in require_cuttable(model).layers(model.net):
        output, narrow = (
            model.net.get_submodule(name).weight.detach() for name in (layer.attention.output, layer.ffn.narrow)
        )
        heads = output.T.reshape(layer.attention.heads, -1).square().mean(1).sqrt()
        found.append((heads, narrow.square().mean(0).sqrt()))
    return found


def prune_to(model: TorchModel, widths: Sequence[tuple[int, int]]) -> TorchModel:
    """The units of the largest magnitude stay, so many heads and neurons in every layer."""
    for layer, (heads, neurons), (h, f) in zip(
        require_cuttable(model).layers(model.net), widths, magnitudes(model), strict=True
    ):
        prune_layer(model.net, layer, sorted(h.topk(heads).indices.tolist()), sorted(f.topk(neurons).indices.tolist()))
    return model


def largest(fits: Callable[[float], bool]) -> float:
    """By bisection, the largest share of 0 to 1 that fits."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def predicted(table: LatencyTable, widths: Sequence[tuple[int, int]]) -> float:
    """Milliseconds of a network with so many heads and neurons in its layers."""
    return table.base_ms + sum(
        table.curve(kind).at(count) for layer in widths for kind, count in zip(KINDS, layer, strict=True)
    )


def uniform(model: TorchModel, table: LatencyTable, ms: float) -> TorchModel:
    """The same width in every layer."""
    layers = len(require_cuttable(model).layers(model.net))
    most = [table.curve(kind).widths[-1] for kind in KINDS]

    def widths(share: float) -> list[tuple[int, int]]:
        return [(round(share * most[0]), round(share * most[1] / 16) * 16)] * layers

    return prune_to(model, widths(largest(lambda share: predicted(table, widths(share)) <= ms)))


def by_magnitude(model: TorchModel, table: LatencyTable, ms: float) -> TorchModel:
    """One threshold for the heads, and one for the neurons, of all layers."""
    found = magnitudes(model)
    heads, neurons = (torch.cat([pair[kind] for pair in found]).sort().values for kind in (0, 1))

    def widths(share: float) -> list[tuple[int, int]]:
        above = [units[min(int((1 - share) * len(units)), len(units) - 1)] for units in (heads, neurons)]
        return [(int((h >= above[0]).sum()), -(-int((f >= above[1]).sum()) // 16) * 16) for h, f in found]

    return prune_to(model, widths(largest(lambda share: predicted(table, widths(share)) <= ms)))


def main() -> None:
    """Build, time in turn, distil and judge every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2.0)
    asked = parser.parse_args()
    name = Path(asked.checkpoint).name
    out = Path("out") / f"alternatives-{name}-{asked.layers}"
    request = workflow_request.Request(
        model=asked.checkpoint, data=asked.data, effort="max", workload=Workload(length=128), out=out
    )
    run = start(prepare(request), progress.Silent())
    clock = RecipeTimer(run.builder, DEPLOYED)
    ctx = replace(run.builder.pass_context(), timer=clock, progress=lambda text: print(f"  {text}", flush=True))
    load = partial(checkpoint.load, run.job.metadata)
    whole = load()
    table = latency_table(whole, require_cuttable(whole), clock, ctx.target.width_multiple, ctx.scratch)
    ms = clock({"layers": lambda: every_other(load(), asked.layers), "whole": load})
    goal = ms["layers"] * table.whole_ms / ms["whole"]
    makes: dict[str, Callable[[], TorchModel]] = {
        "ours": lambda: PruneStructured(latency_ms=goal).apply(load(), ctx),
        "ours, Fisher scores": lambda: PruneStructured(latency_ms=goal, score="fisher").apply(load(), ctx),
        "uniform width": lambda: uniform(load(), table, goal),
        "magnitude": lambda: by_magnitude(load(), table, goal),
        "every other layer": lambda: every_other(load(), asked.layers),
        "fresh student": lambda: fresh(load(), asked.layers),
    }
    print(f"{goal:.2f} ms of {table.whole_ms:.2f}", flush=True)
    nets = {label: make() for label, make in makes.items()}
    times = clock({"whole": load, **{label: lambda net=net: copy.deepcopy(net) for label, net in nets.items()}})
    result: dict[str, Any] = {
        "checkpoint": name, "layers": asked.layers, "epochs": asked.epochs, "goal_ms": goal, "seed": 0,
        "rows": {"whole": {"ms": times["whole"], "distilled": judged(Path(asked.checkpoint), asked.data)}},
        "host": host_probe.host_fingerprint(), "versions": host_probe.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/alternatives.py {name} --layers {asked.layers} --epochs {asked.epochs:g}",
    }  # fmt: skip
    for label, net in nets.items():
        began = time.monotonic()
        folder = out / label.replace(", ", "-").replace(" ", "-")
        before = judged(save_checkpoint(net, folder / "before"), asked.data)
        made = Distill(epochs=asked.epochs).apply(net, ctx)
        after = judged(save_checkpoint(made, folder / "after"), asked.data)
        minutes = round((time.monotonic() - began) / 60, 1)
        result["rows"][label] = {"ms": times[label], "cut": before, "distilled": after, "minutes": minutes}
        print(f"{label}: {times[label]:.2f} ms, {before:.4f} cut, {after:.4f} distilled, {minutes} min", flush=True)
        (RESULTS / f"alternatives-{name}-{asked.layers}.json").write_text(json.dumps(result, indent=1))


def judged(folder: Path, data: str) -> float:
    """The primary metric on the test split, in full precision."""
    return next(one.point for one in evaluate.evaluate(folder, data, batch=16).values() if one.primary)


if __name__ == "__main__":
    main()
