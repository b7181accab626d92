"""Train a student network on what a teacher network makes of the same texts.

The student keeps its shape; what pruning cost is won back. Trains by transformers' Trainer. Saves lie under a key of
everything that training depends on, so that a killed run, asked for again, goes on at its last save, and a finished one
is not done twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_model, save_model
from torch import nn

from fmopt.core.errors import PassError
from fmopt.core.model import TOKENIZER, CheckpointMetadata, makes_answers
from fmopt.core.stages import seals
from fmopt.edge.parts import Sample
from fmopt.edge.text import open_preprocessor
from fmopt.models.loading import TorchModel, quiet
from fmopt.models.structure import load_layer_metadata, save_checkpoint
from fmopt.passes.base import Context
from fmopt.passes.calibration.generated_answers import answered_by
from fmopt.passes.distillation.objective import (
    LABELS,
    DistillationObjective,
    inputs_and_labels,
    make_objective,
    mask_of,
    of_a_vocabulary,
)
from fmopt.passes.distillation.settings import DistillationSettings
from fmopt.passes.distillation.teacher_cache import TeacherOutputs, TeacherTargets, Terms, outputs_key, room_on_disk
from fmopt.passes.quantization.fake_quantize import load_rounding, save_rounding
from fmopt.tasks.base import Output, output_of
from fmopt.training import distributed
from fmopt.training.collation import Collator
from fmopt.training.environment import WARMUP, WEIGHT_DECAY, has_bf16, last_checkpoint, tuned, weights_digest
from fmopt.training.examples import Example, FileExamples, unlabelled_examples

LAYERDROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # of modules and configurations
PER_TOKEN = frozenset({"hidden", "relations"})
OF_TOKENS = (Output.TAGS, Output.SPAN)  # whose outputs are per token too
ITEM, KEPT = "item", "kept"  # in a batch: which examples it has, and what is kept of the teacher about them
POOL = 50  # batches' worth of examples sorted by length at a time, as the Trainer's own grouping
MATCHED_ITEMS = 16  # examples that student and teacher layers are matched on
REPORT_SECONDS = 20.0  # seconds between two lines of progress
FINISHED, RECORD, ROUNDING = "student.safetensors", "distill.json", "rounding.safetensors"
_VERSION = 1  # of what is trained how


def distill(model: TorchModel, options: DistillationSettings, ctx: Context) -> TorchModel:
    """`model` trained in place; see `passes/distill.py` for the options. PassError for data or a teacher that do not fit.

    The losses per step are written to distill.json in the scratch folder, beside the trained weights.
    """
    if ctx.teacher is None:
        raise PassError("distill: there is no teacher here; run it from a recipe of `fmopt optimize`")
    teacher = ctx.teacher(options.teacher)
    _require_fit(teacher.metadata, model.metadata)
    examples = texts_to_learn(options, model.metadata, ctx)
    if len(examples) < 2:
        raise PassError("distill: there are no texts to train on; give data with a train split, or `unlabelled`")
    answers = makes_answers(model.metadata.pipeline)
    if answers and isinstance(examples, FileExamples) and all(item.label is None for item in examples.items):
        raise PassError(
            "distill: no recording of the train split has a transcript to learn the words by; give some that have"
        )
    if answers and not isinstance(examples, FileExamples):
        examples = answered_by(teacher, examples, ctx)
    bf16 = has_bf16() if options.bf16 is None else options.bf16
    with _work_folder(_key(model, teacher.metadata, examples, options, bf16, ctx.seed), ctx.scratch) as work:
        if not seals.reusable(work / FINISHED, ctx.progress):
            shared = (examples, options, bf16, work, ctx.seed)
            distributed.together(
                lambda: _train(model, teacher, *shared, ctx.progress, ctx.deadline), _train_along, _handed_over(model, work),
                model.metadata, teacher.metadata, *shared,
            )  # fmt: skip
        load_model(model.net, work / FINISHED)
    model.net.eval()
    return model.after(f"distill({options.teacher or 'baseline'})")


# ------------------------------------------------------------------------------------------------ what it starts from


def _require_fit(teacher: CheckpointMetadata, student: CheckpointMetadata) -> None:
    """PassError unless both make the same kind of outputs of the same token ids, or of the same images."""
    if teacher.digest == student.digest:
        return
    same = (
        "task",
        "labels",
        "multi_label",
        "pooling",
        "image",
        "audio",
        "decoder_start_token_ids",
        "forced_bos_token_id",
        "eos_token_id",
    )
    wrong = [name for name in same if teacher.pipeline.get(name) != student.pipeline.get(name)]
    if all(metadata.modality == "text" or makes_answers(metadata.pipeline) for metadata in (student, teacher)):
        ours, theirs = (
            tokenizers.Tokenizer.from_file(str(metadata.folder / TOKENIZER)).get_vocab()
            for metadata in (student, teacher)
        )
        wrong += ["vocabulary"] if ours != theirs else []
    if wrong:
        raise PassError(
            f"distill: the teacher {teacher.source.title} has another {' and '.join(wrong)} than the student; "
            "choose a teacher trained on the same labels with the same tokenizer"
        )


def texts_to_learn(options: DistillationSettings, metadata: CheckpointMetadata, ctx: Context) -> Sequence[Example]:
    """The train split, and after it the texts without labels; PassError for a file of them that is of no use."""
    if options.unlabelled is None:
        return ctx.examples()
    return [*ctx.examples(), *_unlabelled(options.unlabelled, metadata)]


def _unlabelled(path: str, metadata: CheckpointMetadata) -> list[Example]:
    """Examples of a text file, one text a line; a tab in a line parts the two texts of a pair."""
    if metadata.modality != "text":
        raise PassError(
            f"distill: unlabelled texts are of no use to a model that reads {metadata.modality}s; leave them out"
        )
    try:
        lines = [line.strip() for line in Path(path).read_text("utf8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PassError(f"distill: the unlabelled texts {path} cannot be read ({error}); give UTF-8 text") from error
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    return unlabelled_examples(
        preprocessor, metadata, [_sample(line, output_of(metadata.pipeline), path) for line in lines]
    )


def _sample(line: str, output: Output, path: str) -> Sample:
    if output is Output.TAGS:
        return line.split()
    first, tab, second = line.partition("\t")
    if tab:
        return first, second
    if output is Output.SPAN:
        raise PassError(f"distill: {path} has a line without a tab; write question, tab, context")
    return line


def _key(
    model: TorchModel,
    teacher: CheckpointMetadata,
    examples: Sequence[Example],
    options: DistillationSettings,
    bf16: bool,
    seed: int,
) -> str:
    """sha256 over all that the trained weights depend on."""
    dropout = options.left_out(model.metadata)
    chosen = {**asdict(options), "save_minutes": None, "unlabelled": None, "bf16": bf16, "dropout": dropout}
    del chosen["cache_gb"]  # where the teacher's words are read from does not change them
    if dropout is None:
        del chosen["dropout"]  # so that what was trained before there was a choice is still found
    total = hashlib.sha256(repr((_VERSION, chosen, teacher.digest, model.metadata.digest, seed)).encode())
    total.update(weights_digest(model.net).encode())
    for example in examples:
        for name in sorted(example):
            total.update(name.encode() + np.asarray(example[name]).tobytes())
    return total.hexdigest()


@contextmanager
def _work_folder(key: str, scratch: Path | None) -> Iterator[Path]:
    """The folder of this very training; without a scratch folder one that is gone afterwards."""
    if scratch is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "distill"
    else:
        work = scratch / f"distill-{key[:16]}"
        work.mkdir(parents=True, exist_ok=True)
        yield work


# ------------------------------------------------------------------------------------------------ training


def _train(
    model: TorchModel, teacher: TorchModel, examples: Sequence[Example], options: DistillationSettings, bf16: bool, work: Path,
    seed: int, progress: Callable[[str], None], deadline: float | None = None,
) -> None:  # fmt: skip
    """Train and write the student's weights to `work`, whole or not at all; the first of several processes writes.

    PassError at the deadline, what is learned so far being saved.
    """
    transformers.set_seed(seed)  # before the projection gets its random weights
    cuda = torch.cuda.is_available()
    collate = Collator(dict(model.metadata.pipeline.get("padding", {})))
    objective = make_objective(model, teacher, options, collate(examples[:MATCHED_ITEMS]))
    schedule = _Schedule(examples, options.batch_size, options.epochs, seed)
    watch = _Watch(options, progress, deadline)
    arguments = transformers.TrainingArguments(
        output_dir=str(work), num_train_epochs=1, learning_rate=options.learning_rate, warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY, per_device_train_batch_size=distributed.share_of(schedule.batch_size),
        gradient_accumulation_steps=options.accumulation, train_sampling_strategy="sequential", seed=seed,
        bf16=bf16, use_cpu=not cuda, dataloader_pin_memory=cuda, remove_unused_columns=False, save_strategy="no",
        save_total_limit=1, logging_strategy="steps", logging_steps=max(1, schedule.steps(options.accumulation) // 50),
        disable_tqdm=True, report_to="none", average_tokens_across_devices=False,
    )  # fmt: skip
    trainer = _Trainer(model=objective.student, args=arguments, train_dataset=schedule, callbacks=[watch])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.objective = objective
    objective.teacher.to(arguments.device)
    last = last_checkpoint(work)
    with (
        quiet(transformers.utils.logging),
        tuned(),
        _every_layer(model.net, teacher.net),
        _dropout_of(model.net, options.left_out(model.metadata)),
    ):
        trainer.kept = _kept_outputs(trainer, teacher.metadata, examples, options, collate, work, progress, deadline)
        trainer.data_collator = _Taught(collate, trainer.kept)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if watch.too_late:
        done = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise PassError(f"the time limit was reached at {done} of distilling; the same command goes on from there")
    if distributed.follows():
        return
    net = model.net.cpu()
    net.zero_grad(set_to_none=True)
    if not all(bool(parameter.isfinite().all()) for parameter in net.parameters()):
        raise PassError(f"distill: training diverged; give a learning_rate below {options.learning_rate}")
    record = {
        "losses": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
        "steps": trainer.state.global_step, "stopped": "time limit" if watch.out_of_time else "",
        "weights": dict(objective.weights), "layers": objective.layers,
    }  # fmt: skip
    (work / RECORD).write_text(json.dumps(record, indent=1))
    save_model(net, str(work / "part"))
    (work / "part").replace(work / FINISHED)
    seals.seal(work / FINISHED)
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def _kept_outputs(
    trainer: _Trainer, teacher: CheckpointMetadata, examples: Sequence[Example], options: DistillationSettings, collate: Collator,
    work: Path, progress: Callable[[str], None], deadline: float | None,
) -> TeacherOutputs | None:  # fmt: skip
    """What the teacher says of every example, on disk beside `work`; None where it is asked in every epoch."""
    objective, device = trainer.objective, trainer.args.device
    if not objective.kinds or of_a_vocabulary(teacher.pipeline):  # all words for every token are never cheaper to read
        return None
    if isinstance(examples, FileExamples):
        return None
    inputs = [name for name in examples[0] if name not in LABELS]
    about = {"kinds": objective.kinds, "layers": objective.teacher.layers, "related": objective.teacher.related,
             "pooling": teacher.pipeline.get("pooling"), "bf16": trainer.args.bf16, "device": device.type}  # fmt: skip
    folder = work.parent / f"teacher-{outputs_key(teacher.digest, examples, inputs, about)[:16]}"

    def ask(batch: dict[str, torch.Tensor]) -> TeacherTargets:
        with torch.no_grad(), trainer.accelerator.autocast():
            return objective.targets(
                {name: batch[name].to(device) for name in inputs}, batch["attention_mask"].to(device)
            )

    of_tokens = {"outputs"} if output_of(teacher.pipeline) in OF_TOKENS else set()
    outputs = TeacherOutputs(folder, examples, collate, ask, PER_TOKEN | of_tokens)
    terms = Terms(options.epochs, room_on_disk(folder, options.cache_gb * 1e9), options.time_limit_s)
    if not outputs.kept(terms, progress, lambda: deadline is not None and time.monotonic() > deadline):
        return None
    objective.teacher.to("cpu")  # its memory on the device is the student's now
    return outputs


def _handed_over(model: TorchModel, work: Path) -> Path | None:
    """The student as a checkpoint for the processes that train along; networks do not survive pickling."""
    if distributed.world() == 1:
        return None
    folder = save_checkpoint(model, work / "student")
    save_rounding(model.net, folder / ROUNDING)
    return folder


def _train_along(
    student: Path, metadata: CheckpointMetadata, teacher: CheckpointMetadata, examples: Sequence[Example],
    options: DistillationSettings,
    bf16: bool, work: Path, seed: int,
) -> None:  # fmt: skip
    """`_train` in a process that follows; the folders must be in its reach."""
    learner = load_layer_metadata(replace(metadata, source=replace(metadata.source, folder=student)))
    load_rounding(learner.net, student / ROUNDING)
    _train(learner, load_layer_metadata(teacher), examples, options, bf16, work, seed, lambda text: None)


@contextmanager
def _every_layer(*nets: nn.Module) -> Iterator[None]:
    """While entered, no layer is left out at random (layerdrop): the states after each of them are learned from."""
    held = [(one, name) for one in _with_configs(*nets) for name in LAYERDROPS if hasattr(one, name)]
    with _set(held, 0.0):
        yield


@contextmanager
def _dropout_of(net: nn.Module, share: float | None) -> Iterator[None]:
    """While entered, such a share of values is left out at random wherever the network leaves out some; None changes nothing."""
    held = [(one, name) for one in _with_configs(net) for name in _dropouts(one)]
    with nullcontext() if share is None else _set(held, share):
        yield


def _dropouts(one: Any) -> list[str]:
    """Attributes of a module or a configuration that say how much is left out at random, where something is."""
    names = ["p"] if isinstance(one, nn.Dropout) else [name for name in vars(one) if "dropout" in name]
    return [name for name in names if isinstance(getattr(one, name), float) and getattr(one, name) > 0]


def _with_configs(*nets: nn.Module) -> list[Any]:
    """Every module, and what it is configured by, once each."""
    found = {id(one): one for net in nets for part in net.modules() for one in (part, getattr(part, "config", None))}
    return [one for one in found.values() if one is not None]


@contextmanager
def _set(held: Sequence[tuple[Any, str]], value: float) -> Iterator[None]:
    """While entered, these attributes of these objects are `value`."""
    before = [(one, name, getattr(one, name)) for one, name in held]
    for one, name in held:
        setattr(one, name, value)
    try:
        yield
    finally:
        for one, name, old in before:
            setattr(one, name, old)


class _Schedule(torch.utils.data.Dataset[Example]):
    """Examples of all epochs in the order of training, so that a resumed run needs no generator to find its place.

    Each epoch is shuffled, sorted by length within pools, cut into batches, and these are shuffled again. What does not
    fill a batch is left out of that epoch.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, epochs: float, seed: int) -> None:
        self.examples, self.batch_size = examples, min(batch_size, len(examples))
        lengths = np.zeros(len(examples), dtype=np.int64)
        if not isinstance(examples, FileExamples):  # those have one size, and need not be decoded to tell it
            lengths = np.array([len(example["input_ids"]) for example in examples])
        rng = np.random.default_rng(seed)
        per_epoch = len(examples) // self.batch_size
        epoch_orders = [self._epoch(lengths, per_epoch, rng) for _ in range(math.ceil(epochs))]
        self.order = np.concatenate(epoch_orders)[: math.ceil(epochs * per_epoch)].reshape(-1)

    def _epoch(self, lengths: np.ndarray, batches: int, rng: np.random.Generator) -> np.ndarray:
        shuffled = rng.permutation(len(lengths))[: batches * self.batch_size]
        pool = POOL * self.batch_size
        parts = [shuffled[start : start + pool] for start in range(0, len(shuffled), pool)]
        ordered = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
        return rng.permutation(ordered.reshape(batches, self.batch_size))

    def steps(self, accumulation: int) -> int:
        """Optimizer steps."""
        return math.ceil(len(self) / self.batch_size / accumulation)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Example:
        return {**self.examples[self.order[place]], ITEM: self.order[place]}


