"""Networks for speech synthesis (VITS), on the PyTorch side: their noise as an input, and their graph, joined of two that export.

VITS (Kim et al., 2021) draws random numbers inside its forward, and how many frames an utterance has is a result of its first
half: neither can be traced. So the network is taken apart where the one becomes the other:

    Timing  text -> how many frames each token lasts, and mean and log-variance of the acoustic features in them
    Voice   those, a number for each frame, and noise -> the waveform (length regulation, flow backwards, HiFi-GAN)

Each half is exported on its own. What lies between them, the numbers 0 … frames - 1, is a node of ONNX, so that one graph
does it all on every runtime. Noise comes from outside, drawn by a seed (see edge/speech.py): the torch network and the
graph say the same, sample by sample.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import expm1, log, prod
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.vits import modeling_vits as vits

OUTPUTS = ("waveform", "sequence_lengths", "durations")
BETWEEN = ("durations", "means", "log_variances")  # from the first half to the second
CHANNELS = {"duration_noise": 1, "noise": 1, "means": 2, "log_variances": 2}  # the axis of them, which never varies


class Timing(nn.Module):
    """The first half: what each token says, and for how many frames."""

    def __init__(self, net: Any):
        super().__init__()
        self.text_encoder, self.duration_predictor = net.text_encoder, net.duration_predictor
        self.length_scale = 1.0 / float(net.config.speaking_rate)

    def forward(self, input_ids: Any, attention_mask: Any, duration_noise: Any) -> dict[str, Any]:
        """Durations [rows, tokens] in whole frames; means and log-variances [rows, tokens, channels]."""
        mask = attention_mask.unsqueeze(-1).to(self.text_encoder.embed_tokens.weight.dtype)
        encoded = self.text_encoder(input_ids=input_ids, padding_mask=mask, attention_mask=attention_mask)
        hidden, mask = encoded.last_hidden_state.transpose(1, 2), mask.transpose(1, 2)
        if isinstance(self.duration_predictor, vits.VitsStochasticDurationPredictor):
            logs = drawn_durations(self.duration_predictor, hidden, mask, duration_noise)
        else:
            logs = self.duration_predictor(hidden, mask)
        # In 32 bits: sums of frames are beyond what 16 hold.
        durations = torch.ceil(torch.exp(logs.float()) * mask.float() * self.length_scale)
        statistics = (encoded.prior_means, encoded.prior_log_variances)
        return dict(zip(BETWEEN, (durations.squeeze(1), *statistics), strict=True))


def drawn_durations(predictor: Any, hidden: Any, mask: Any, noise: Any) -> Any:
    """Logarithms of durations [rows, 1, tokens]: VitsStochasticDurationPredictor backwards, from noise that is given."""
    inputs = predictor.conv_dds(predictor.conv_pre(hidden), mask)
    inputs = predictor.conv_proj(inputs) * mask
    flows = list(reversed(predictor.flows))
    for flow in (*flows[:-2], flows[-1]):  # the network leaves one out, too
        noise, _ = flow(torch.flip(noise, [1]), mask, global_conditioning=inputs, reverse=True)
    return noise[:, :1]


class Voice(nn.Module):
    """The second half: tokens for as many frames as they last, and their waveform."""

    def __init__(self, net: Any):
        super().__init__()
        self.flow, self.decoder = net.flow, net.decoder
        self.hop = prod(net.config.upsample_rates)

    def forward(self, durations: Any, means: Any, log_variances: Any, noise: Any, frames: Any) -> dict[str, Any]:
        """Waveform [rows, samples] and how many of them each row has, of `frames` (0, 1, … up to the longest row's).

        `noise` is [rows, channels, any number]; where there are more frames, it begins anew.
        """
        ends = torch.cumsum(durations, 1)
        lengths = torch.clamp_min(ends[:, -1], 1)
        within = (frames[None] < lengths[:, None]).unsqueeze(1).to(means.dtype)
        begun = frames[None, :, None] >= (ends - durations)[:, None]
        said = (begun & (frames[None, :, None] < ends[:, None])).to(means.dtype)  # [rows, frames, tokens]: which token
        mean, spread = (torch.matmul(said, one).transpose(1, 2) for one in (means, log_variances))
        drawn = noise[:, :, torch.remainder(frames, noise.shape[2]).long()]
        latents = self.flow(mean + drawn * torch.exp(spread), within, None, reverse=True)
        waveform = self.decoder(latents * within, None).squeeze(1)
        return {"waveform": waveform, "sequence_lengths": (lengths * self.hop).long()}


class SeededVits(vits.VitsModel):
    """VitsModel whose noise is an input, scaled already; what it says is otherwise the same."""

    def forward(  # type: ignore[override]
        self, input_ids: Any, attention_mask: Any, duration_noise: Any, noise: Any, return_dict: bool = True
    ) -> dict[str, Any]:
        """See `Timing` and `Voice`; `duration_noise` is [rows, 2, tokens]."""
        timing = Timing(self)(input_ids, attention_mask, duration_noise)
        frames = torch.arange(int(timing["durations"].sum(1).max().clamp_min(1)), dtype=torch.float32)
        return {**Voice(self)(*timing.values(), noise, frames), "durations": timing["durations"]}


def seeded(net: Any) -> Any:
    """The same network, called by its noise."""
    net.__class__ = SeededVits
    return net


# -------------------------------------------------------------------------------- one graph of two


def trace(net: Any, example: Mapping[str, Any], opset: int) -> ir.Model:
    """The graph of a `SeededVits` as an onnx_ir.Model, its ports named. `example`: tensors by the names of its inputs."""
    first = {name: example[name] for name in ("input_ids", "attention_mask", "duration_noise")}
    timing, voice = Timing(net).eval(), Voice(net).eval()
    voice.flow = plain_weights(net.flow)
    with traceable(), torch.no_grad():
        settings = timing(**first)
        frames = torch.arange(int(settings["durations"].sum(1).max()), dtype=torch.float32)
        second = {**settings, "noise": example["noise"], "frames": frames}
        parts = (_exported(timing, first, BETWEEN, opset), _exported(voice, second, OUTPUTS[:2], opset))
    return joined(*parts)


def _exported(half: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str], opset: int) -> ir.Model:
    """One half, every axis open but those of channels. It is no network of transformers, whose exporter wants one."""
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {
        name: {axis: dynamic for axis in range(value.ndim) if CHANNELS.get(name) != axis}
        for name, value in inputs.items()
    }
    program: Any = torch.onnx.export(
        half, (), kwargs=dict(inputs), dynamic_shapes=shapes, opset_version=opset, dynamo=True, verbose=False,
        input_names=list(inputs), output_names=list(outputs),
    )  # fmt: skip
    model: ir.Model = program.model
    return model


def joined(timing: ir.Model, voice: ir.Model) -> ir.Model:
    """One graph: what `timing` gives, `voice` takes; nodes between them count the frames. Both models are used up."""
    first, second = timing.graph, voice.graph
    given = {str(value.name): value for value in first.outputs}
    given["frames"] = _counted(first, given["durations"])
    wanted, outputs, nodes = list(second.inputs), list(second.outputs), list(second)
    weights = list(second.initializers.values())
    second.inputs.clear()
    second.outputs.clear()
    second.initializers.clear()
    second.remove(nodes)
    for value in weights:
        if value.name in first.initializers:  # constants are numbered in each
            value.name = f"voice_{value.name}"
        first.initializers.add(value)
    for value in wanted:
        if value.name in given:
            ir.convenience.replace_all_uses_with(value, given[str(value.name)])
        else:
            first.inputs.append(value)
    first.extend(nodes)
    first.outputs[:] = [*outputs, given["durations"]]
    return timing


def _counted(graph: ir.Graph, durations: ir.Value) -> ir.Value:
    """The numbers 0, 1, … of frames, as many as the longest row lasts, by nodes at the end of `graph`."""
    zero, one, axis = (ir.tensor(value, name=f"count_{name}") for name, value in
                       (("from", np.float32(0)), ("step", np.float32(1)), ("axis", np.array([1]))))  # fmt: skip
    constants = [ir.Value(name=tensor.name, const_value=tensor) for tensor in (zero, one, axis)]
    for value in constants:
        graph.initializers.add(value)
    start, step, tokens = constants
    rows = ir.node("ReduceSum", [durations, tokens], {"keepdims": 0})
    longest = ir.node("ReduceMax", rows.outputs, {"keepdims": 0})
    least = ir.node("Max", [*longest.outputs, step])
    numbers = ir.node("Range", [start, *least.outputs, step])
    graph.extend([rows, longest, least, numbers])
    return numbers.outputs[0]


def plain_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights are tensors, where they are computed of directions and lengths (weight norm)."""
    copied = copy.deepcopy(module)
    parts: list[Any] = list(copied.modules())
    for part in parts:
        if parametrize.is_parametrized(part, "weight"):
            weight = part.weight.detach().clone()
            # torch's own way back takes the weight off the class, which the original and its copy share.
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            part.weight = nn.Parameter(weight)
    return copied


@contextmanager
def traceable() -> Iterator[None]:
    """Trace without steps of which only values say how many there are."""
    splines, gates = "_unconstrained_rational_quadratic_spline", "fused_add_tanh_sigmoid_multiply"
    with patch.object(vits, splines, spline), patch.object(vits, gates, gated):
        yield


def gated(first: Any, second: Any, channels: Any) -> Any:
    """WaveNet's gate; transformers tells the number of channels by a tensor, which would be one more input."""
    left, right = (first + second).chunk(2, dim=1)
    return torch.tanh(left) * torch.sigmoid(right)


def spline(
    inputs: Any, widths: Any, heights: Any, derivatives: Any, reverse: bool = False, tail_bound: float = 5.0,
    least: float = 1e-3,
) -> tuple[Any, None]:  # fmt: skip
    """Rational-quadratic splines backwards (Durkan et al., 2019) where inputs are within ±`tail_bound`, elsewhere the inputs:
    as transformers computes them, but for every input, so that what is inside need not be picked out."""
    inside = inputs.clamp(-tail_bound, tail_bound)
    widths, heights = (_corners(one, tail_bound, least) for one in (widths, heights))
    edge = torch.full_like(derivatives[..., :1], log(expm1(1 - least)))
    slopes = least + nn.functional.softplus(torch.cat([edge, derivatives, edge], dim=-1))
    # The bin of each input, as one of a row of shares: a sum with them picks out what belongs to the bin.
    above = (inside[..., None] >= heights[..., :-1]).to(inputs.dtype)
    bins = above - nn.functional.pad(above[..., 1:], (0, 1))

    def here(values: Any) -> Any:
        return (values * bins).sum(-1)

    left, width = here(widths[..., :-1]), here(widths[..., 1:] - widths[..., :-1])
    bottom, height = here(heights[..., :-1]), here(heights[..., 1:] - heights[..., :-1])
    slope, next_slope, delta = here(slopes[..., :-1]), here(slopes[..., 1:]), height / width
    offset = inside - bottom
    bend = offset * (slope + next_slope - 2 * delta)
    a, b, c = height * (delta - slope) + bend, height * slope - bend, -delta * offset
    root = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp_min(0)))
    return torch.where(inputs.abs() <= tail_bound, root * width + left, inputs), None


def _corners(widths: Any, bound: float, least: float) -> Any:
    """Where bins begin and end, from -bound to bound, none narrower than a share of `least`."""
    shares = least + (1 - least * widths.shape[-1]) * torch.softmax(widths, dim=-1)
    ends = 2 * bound * torch.cumsum(shares, dim=-1)[..., :-1] - bound
    edge = torch.full_like(widths[..., :1], bound)
    return torch.cat([-edge, ends, edge], dim=-1)
