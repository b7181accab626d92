"""What a student is compared with its teacher by: which layers learn from which, what is seen of both, what each loss counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata, generates, makes_answers
from fmopt.edge.seq2seq import NEW
from fmopt.models.families.base import Family
from fmopt.models.loading import TorchModel
from fmopt.models.surgery.pruned_modules import is_merged
from fmopt.passes.distillation import losses
from fmopt.passes.distillation.settings import DistillationSettings
from fmopt.passes.distillation.teacher_cache import TeacherTargets
from fmopt.tasks.base import Output, output_of
from fmopt.training.examples import IGNORED

LABELS = ("labels", "start_positions", "end_positions")
LABELLED = {"task": 0.2, "logits": 1.0, "hidden": 1.0, "relations": 0.0}
GENERATION = {"task": 0.5, "logits": 1.0, "hidden": 1.0, "relations": 0.0}  # what is judged is the likelihood of texts
EMBEDDING = {"cosine": 1.0, "similarity": 1.0, "hidden": 1.0, "relations": 0.0}
OF_A_VOCABULARY = (Output.MASKED_WORDS, Output.NEXT_WORDS, Output.ANSWER_WORDS)
TELLS = {
    "logits": "outputs",
    "hidden": "hidden",
    "relations": "relations",
    "cosine": "vectors",
    "similarity": "vectors",
}


class View(nn.Module):
    """A network, and what the losses see of it: its outputs, the states of some layers, some projections."""

    def __init__(
        self, net: nn.Module, outputs: Sequence[str], layers: Sequence[int], projection: nn.Module, encoder_layers: int
    ) -> None:
        super().__init__()
        self.net, self.outputs, self.layers, self.projection = net, outputs, layers, projection
        self.encoder_layers = encoder_layers  # of two stacks, how many layers the first has
        self.related: tuple[str, ...] = ()  # modules whose outputs are queries, keys and values, or all three

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Tensors by what they are; states of the layers are [B, n, w] of the teacher's width."""
        caught: dict[str, torch.Tensor] = {}
        handles = [
            self.net.get_submodule(name).register_forward_hook(
                lambda module, given, out, name=name: caught.__setitem__(name, out)
            )
            for name in self.related
        ]
        try:
            found = self.net(**inputs, output_hidden_states=True)
        finally:
            for handle in handles:
                handle.remove()
        outputs, states = [getattr(found, name).float() for name in self.outputs], _all_states(found)
        parts = [caught[name] for name in self.related]
        parts = list(parts[0].chunk(3, dim=-1)) if len(parts) == 1 else parts
        return {
            "outputs": outputs,
            "hidden": [self.projection(states[layer]).float() for layer in self.layers],
            "last": self.projection(outputs[0]).float() if self.outputs == ["last_hidden_state"] else None,
            "relations": [part.float() for part in parts],
        }