class _Taught:
    """Batches with what the teacher says of them, where that is kept."""

    def __init__(self, collate: Collator, kept: TeacherOutputs | None) -> None:
        self.collate, self.kept = collate, kept

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(examples)
        numbers = batch.pop(ITEM).tolist()
        if self.kept is not None:
            batch[KEPT] = self.kept.look_up(numbers, batch["attention_mask"].bool())
        return batch


class _Trainer(transformers.Trainer):
    """A Trainer whose loss is the distance of student to teacher."""

    objective: DistillationObjective
    kept: TeacherOutputs | None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The weighted sum; the signature is the Trainer's."""
        kept = inputs.pop(KEPT, None)
        inputs, labels = inputs_and_labels(inputs, self.objective.pipeline)
        mask = mask_of(inputs)
        if self.kept is not None:
            wanted = self.kept.targets(kept)
        else:
            with torch.no_grad(), self.accelerator.autocast():
                wanted = self.objective.targets(inputs, mask)
        return self.objective.loss(model(inputs), wanted, mask, labels)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The Trainer's, of copies where two names share memory (a head that is the table of words): safetensors refuses that."""
        assert self.model is not None
        state = self.model.state_dict() if state_dict is None else state_dict
        seen = Counter(tensor.data_ptr() for tensor in state.values())
        super()._save(output_dir, {name: t.clone() if seen[t.data_ptr()] > 1 else t for name, t in state.items()})


