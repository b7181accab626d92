"""Which task a checkpoint is for, by its configuration, the class of its network and the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import ModelSource
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.sentence_transformers import makes_vectors
from fmopt.tasks.base import Task, all_tasks

PLAIN = "sentence-embedding"  # what a network without a head is for
HEADS = ("classifier.", "qa_outputs.", "score.", "cls.predictions.", "lm_head.")  # of checkpoints that name no class


@dataclass(frozen=True)
class Head:
    """What is known of the network's head."""

    architecture: str
    tensors: frozenset[str]
    regression: bool
    outputs: int
    settings: str = ""  # the task that config.json names, of a network that could be for several

    def has(self, prefix: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(prefix) for name in self.tensors)


def shown_by(head: Head) -> tuple[Task, ...]:
    """The tasks that the architecture's class name shows."""
    ends = {task: [end for end in task.architectures if head.architecture.endswith(end)] for task in all_tasks()}
    # What says more decides: Wav2Vec2ForSequenceClassification reads sounds, though ForSequenceClassification reads texts.
    longest = max((len(end) for fitting in ends.values() for end in fitting), default=0)
    shown = (task for task, fitting in ends.items() if any(len(end) == longest for end in fitting))
    # Classification and regression share a class; the configuration tells them apart.
    return tuple(task for task in shown if task.regression in (None, head.regression))


def task_of(head: Head, source: ModelSource, files: CheckpointFiles) -> str:
    """The task that the files show."""
    if source.task:
        return source.task
    if makes_vectors(files):
        return PLAIN
    if not head.architecture:
        return _task_of_weights(head, source)
    shown = shown_by(head)
    first = max((task.priority for task in shown), default=0)
    names = [task.name for task in shown if task.priority == first]
    if not names and (files.home / "modules.json").is_file():
        return PLAIN
    if not names:
        tasks = ", ".join(task.name for task in all_tasks())
        raise CheckpointError(f"{source.folder}: fmopt has no task for {head.architecture}; there are: {tasks}")
    if len(names) > 1 and head.settings not in names:
        raise CheckpointError(
            f"{source.folder}: {head.architecture} could be for {' or '.join(names)}; say --task {names[0]} or another"
        )
    return head.settings if head.settings in names else names[0]


def _task_of_weights(head: Head, source: ModelSource) -> str:
    """The task that the names of the weights show, where no class is named."""
    names = [task.name for task in all_tasks() if any(head.has(prefix) for prefix in task.head_tensors)]
    if len(names) > 1:
        raise CheckpointError(
            f"{source.folder}: config.json names no architecture, and its head could be for {' or '.join(names)}; say "
            f"{' or '.join(f'--task {name}' for name in names)}"
        )
    return names[0] if names else PLAIN


def task_in(config: Mapping[str, Any]) -> str:
    """The one task that `task_specific_params` of a configuration has settings for ("translation_en_to_de": translation)."""
    names = {str(name).partition("_")[0] for name in config.get("task_specific_params") or ()}
    return names.pop() if len(names) == 1 else ""


def refuse_misfit(task: Task, head: Head, source: ModelSource) -> None:
    """CheckpointError when the checkpoint's head is not one of `task`. Its encoder alone always gives embeddings."""
    shown = shown_by(head)
    if task.takes_any_encoder or task.name in {one.name for one in shown}:
        return
    if task.takes_checkpoints_of:
        if {one.name for one in shown} & set(task.takes_checkpoints_of):
            return
        raise CheckpointError(
            f"--task {task.name} does not fit {source.title}: {head.architecture or 'it'} is neither for it nor for "
            f"{' or '.join(task.takes_checkpoints_of)}"
        )
    if not head.architecture and any(head.has(prefix) for prefix in HEADS):
        return
    if shown and all(one.regression is not None for one in (task, *shown)):
        outputs = "one output, a number" if head.regression else f"{head.outputs} outputs, which are classes"
        raise CheckpointError(
            f"--task {task.name} does not fit {source.title}: its head has {outputs}; use --task {shown[0].name}"
        )
    raise CheckpointError(
        f"--task {task.name} does not fit {source.title}: {head.architecture or 'it'} has no head for it; "
        f"train one: fmopt finetune {source.asked} --task {task.name} --data DATA -o CKPT"
    )


def is_regression(config: Mapping[str, Any]) -> bool:
    """Whether a sequence head gives a number instead of classes, by transformers' own rule."""
    labels = config.get("id2label") or config.get("num_labels")
    count = len(labels) if isinstance(labels, Mapping) else labels
    return count in (None, 1) and config.get("problem_type") in ("regression", *([None] if count == 1 else []))
