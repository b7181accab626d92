"""The widths of a pruned network as a record beside its weights, and how a network is rebuilt by it.

A pruned checkpoint is a folder in Hugging Face format whose config.json describes the network as it was trained;
`structure.json` says what is left of each layer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from fmopt.core.errors import CheckpointError, first_fault
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Frozen, Sensitivity
from fmopt.models import loading
from fmopt.models.families.base import Family, Kind, Stack, find_family
from fmopt.models.loading import TorchModel
from fmopt.models.received import read_json
from fmopt.models.sentence_transformers import CONFIG, MODULES, SETTINGS, write_sentence_files
from fmopt.models.wrappers import image_features, mask_segmentation, zero_shot
from fmopt.tasks.base import find_task

if TYPE_CHECKING:
    import torch

STRUCTURE = "structure.json"
SPEAKING = "AutoModelForTextToWaveform"
OURS = ("config.json", MODULES, SETTINGS, CONFIG, STRUCTURE)  # written anew, not copied


class LayerWidths(Frozen):
    """What is left of one layer."""

    heads: tuple[int, ...]  # their numbers in the network as it was trained; empty: no attention
    ffn: int = Field(ge=0)  # neurons left; 0: no FFN
    cross: tuple[int, ...] = ()  # heads of a decoder's attention to what the encoder made
    stack: Stack = ""  # of two
    merged: tuple[Kind, ...] = ()  # emptied sublayers whose LayerNorm the one before has taken on


class Structure(Frozen):
    """What is left of every layer, in order."""

    version: Literal[1] = 1
    layers: tuple[LayerWidths, ...]


class LayerMetadata(Frozen):
    """What is known of the layers of a network that was exported."""

    structure: Structure | None = None  # None: the family is not known
    sensitivity: tuple[Sensitivity, ...] = ()  # empty: no pass measured it


def structure_of(net: torch.nn.Module, family: Family) -> Structure:
    """The record of a network."""
    from fmopt.models.surgery.pruned_modules import is_merged, kept_heads

    return Structure(
        layers=tuple(
            LayerWidths(
                heads=kept_heads(net, layer.attention), ffn=layer.ffn.width, stack=layer.stack,
                cross=() if layer.cross is None else kept_heads(net, layer.cross),
                merged=tuple(kind for kind, block in layer.sublayers if is_merged(net, block)),
            )
            for layer in family.layers(net)
        )
    )  # fmt: skip


def left_of(model: TorchModel) -> Structure | None:
    """The record of a model as it is now; None where the family's layers are not known, or are one module for all."""
    if model.family is None or model.family.pruning_refusal:
        return None
    return structure_of(model.net, model.family)


def apply_structure(net: torch.nn.Module, structure: Structure) -> None:
    """Give an uncut network the shapes of `structure`, in place; which neurons' weights stay is of no meaning.

    CheckpointError when the record is not of this network.
    """
    from fmopt.models.surgery.pruned_modules import prune_layer, remove_norm

    family = find_family(str(net.config.model_type))  # type: ignore[union-attr]
    layers: Sequence[Any] = family.layers(net) if family else ()
    if len(layers) != len(structure.layers):
        raise CheckpointError(f"{STRUCTURE} describes {len(structure.layers)} layers and the network has {len(layers)}")
    for layer, left in zip(layers, structure.layers, strict=True):
        wanted = zip((left.heads, left.cross), (layer.attention, layer.cross), strict=True)
        beyond = any(not set(heads) <= set(range(block.heads if block else 0)) for heads, block in wanted)
        if beyond or left.ffn > layer.ffn.width or left.stack != layer.stack:
            raise CheckpointError(f"{STRUCTURE} wants more heads or neurons than {layer.name} has; get the file again")
        prune_layer(net, layer, left.heads, range(left.ffn), left.cross)
        blocks = dict(layer.sublayers)
        for kind in left.merged:
            if not blocks[kind].norm or {"attention": left.heads, "cross": left.cross, "ffn": left.ffn}[kind]:
                raise CheckpointError(
                    f"{STRUCTURE} merges a norm that {layer.name} has not or needs; get the file again"
                )
            remove_norm(net, blocks[kind])


def read_structure(folder: Path) -> Structure | None:
    """The record of a checkpoint folder; None for one that is not pruned. CheckpointError when it cannot be read."""
    path = folder / STRUCTURE
    if not path.is_file():
        return None
    try:
        return Structure.model_validate(read_json(path, dict), strict=False)
    except ValidationError as error:
        raise CheckpointError(f"{path} cannot be used ({first_fault(error)}); a newer fmopt may read it") from error


def load_network(
    folder: Path, auto_class: str, dtype: str = "fp32", *, head: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """`model.load_network`, for pruned checkpoints too; what speaks takes its noise as an input, what knows labels by
    their words (CLIP) is the classifier of those that its configuration names, what finds masks by queries gives maps, what sees
    and has no head gives a vector."""
    structure = read_structure(folder)
    rebuild = None if structure is None else partial(apply_structure, structure=structure)
    net: Any = loading.load_network(folder, auto_class, dtype, rebuild=rebuild, head=head)
    if auto_class == SPEAKING:
        from fmopt.models.wrappers.speech_synthesis import seeded

        return seeded(net)
    if net.config.model_type == mask_segmentation.FAMILY:
        return mask_segmentation.as_maps(net)
    if auto_class == "AutoModel" and image_features.sees(net):
        return image_features.featuring(net)
    if auto_class == zero_shot.AUTO_CLASS:
        names = net.config.id2label
        return zero_shot.classifier(net, folder, [names[number] for number in sorted(names)], frozen=head is None)
    return net


def load_layer_metadata(metadata: CheckpointMetadata, dtype: str = "fp32") -> TorchModel:
    """The network of a checkpoint with its metadata, in eval mode."""
    net = load_network(metadata.folder, find_task(metadata.task).auto_class, dtype)
    return TorchModel(net=net, metadata=metadata, family=find_family(metadata.model_type))


def save_checkpoint(model: TorchModel, out: Path) -> Path:
    """Write `model` as a checkpoint folder: weights, config.json, structure.json where layers are known, tokenizer.

    What sentence-transformers reads (pooling, normalization, length) is written from the pipeline. Returns `out`.
    """
    import transformers

    out.mkdir(parents=True, exist_ok=True)
    net: Any = model.net
    with loading.quiet(transformers.utils.logging):
        net.save_pretrained(out)
    left = left_of(model)
    if left is not None:
        (out / STRUCTURE).write_text(left.model_dump_json(indent=1))
    for path in sorted(model.metadata.folder.iterdir()):
        text = path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json")
        if path.is_file() and text and path.name not in OURS:
            shutil.copy(path, out / path.name)
    if "pooling" in model.metadata.pipeline:
        write_sentence_files(model.metadata, out)
    return out