class _Watch(transformers.TrainerCallback):
    """Saves every few minutes, tells how far training is, and ends it when its time is over."""

    def __init__(self, options: DistillationSettings, progress: Callable[[str], None], deadline: float | None) -> None:
        self.options, self.progress = options, progress
        self.deadline = math.inf if deadline is None else deadline
        self.begun = self.saved = self.targets = time.monotonic()
        self.trained_from = self.begun  # later than `begun`, where the teacher was asked about all texts first
        self.first, self.out_of_time, self.too_late = 0, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first, self.trained_from = state.global_step, time.monotonic()
        on = f", going on at step {self.first}" if self.first else ""
        self.progress(f"distilling: {state.max_steps} steps{on}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if distributed.agreed(now - self.saved >= 60 * self.options.save_minutes):
            self.saved, control.should_save = now, True
        if now - self.targets >= REPORT_SECONDS:
            self.targets = now
            left = (now - self.trained_from) / (state.global_step - self.first) * (state.max_steps - state.global_step)
            self.progress(f"distilling: step {state.global_step} of {state.max_steps}, {left / 60:.1f} min left")
        limit = self.options.time_limit_s
        if limit is not None and distributed.agreed(now - self.begun > limit):
            self.out_of_time = control.should_training_stop = True
        if distributed.agreed(now > self.deadline):
            self.too_late = control.should_save = control.should_training_stop = True
