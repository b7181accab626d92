"""Train a task head, and the network under it, on labelled data: the baseline checkpoint that `optimize` starts from.

Texts become arrays by the very preprocessor that serves them later (edge.py), and each epoch is judged by the very
metric that judges candidates later (tasks/), so nothing here can disagree with what is measured afterwards. Trains by
transformers' Trainer; a killed run goes on from its last whole epoch.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.progress import Progress, Silent
from fmopt.core.stages.store import disk_errors, own_folder
from fmopt.data.datasets import Dataset
from fmopt.data.labels import MARKED, mark_rows
from fmopt.edge.text import Preprocessor, open_preprocessor
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.predictions import predict
from fmopt.models.loading import quiet
from fmopt.models.preprocessors.tokenizer import copy_encoders
from fmopt.models.structure import STRUCTURE, load_network
from fmopt.models.wrappers.seq2seq import EncoderDecoder, is_encoder_decoder
from fmopt.tasks.base import Item, Output, Task
from fmopt.training import distributed
from fmopt.training.collation import Collator, only_to_find
from fmopt.training.environment import WARMUP, WEIGHT_DECAY, has_bf16, last_checkpoint, tuned
from fmopt.training.examples import Masking, training_examples

RECORD, TRAINING = "finetune.json", ".training"
EVAL_BATCH = 32


@dataclass(frozen=True)
class Settings:
    """How a head is trained."""

    epochs: float = 3.0
    batch_size: int = 32  # items
    learning_rate: float = 5e-5
    seed: int = 0
    bf16: bool | None = None  # None: where the device multiplies it natively
    patience: int = 2  # epochs without a better validation metric
    augment: Sequence[str] = ()  # what is done to images, see `training.augmented`


def finetune(
    metadata: CheckpointMetadata,
    data: Dataset,
    task: Task,
    out: Path,
    asked: Settings,
    *,
    labels: Sequence[str] | None = None,
    time_limit_s: float | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train `task` on data's train split and write the best epoch's checkpoint to `out`, which is returned.

    `metadata` comes from `checkpoint.inspect(source, task.name, fresh_head=True)`. `labels` names the classes in order;
    without it the names are those found in the train split. It stops after `asked.patience` epochs without a better
    validation metric, or after `time_limit_s` with the best so far. `out`/finetune.json records each
    epoch, seed, versions and the data's digest; with the same settings again, a finished `out` stays as it is and a
    killed run goes on from its last epoch. Raises DataError for data that cannot train the task, ConfigError for a task
    that this does not train, StoreError for an `out` that is not ours.
    """
    metadata = _facts_with_labels(metadata, data, task, labels)
    settings = {
        "base": metadata.source.title, "base_digest": metadata.digest, "task": task.name, "data": data.name,
        "data_digest": data.digest, "labels": list(metadata.pipeline["labels"]), "epochs": asked.epochs,
        "batch_size": asked.batch_size, "learning_rate": asked.learning_rate, "seed": asked.seed,
        "bf16": has_bf16() if asked.bf16 is None else asked.bf16, "patience": asked.patience,
        **({"augment": list(asked.augment)} if metadata.modality == "image" else {}),
    }  # fmt: skip
    with own_folder(out), disk_errors(out / TRAINING):
        if _written(out / RECORD).get("settings") == settings:
            (progress or Silent()).say(f"{out} is finished already")
            return out
        work = _work_folder(out, settings)
        job = _Job(metadata, data, task, settings, work, time_limit_s, progress or Silent())
        silent = replace(job, progress=Silent())
        _publish(job, distributed.together(lambda: _train(job), _train, silent), out)
    return out


@dataclass(frozen=True)
class _Job:
    """What the steps of one training share."""

    metadata: CheckpointMetadata
    data: Dataset
    task: Task
    settings: dict[str, Any]
    work: Path
    time_limit_s: float | None
    progress: Progress

    @property
    def preprocessor(self) -> Preprocessor:
        """The tokenizer as served later."""
        return open_preprocessor(self.metadata.folder, dict(self.metadata.pipeline))


def _facts_with_labels(
    metadata: CheckpointMetadata, data: Dataset, task: Task, labels: Sequence[str] | None
) -> CheckpointMetadata:
    """Metadata whose labels and answers are the data's; DataError when the data cannot train the task."""
    for split in ("train", "validation"):
        if not data.splits.get(split):
            have = ", ".join(f"{name} ({len(rows)})" for name, rows in data.splits.items())
            raise DataError(f"{data.name} has no {split} rows to fine-tune with; it has {have or 'nothing'}")
    train = data.splits["train"]
    names = list(labels) if labels is not None else task.label_names(train)
    several = task.output is Output.CLASSES and any(isinstance(row.get("label"), list) for row in train)
    _say_unseen(data, task, names)
    no_answer = task.output is Output.SPAN and any(not row.get("answers") for row in train)
    pipeline = {**metadata.pipeline, "labels": names, "multi_label": several}
    return replace(metadata, pipeline=pipeline | ({"no_answer": True} if no_answer else {}))


