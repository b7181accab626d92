"""Which input and output of a received graph is which: mapped by name, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fmopt.core.errors import CheckpointError
from fmopt.edge.errors import shorten
from fmopt.edge.files import printable
from fmopt.models.graphs.summary import GraphSummary, Port
from fmopt.tasks.base import Output, Task

GIVE_THE_NETWORK = "give the checkpoint that it was exported from (config.json, model.safetensors)"
INPUTS = {
    "input_ids": ("input_ids", "input", "ids", "inputs"),
    "attention_mask": ("attention_mask", "input_mask", "mask"),
    "token_type_ids": ("token_type_ids", "segment_ids", "token_types", "type_ids"),
    "position_ids": ("position_ids",),
}
KINDS = ("int64", "int32", "float32", "float16", "bool")  # that runners make of whole numbers
# Inputs of networks that are no encoders of texts: how their names begin, and what such a network is.
OTHERS = {
    "past_key_values": "a decoder with a cache", "cache_position": "a decoder with a cache",
    "use_cache_branch": "a decoder with a cache", "decoder_input_ids": "an encoder and a decoder",
    "encoder_hidden_states": "the decoder of an encoder and a decoder", "encoder_attention_mask": "a decoder",
    "pixel_values": "a network for images", "image": "a network for images", "input_features": "a network for sounds",
    "input_values": "a network for sounds",
}  # fmt: skip
VECTOR = "sentence_embedding"  # an output that is pooled already
LOGITS = ("logits", "output", "output_0", "scores", "predictions")
# What a task calls an output -> the names that graphs have for it.
OUTPUTS = {
    "logits": LOGITS,
    "last_hidden_state": ("last_hidden_state", "token_embeddings", "hidden_states", "output_0", "output"),
    "start_logits": ("start_logits", "output_start_logits", "start"),
    "end_logits": ("end_logits", "output_end_logits", "end"),
    VECTOR: (VECTOR,),
}
# Axes of an output of each kind: a batch, its tokens where there are some, and what is said of each.
RANKS = {
    Output.CLASSES: 2, Output.NUMBER: 2, Output.VECTOR: 3, Output.TAGS: 3, Output.SPAN: 2, Output.MASKED_WORDS: 3,
}  # fmt: skip
TAKEN = (
    "text-classification, text-regression, token-classification, sentence-embedding, question-answering and fill-mask"
)


def plain(name: str) -> str:
    """A port's name without what converters put around it: "input_ids:0" is `input_ids`."""
    return name.partition(":")[0].rsplit("/", 1)[-1]


def refuse_others(summary: GraphSummary) -> None:
    """CheckpointError for a graph that is no encoder of texts, by what it takes."""
    for name in summary.inputs:
        kind = next((kind for begin, kind in OTHERS.items() if plain(name).startswith(begin)), None)
        if kind is not None:
            raise CheckpointError(
                f"{summary.path} takes {_shown(name)}, so it is {kind}; as ONNX fmopt takes encoders of texts: {GIVE_THE_NETWORK}"
            )


def map_inputs(summary: GraphSummary) -> dict[str, str]:
    """Names that fmopt knows -> the graph's own, in the graph's order. CheckpointError for an input of another name, type or
    shape."""
    refuse_others(summary)
    found: dict[str, str] = {}
    for name, port in summary.inputs.items():
        known = next((known for known, names in INPUTS.items() if plain(name) in names), None)
        if known is None or known in found:
            raise CheckpointError(
                f"{summary.path} takes {_shown(name)}, which nothing makes of a text; fmopt knows {', '.join(INPUTS)}: "
                "rename it, or export the model without it"
            )
        _require_free(summary, name, port)
        found[known] = name
    if "input_ids" not in found:
        given = ", ".join(map(_shown, summary.inputs)) or "no input"
        raise CheckpointError(
            f"{summary.path} takes no input_ids ({given}); as ONNX fmopt takes encoders of texts: {GIVE_THE_NETWORK}"
        )
    return found


def _require_free(summary: GraphSummary, name: str, port: Port) -> None:
    """CheckpointError for an input that is no [batch, tokens] of whole numbers, or whose axes are fixed."""
    if port.kind not in KINDS or (port.axes is not None and len(port.axes) != 2):
        raise CheckpointError(
            f"{summary.path}: {_shown(name)} is {port.kind} {_axes(port)}; token inputs are int64 [batch, tokens]"
        )
    if any(isinstance(axis, int) for axis in port.axes or ()):
        raise CheckpointError(
            f"{summary.path}: {_shown(name)} is fixed at {_axes(port)}, and fmopt judges texts at their own lengths, several at "
            "once too; export the model with dynamic axes for batch and tokens"
        )


def map_outputs(summary: GraphSummary, task: Task) -> dict[str, str]:
    """What a task calls its outputs -> the graph's own names. CheckpointError where one is lacking, or is of another shape.

    An embedding that is pooled in the graph goes before states of tokens.
    """
    if task.modality != "text" or task.output not in RANKS or task.edge_part is not None:
        raise CheckpointError(f"--task {task.name} is not done from ONNX, only {TAKEN}; {GIVE_THE_NETWORK}")
    wanted: Sequence[str] = task.outputs
    if task.output is Output.VECTOR and _named(summary, VECTOR):
        wanted = (VECTOR,)
    found = {name: _named(summary, name) for name in wanted}
    if len(wanted) == len(summary.outputs) == 1:  # whatever it is called
        found = {wanted[0]: next(iter(summary.outputs))}
    lacking = [name for name, own in found.items() if own is None]
    if lacking:
        given = ", ".join(map(_shown, summary.outputs))
        raise CheckpointError(
            f"{summary.path} gives {given}; --task {task.name} needs {' and '.join(lacking)}: name another task"
        )
    own = {name: str(given) for name, given in found.items()}
    for known, name in own.items():
        _require_rank(summary, task, known, name)
    return own


def _require_rank(summary: GraphSummary, task: Task, known: str, name: str) -> None:
    axes, rank = summary.outputs[name].axes, 2 if known == VECTOR else RANKS[task.output]
    if axes is not None and len(axes) != rank:
        raise CheckpointError(
            f"{summary.path} gives {_shown(name)} as {_axes(summary.outputs[name])}; --task {task.name} needs {rank} axes there: "
            "name another task"
        )


def _named(summary: GraphSummary, known: str) -> str | None:
    return next((own for name in OUTPUTS.get(known, (known,)) for own in summary.outputs if plain(own) == name), None)


def _shown(name: str) -> str:
    return shorten(printable(name))


def _axes(port: Port) -> str:
    return "[" + ", ".join(_shown(str(axis or "?")) for axis in port.axes or ("?",)) + "]"


def shown_ports(ports: Mapping[str, Port]) -> str:
    """Ports for people: `input_ids int64 [batch, tokens]; …`."""
    return "; ".join(f"{_shown(name)} {port.kind} {_axes(port)}" for name, port in ports.items())