class DistillationObjective:
    """Student, teacher, and how much each loss between them counts."""

    def __init__(
        self,
        student: View,
        teacher: View,
        metadata: CheckpointMetadata,
        weights: Mapping[str, float],
        temperature: float,
    ) -> None:
        self.student, self.teacher, self.weights = student, teacher, weights
        self.pipeline, self.temperature, self.heads = metadata.pipeline, temperature, 1
        several = bool(metadata.pipeline.get("multi_label"))
        self.output = output_of(metadata.pipeline)
        self.kind = "several" if several else "number" if self.output is Output.NUMBER else "classes"

    @property
    def layers(self) -> list[list[int]]:
        """Pairs of a student layer and the teacher layer it learns from."""
        return [list(pair) for pair in zip(self.student.layers, self.teacher.layers, strict=True)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the losses need of the teacher; nothing where labels alone teach."""
        return tuple(sorted({TELLS[name] for name, weight in self.weights.items() if weight and name in TELLS}))

    def targets(self, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> TeacherTargets:
        """What the teacher says of a batch, by kind."""
        if not self.kinds:
            return {}
        seen = self.teacher(inputs)
        if "vectors" in self.kinds:
            seen["vectors"] = [self._vectors(seen["outputs"][0], mask)]
        return {kind: seen[kind] for kind in self.kinds}

    def loss(
        self, got: Any, wanted: TeacherTargets, mask: torch.Tensor | None, labels: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The weighted sum for one batch; `mask` is bool [B, n], or of the samples that states are made of."""
        mask = _of_states(self.student.net, mask, got["hidden"][0])
        terms = {name: weight for name, weight in self.weights.items() if weight}
        return torch.stack([w * self._term(name, got, wanted, mask, labels) for name, w in terms.items()]).sum()

    def _term(
        self, name: str, got: Any, wanted: TeacherTargets, mask: torch.Tensor | None, labels: Any
    ) -> torch.Tensor:
        if name == "hidden":
            masks = self._masks(len(got["hidden"]), mask, labels)
            return losses.hidden_loss(got["hidden"], wanted["hidden"], masks)
        if name == "relations":
            return losses.relation_loss(got["relations"], wanted["relations"], mask, self.heads)
        if name == "cosine":
            return losses.cosine_loss(self._vectors(got["last"], mask), wanted["vectors"][0])
        if name == "similarity":  # of the student's own vectors, unprojected: those are compared with one another later
            return losses.similarity_loss(self._vectors(got["outputs"][0], mask), wanted["vectors"][0])
        answers = self._answers(got["outputs"], mask)
        asked = self._asked(labels, mask)
        if asked is not None:
            place, found = asked
            answers, labels = [logits[place] for logits in answers], {"labels": found}
        spells = self.output is Output.LETTERS
        if name == "task" and spells:
            return losses.spelled_loss(answers[0], labels["labels"], mask, self.pipeline["ctc"]["blank"])
        if name == "task":
            return losses.task_loss(answers, labels)
        wished = self._answers(wanted["outputs"], mask)
        if asked is not None:
            wished = [logits[asked[0]] for logits in wished]
        if (spells or self.output is Output.TAGS) and mask is not None:
            answers, wished = ([logits[mask] for logits in part] for part in (answers, wished))
        return losses.logit_loss(answers, wished, self.temperature, self.kind)

    def _asked(
        self, labels: Mapping[str, torch.Tensor], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(bool [B, n] where a word of the vocabulary is asked for, the words [K]); None in other tasks.

        Of a masked text where masks are: elsewhere the token can be read, and there is nothing to learn. Of a text that goes
        on, each place asks for the token after it. Of an answer, every place that it has.
        """
        if not of_a_vocabulary(self.pipeline):
            return None
        words = labels["labels"]
        if self.output is Output.ANSWER_WORDS:
            return words != IGNORED, words[words != IGNORED]
        if self.output is Output.NEXT_WORDS:
            words = torch.nn.functional.pad(words[:, 1:], (0, 1), value=IGNORED)
        place = words != IGNORED if mask is None else mask & (words != IGNORED)
        return place, words[place]

    def _masks(
        self, layers: int, mask: torch.Tensor | None, labels: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """That of the states of every layer: those of a decoder are of the answer's tokens."""
        if self.output is not Output.ANSWER_WORDS:
            return [mask] * layers
        return [mask if layer < self.student.encoder_layers else labels["labels"] != IGNORED for layer in range(layers)]

    def _vectors(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert mask is not None  # only texts are pooled
        return losses.pooled(states, mask, self.pipeline.get("pooling", "mean"))

    def _answers(self, outputs: list[torch.Tensor], mask: torch.Tensor | None) -> list[torch.Tensor]:
        """Logits, those of padding out of reach where tokens compete (question answering)."""
        if self.output is not Output.SPAN:
            return outputs
        assert mask is not None
        return [logits.masked_fill(~mask, losses.FAR_BELOW) for logits in outputs]


def make_objective(
    model: TorchModel, teacher: TorchModel, options: DistillationSettings, batch: dict[str, torch.Tensor]
) -> DistillationObjective:
    """Which layers learn from which, through what, and how much each loss counts; `batch` is one of real items."""
    inputs, labels = inputs_and_labels(batch, model.metadata.pipeline)
    outputs = list(model.metadata.pipeline["outputs"])
    (states, ends), (taught_states, taught_ends) = (_all_layers(part.net, inputs) for part in (model, teacher))
    widths = [states[0].shape[-1], taught_states[0].shape[-1]]
    projection = nn.Identity() if widths[0] == widths[1] else nn.Linear(widths[0], widths[1])
    compared = _compared(model, len(states))
    states = [states[n] for n in compared]
    student = View(model.net, outputs, compared, projection, ends)
    mask = _of_states(model.net, mask_of(inputs), states[0])
    answer = labels["labels"] != IGNORED if makes_answers(model.metadata.pipeline) else mask
    matched = losses.matched_layers(states[:ends], taught_states[:taught_ends], mask) if ends else []
    matched += [taught_ends + n for n in losses.matched_layers(states[ends:], taught_states[taught_ends:], answer)]
    taught = View(teacher.net.requires_grad_(False), outputs, matched, nn.Identity(), taught_ends)
    names = [_last_projections(part.net, part.family) for part in (model, teacher)]
    weights = _weights(options, model.metadata, widths[0] == widths[1], related=all(names))
    objective = DistillationObjective(student, taught, model.metadata, weights, options.softened(model.metadata))
    if weights["relations"]:
        student.related, taught.related = names
        objective.heads = _relation_heads(student, taught, inputs)
    return objective


def _compared(model: TorchModel, count: int) -> list[int]:
    """Layers whose states mean what the teacher's do: not where the next layer's norm was merged into this one's."""
    layers = model.family.layers(model.net) if model.family else []
    return [n for n in range(count) if n + 1 >= len(layers) or not is_merged(model.net, layers[n + 1].attention)]


def _all_layers(net: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], int]:
    """The states [B, n, w] after every layer, and how many are an encoder's."""
    with torch.no_grad():
        found = net(**inputs, output_hidden_states=True)
    encoder = getattr(found, "encoder_hidden_states", None)
    return [state.float() for state in _all_states(found)], 0 if encoder is None else len(encoder) - 1


def _last_projections(net: nn.Module, family: Family | None) -> tuple[str, ...]:
    """The projections of the last layer that has heads: query, key and value, or the one that makes all three;
    none where that mixes them head by head, or where there are two stacks, which no one layer stands for."""
    layers = [layer for layer in family.layers(net) if layer.attention.heads] if family else []
    blocks = [layer.attention for layer in layers]
    if blocks and (blocks[-1].interleaved or layers[-1].stack == "decoder"):
        return ()
    return tuple(dict.fromkeys((blocks[-1].query, blocks[-1].key, blocks[-1].value))) if blocks else ()


def _weights(
    options: DistillationSettings, metadata: CheckpointMetadata, same_width: bool, related: bool
) -> dict[str, float]:
    """How much each loss counts: the task's defaults, then what the options say. PassError for what cannot be compared.

    Where widths differ, relations say more than states seen through a random projection, if there are layers to relate.
    """
    defaults = GENERATION if generates(metadata.pipeline) else LABELLED
    found = dict(EMBEDDING if output_of(metadata.pipeline) is Output.VECTOR else defaults)
    if related and not same_width:
        found |= {"hidden": 0.0, "relations": 1.0}
    unknown = [name for name in options.weights if name not in found]
    if unknown:
        raise PassError(f"distill: {metadata.task} has no loss {unknown[0]!r}; it has {', '.join(found)}")
    found |= options.weights
    if found["relations"] and not related:
        raise PassError(
            f"distill: relations need known attention blocks in one stack, which {metadata.model_type} has not; give hidden"
        )
    if not any(found.values()):
        raise PassError("distill: all weights are 0, so there is nothing to learn; leave one above 0")
    return found


def _relation_heads(student: View, teacher: View, inputs: Mapping[str, torch.Tensor]) -> int:
    """Relation heads that both widths can be cut into: the teacher's attention heads, or fewer."""
    with torch.no_grad():
        widths = [part.shape[-1] for view in (student, teacher) for part in view(inputs)["relations"]]
    config: Any = teacher.net.config
    return losses.relation_heads(widths, config.num_attention_heads)


def of_a_vocabulary(pipeline: Mapping[str, Any]) -> bool:
    """Whether a network says words: its logits are of all that it knows."""
    return output_of(pipeline) in OF_A_VOCABULARY


def _all_states(found: Any) -> list[torch.Tensor]:
    """The states [B, n, w] after every layer, those of an encoder before those of its decoder."""
    if getattr(found, "encoder_hidden_states", None) is not None:
        return [*found.encoder_hidden_states[1:], *found.decoder_hidden_states[1:]]
    return list(found.hidden_states[1:])


def inputs_and_labels(
    batch: Mapping[str, torch.Tensor], pipeline: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a network reads of a batch, and what it is asked for. A decoder reads the answer asked for, one token behind."""
    labels = {name: value for name, value in batch.items() if name in LABELS}
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    if makes_answers(pipeline):
        targets = labels["labels"]
        behind = targets.masked_fill(targets == IGNORED, pipeline["decoder_start_token_ids"][0])[:, :-1]
        inputs[NEW] = torch.cat(
            [torch.full_like(targets[:, :1], pipeline["decoder_start_token_ids"][0]), behind], dim=1
        )
    return inputs, labels


def mask_of(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Bool [B, n], True on tokens that are no padding; None where nothing is padded."""
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else None


def _of_states(net: Any, mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    """`mask` as one of `states` [B, n, w]: a network that reads audio makes a frame of some hundred samples."""
    if mask is None or mask.shape[1] == states.shape[1]:
        return mask
    return torch.as_tensor(net._get_feature_vector_attention_mask(states.shape[1], mask.long())).bool()