def _say_unseen(data: Dataset, task: Task, names: Sequence[str]) -> None:
    """Labels that no train row has are judged as missed, and said."""
    role = task.class_role
    if not names or role is None or role not in MARKED:
        return
    for split in ("validation", "test"):
        found = mark_rows(data.splits.get(split, ()), role, names)
        if found:
            shown = ", ".join(list(found)[:5]) + (", …" if len(found) > 5 else "")
            warnings.warn(
                f"{data.name}: labels of {split} that no train row has count as missed: {shown}", stacklevel=2
            )


def _work_folder(out: Path, settings: dict[str, Any]) -> Path:
    """`out`/.training for these settings; what other settings left there is removed."""
    work = out / TRAINING
    if _written(work / "settings.json") != settings:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "settings.json").write_text(json.dumps(settings))
    return work


def _train(job: _Job) -> _Trainer:
    """Train until the last epoch, the patience or the time is over; the best epoch's weights are loaded then."""
    settings = job.settings
    transformers.set_seed(settings["seed"])  # before the head gets its random weights
    net = _network(job)
    rows = job.data.splits["train"]
    examples = training_examples(job.preprocessor, job.metadata, job.task.items(rows, job.metadata), rows)
    masking = Masking.of(job.preprocessor) if job.task.output is Output.MASKED_WORDS else None
    cuda = torch.cuda.is_available()
    arguments = transformers.TrainingArguments(
        output_dir=str(job.work), num_train_epochs=settings["epochs"], learning_rate=settings["learning_rate"],
        per_device_train_batch_size=distributed.share_of(settings["batch_size"]), warmup_steps=WARMUP, weight_decay=WEIGHT_DECAY,
        seed=settings["seed"], bf16=settings["bf16"], use_cpu=not cuda, dataloader_pin_memory=cuda,
        train_sampling_strategy="group_by_length" if job.metadata.modality == "text" else "random", remove_unused_columns=False,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="value", greater_is_better=True,
        restore_callback_states_from_checkpoint=True, disable_tqdm=True, report_to="none",
        average_tokens_across_devices=False,  # it multiplies the loss of networks that take a mean by the processes
    )  # fmt: skip
    trainer = _Trainer(
        model=net, args=arguments, train_dataset=examples, eval_dataset=examples[:1],
        data_collator=Collator(dict(job.metadata.pipeline.get("padding", {})), masking, tuple(settings.get("augment", ()))),
        callbacks=[transformers.EarlyStoppingCallback(settings["patience"]), _Watch(job)],
    )  # fmt: skip
    trainer.masks = masking is not None
    trainer.remove_callback(transformers.PrinterCallback)
    rows = job.data.splits["validation"]
    trainer.judge = _Judge(job, job.task.items(rows, job.metadata))
    last = last_checkpoint(job.work)
    with quiet(transformers.utils.logging), tuned():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    job.progress.stop()
    return trainer


def _network(job: _Job) -> torch.nn.Module:
    """The network with a fresh head whose labels are the data's; a head that fits in name and shape is kept."""
    names = list(job.metadata.pipeline["labels"])
    options: dict[str, Any] = {}
    if job.task.output is Output.NUMBER:
        options = {"num_labels": 1, "problem_type": "regression"}
    elif names:
        options = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        if job.task.output is Output.CLASSES:
            several = bool(job.metadata.pipeline["multi_label"])
            options["problem_type"] = f"{'multi' if several else 'single'}_label_classification"
    if job.metadata.pipeline.get("no_answer"):
        options["no_answer"] = True
    net: Any = load_network(job.metadata.folder, job.task.auto_class, head=options)
    if is_encoder_decoder(net):  # what it answers is not to be seen in its weights
        net.config.task_specific_params = {job.task.name: {}}
    return net


class _Trainer(transformers.Trainer):
    """A Trainer whose evaluation is the task's own metric on predictions made as in production."""

    judge: _Judge
    masks = False  # whether the labels are masked tokens

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The network's own loss; the signature is the Trainer's."""
        if not self.masks:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with only_to_find(self.accelerator.unwrap_model(model), inputs) as fewer:
            return super().compute_loss(model, fewer, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation metric as "eval_metric", and as "eval_value" so that more is better; the signature is the Trainer's."""
        assert isinstance(self.model, torch.nn.Module)
        value, better = self.judge(self.model)
        metrics = {"eval_value": better, "eval_metric": value}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Judge:
    """The primary metric of a network in training on the validation items; remembers what the metric is called.

    Gives its value, and a number that is larger where the metric is better; one that makes no sense yet (the rank of a
    constant prediction) is the worst.
    """

    def __init__(self, job: _Job, items: Sequence[Item]) -> None:
        self.job, self.items, self.preprocessor, self.name = job, items, job.preprocessor, ""

    def __call__(self, net: torch.nn.Module) -> tuple[float, float]:
        training, pipeline = net.training, dict(self.job.metadata.pipeline)
        runner = _NetRunner(net.eval(), pipeline["outputs"])
        got = predict(runner, self.preprocessor, pipeline, self.items, batch=EVAL_BATCH)
        net.train(training)
        score = next(score for score in self.job.task.scores(got, self.items, None, self.job.metadata) if score.primary)
        self.name = score.name
        metric = METRICS[score.metric]
        value = float(metric.of(score.array()))
        if math.isnan(value):
            return value, -sys.float_info.max
        return value, value if metric.higher_is_better else -value


@dataclass(frozen=True)
class _NetRunner:
    """A network in training, run as any other is: in full precision, though it may be trained in bfloat16."""

    net: torch.nn.Module
    outputs: Sequence[str]

    def run(self, inputs: Any) -> dict[str, Any]:
        if is_encoder_decoder(self.net):
            return EncoderDecoder(self.net).run(inputs)
        device = next(self.net.parameters()).device
        forward: Any = getattr(self.net, "_original_forward", self.net)  # accelerate's own casts what it computes
        with torch.inference_mode():
            out = forward(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()})
        return {name: getattr(out, name).float().cpu().numpy() for name in self.outputs}

    def close(self) -> None:
        """Nothing to give back."""


class _Watch(transformers.TrainerCallback):
    """Tells how far training is, and ends it when its time is over."""

    def __init__(self, job: _Job) -> None:
        self.job, self.begun, self.out_of_time = job, time.monotonic(), False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.start(f"training {self.job.task.name} on {self.job.data.name}", state.max_steps)
        self.job.progress.step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.step()
        limit = self.job.time_limit_s
        if limit is not None and distributed.agreed(time.monotonic() - self.begun > limit):
            self.out_of_time = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.say(f"epoch {state.epoch:.2f}: {kwargs['metrics']['eval_metric']:.4f} on validation")


def _publish(job: _Job, trainer: _Trainer, out: Path) -> None:
    """Write the checkpoint beside the training files, move it into `out`, the record last; then forget the training."""
    final = job.work / "final"
    shutil.rmtree(final, ignore_errors=True)
    assert isinstance(trainer.model, transformers.PreTrainedModel)
    with quiet(transformers.utils.logging):
        trainer.model.save_pretrained(final)
    copy_encoders(job.metadata.folder, final)
    if (job.metadata.folder / STRUCTURE).is_file():
        shutil.copy(job.metadata.folder / STRUCTURE, final / STRUCTURE)
    judged = [entry for entry in trainer.state.log_history if "eval_value" in entry]
    given = [(entry["epoch"], None if math.isnan(entry["eval_metric"]) else entry["eval_metric"]) for entry in judged]
    best = max(range(len(judged)), key=lambda number: judged[number]["eval_value"])
    losses = {entry["epoch"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    watch = next(entry for entry in trainer.callback_handler.callbacks if isinstance(entry, _Watch))
    record = {
        "metric": trainer.judge.name, "value": given[best][1],
        "epochs": [{"epoch": epoch, "value": value, "loss": losses.get(epoch)} for epoch, value in given],
        "stopped": "time limit" if watch.out_of_time else "", "settings": job.settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers")},
    }  # fmt: skip
    (out / RECORD).unlink(missing_ok=True)
    for path in sorted(final.iterdir()):
        path.replace(out / path.name)
    (job.work / RECORD).write_text(json.dumps(record, indent=1))
    (job.work / RECORD).replace(out / RECORD)
    shutil.rmtree(job.work)


def _written(path: Path) -> dict[str, Any]:
    """A JSON file of ours; empty when there is none or a killed run left half of it."""
    try:
        return dict(json.loads(path.read_text("utf8")))
    except (OSError, ValueError):
        return {}
