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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_model, save_model
from torch import nn

from fmopt import distillation_losses as losses
from fmopt import several
from fmopt.edge import open_preprocessor
from fmopt.edge_seq2seq import NEW
from fmopt.errors import PassError
from fmopt.examples import IGNORED, Example, FileExamples, unlabelled_examples
from fmopt.fake_quantize import load_rounding, save_rounding
from fmopt.families.base import Family
from fmopt.model import CheckpointFacts, TorchModel, quiet
from fmopt.own_answers import answered_by
from fmopt.passes.base import Context
from fmopt.seq2seq import generates, makes_answers
from fmopt.structure import load_facts, save_checkpoint
from fmopt.tasks.base import Raw
from fmopt.teacher_outputs import TeacherOutputs, Terms, Told, outputs_key, room_on_disk
from fmopt.tokenizer import TOKENIZER
from fmopt.training import WARMUP, WEIGHT_DECAY, Collator, has_bf16, last_checkpoint, memory_kept, weights_digest

if TYPE_CHECKING:
    from fmopt.passes.distill import Distill

LAYERDROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # of modules and configurations
LABELS = ("labels", "start_positions", "end_positions")
LABELLED = {"task": 0.2, "logits": 1.0, "hidden": 1.0, "relations": 0.0}
GENERATION = {"task": 0.5, "logits": 1.0, "hidden": 1.0, "relations": 0.0}  # what is judged is the likelihood of texts
EMBEDDING = {"cosine": 1.0, "similarity": 1.0, "hidden": 1.0, "relations": 0.0}
TELLS = {
    "logits": "outputs",
    "hidden": "hidden",
    "relations": "relations",
    "cosine": "vectors",
    "similarity": "vectors",
}
PER_TOKEN = frozenset({"hidden", "relations"})  # and outputs, of some tasks
SPELLING = "automatic-speech-recognition"
TOKEN_TASKS = ("token-classification", "question-answering")
ITEM, KEPT = "item", "kept"  # in a batch: which examples it has, and what is kept of the teacher about them
POOL = 50  # batches' worth of examples sorted by length at a time, as the Trainer's own grouping
MATCHED_ITEMS = 16  # examples that student and teacher layers are matched on
TOLD_S = 20.0  # seconds between two lines of progress
FINISHED, RECORD, ROUNDING = "student.safetensors", "distill.json", "rounding.safetensors"
_VERSION = 1  # of what is trained how


def distill(model: TorchModel, options: Distill, ctx: Context) -> TorchModel:
    """`model` trained in place; see `passes/distill.py` for the options. PassError for data or a teacher that do not fit.

    The losses per step are written to distill.json in the scratch folder, beside the trained weights.
    """
    if ctx.teacher is None:
        raise PassError("distill: there is no teacher here; run it from a recipe of `fmopt optimize`")
    teacher = ctx.teacher(options.teacher)
    _require_fit(teacher.facts, model.facts)
    examples = ctx.examples()
    if options.unlabelled is not None:
        examples = [*examples, *_unlabelled(options.unlabelled, model.facts)]
    if len(examples) < 2:
        raise PassError("distill: there are no texts to train on; give data with a train split, or `unlabelled`")
    answers = makes_answers(model.facts.pipeline)
    if answers and isinstance(examples, FileExamples) and all(item.label is None for item in examples.items):
        raise PassError(
            "distill: no sound of the train split has a transcript to learn the words by; give some that have"
        )
    if answers and not isinstance(examples, FileExamples):
        examples = answered_by(teacher, examples, ctx)
    bf16 = has_bf16() if options.bf16 is None else options.bf16
    with _work_folder(_key(model, teacher.facts, examples, options, bf16, ctx.seed), ctx.scratch) as work:
        if not (work / FINISHED).is_file():
            shared = (examples, options, bf16, work, ctx.seed)
            several.together(
                lambda: _train(model, teacher, *shared, ctx.progress, ctx.deadline), _train_along, _handed_over(model, work),
                model.facts, teacher.facts, *shared,
            )  # fmt: skip
        load_model(model.net, work / FINISHED)
    model.net.eval()
    return model.after(f"distill({options.teacher or 'baseline'})")


# ------------------------------------------------------------------------------------------------ what it starts from


def _require_fit(teacher: CheckpointFacts, student: CheckpointFacts) -> None:
    """PassError unless both make the same kind of outputs of the same token ids, or of the same pictures."""
    if teacher.digest == student.digest:
        return
    same = ("task", "labels", "multi_label", "pooling", "image", "audio", "start", "first", "stop_ids")
    wrong = [name for name in same if teacher.pipeline.get(name) != student.pipeline.get(name)]
    if all(facts.modality == "text" or makes_answers(facts.pipeline) for facts in (student, teacher)):
        ours, theirs = (
            tokenizers.Tokenizer.from_file(str(facts.folder / TOKENIZER)).get_vocab() for facts in (student, teacher)
        )
        wrong += ["vocabulary"] if ours != theirs else []
    if wrong:
        raise PassError(
            f"distill: the teacher {teacher.source.title} has another {' and '.join(wrong)} than the student; "
            "choose a teacher trained on the same labels with the same tokenizer"
        )


def _unlabelled(path: str, facts: CheckpointFacts) -> list[Example]:
    """Examples of a text file, one text a line; a tab in a line parts the two texts of a pair."""
    if facts.modality != "text":
        raise PassError(
            f"distill: unlabelled texts are of no use to a model that reads {facts.modality}s; leave them out"
        )
    try:
        lines = [line.strip() for line in Path(path).read_text("utf8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PassError(f"distill: the unlabelled texts {path} cannot be read ({error}); give UTF-8 text") from error
    preprocessor = open_preprocessor(facts.folder, dict(facts.pipeline))
    return unlabelled_examples(preprocessor, facts, [_raw(line, facts.task, path) for line in lines])


def _raw(line: str, task: str, path: str) -> Raw:
    if task == "token-classification":
        return line.split()
    first, tab, second = line.partition("\t")
    if tab:
        return first, second
    if task == "question-answering":
        raise PassError(f"distill: {path} has a line without a tab; write question, tab, context")
    return line


def _key(
    model: TorchModel, teacher: CheckpointFacts, examples: Sequence[Example], options: Distill, bf16: bool, seed: int
) -> str:
    """sha256 over all that the trained weights depend on."""
    chosen = {**asdict(options), "save_minutes": None, "unlabelled": None, "bf16": bf16}
    del chosen["cache_gb"]  # where the teacher's words are read from does not change them
    total = hashlib.sha256(repr((_VERSION, chosen, teacher.digest, model.facts.digest, seed)).encode())
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
    model: TorchModel, teacher: TorchModel, examples: Sequence[Example], options: Distill, bf16: bool, work: Path,
    seed: int, progress: Callable[[str], None], deadline: float | None = None,
) -> None:  # fmt: skip
    """Train and write the student's weights to `work`, whole or not at all; the first of several processes writes.

    PassError at the deadline, what is learned so far being saved.
    """
    transformers.set_seed(seed)  # before the projection gets its random weights
    cuda = torch.cuda.is_available()
    collate = Collator(dict(model.facts.pipeline.get("padding", {})))
    lesson = _lesson(model, teacher, options, collate(examples[:MATCHED_ITEMS]))
    schedule = _Schedule(examples, options.batch_size, options.epochs, seed)
    watch = _Watch(options, progress, deadline)
    arguments = transformers.TrainingArguments(
        output_dir=str(work), num_train_epochs=1, learning_rate=options.learning_rate, warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY, per_device_train_batch_size=several.share_of(schedule.batch_size),
        gradient_accumulation_steps=options.accumulation, train_sampling_strategy="sequential", seed=seed,
        bf16=bf16, use_cpu=not cuda, dataloader_pin_memory=cuda, remove_unused_columns=False, save_strategy="no",
        save_total_limit=1, logging_strategy="steps", logging_steps=max(1, schedule.steps(options.accumulation) // 50),
        disable_tqdm=True, report_to="none", average_tokens_across_devices=False,
    )  # fmt: skip
    trainer = _Trainer(model=lesson.student, args=arguments, train_dataset=schedule, callbacks=[watch])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.lesson = lesson
    lesson.teacher.to(arguments.device)
    last = last_checkpoint(work)
    with quiet(transformers.utils.logging), memory_kept(), _every_layer(model.net, teacher.net):
        trainer.kept = _kept_outputs(trainer, teacher.facts, examples, options, collate, work, progress, deadline)
        trainer.data_collator = _Taught(collate, trainer.kept)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if watch.too_late:
        done = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise PassError(f"the time limit was reached at {done} of distilling; the same command goes on from there")
    if several.follows():
        return
    net = model.net.cpu()
    net.zero_grad(set_to_none=True)
    if not all(bool(parameter.isfinite().all()) for parameter in net.parameters()):
        raise PassError(f"distill: training diverged; give a learning_rate below {options.learning_rate}")
    record = {
        "losses": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
        "steps": trainer.state.global_step, "stopped": "time limit" if watch.out_of_time else "",
        "weights": dict(lesson.weights), "layers": lesson.layers,
    }  # fmt: skip
    (work / RECORD).write_text(json.dumps(record, indent=1))
    save_model(net, str(work / "part"))
    (work / "part").replace(work / FINISHED)
    for folder in work.glob("checkpoint-*"):
        shutil.rmtree(folder)


def _kept_outputs(
    trainer: _Trainer, teacher: CheckpointFacts, examples: Sequence[Example], options: Distill, collate: Collator,
    work: Path, progress: Callable[[str], None], deadline: float | None,
) -> TeacherOutputs | None:  # fmt: skip
    """What the teacher says of every example, on disk beside `work`; None where it is asked in every epoch."""
    lesson, device = trainer.lesson, trainer.args.device
    if not lesson.kinds or _of_a_vocabulary(teacher.pipeline):  # all words for every token are never cheaper to read
        return None
    if isinstance(examples, FileExamples):
        return None
    inputs = [name for name in examples[0] if name not in LABELS]
    about = {"kinds": lesson.kinds, "layers": lesson.teacher.layers, "related": lesson.teacher.related,
             "pooling": teacher.pipeline.get("pooling"), "bf16": trainer.args.bf16, "device": device.type}  # fmt: skip
    folder = work.parent / f"teacher-{outputs_key(teacher.digest, examples, inputs, about)[:16]}"

    def ask(batch: dict[str, torch.Tensor]) -> Told:
        with torch.no_grad(), trainer.accelerator.autocast():
            return lesson.told({name: batch[name].to(device) for name in inputs}, batch["attention_mask"].to(device))

    of_tokens = {"outputs"} if teacher.task in TOKEN_TASKS else set()
    outputs = TeacherOutputs(folder, examples, collate, ask, PER_TOKEN | of_tokens)
    terms = Terms(options.epochs, room_on_disk(folder, options.cache_gb * 1e9), options.time_limit_s)
    if not outputs.kept(terms, progress, lambda: deadline is not None and time.monotonic() > deadline):
        return None
    lesson.teacher.to("cpu")  # its memory on the device is the student's now
    return outputs


def _handed_over(model: TorchModel, work: Path) -> Path | None:
    """The student as a checkpoint for the processes that train along; networks do not survive pickling."""
    if several.world() == 1:
        return None
    folder = save_checkpoint(model, work / "student")
    save_rounding(model.net, folder / ROUNDING)
    return folder


def _train_along(
    student: Path, facts: CheckpointFacts, teacher: CheckpointFacts, examples: Sequence[Example], options: Distill,
    bf16: bool, work: Path, seed: int,
) -> None:  # fmt: skip
    """`_train` in a process that follows; the folders must be in its reach."""
    learner = load_facts(replace(facts, source=replace(facts.source, folder=student)))
    load_rounding(learner.net, student / ROUNDING)
    _train(learner, load_facts(teacher), examples, options, bf16, work, seed, lambda text: None)


def _mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Bool [B, n], True on tokens that are no padding; None where nothing is padded."""
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else None


def _of_states(net: Any, mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
    """`mask` as one of `states` [B, n, w]: a network of sounds makes a frame of some hundred samples."""
    if mask is None or mask.shape[1] == states.shape[1]:
        return mask
    return torch.as_tensor(net._get_feature_vector_attention_mask(states.shape[1], mask.long())).bool()


@contextmanager
def _every_layer(*nets: nn.Module) -> Iterator[None]:
    """While entered, no layer is left out at random (layerdrop): the states after each of them are learned from."""
    holders = {
        id(one): one for net in nets for module in net.modules() for one in (module, getattr(module, "config", None))
    }
    before = [(one, name, getattr(one, name)) for one in holders.values() for name in LAYERDROPS if hasattr(one, name)]
    for one, name, _ in before:
        setattr(one, name, 0.0)
    try:
        yield
    finally:
        for one, name, share in before:
            setattr(one, name, share)


def _of_a_vocabulary(pipeline: Mapping[str, Any]) -> bool:
    """Whether a network says words: its logits are of all that it knows."""
    return pipeline["task"] == "fill-mask" or generates(pipeline)


def _all_states(found: Any) -> list[torch.Tensor]:
    """The states [B, n, w] after every layer, those of an encoder before those of its decoder."""
    if getattr(found, "encoder_hidden_states", None) is not None:
        return [*found.encoder_hidden_states[1:], *found.decoder_hidden_states[1:]]
    return list(found.hidden_states[1:])


def _inputs_and_labels(
    batch: Mapping[str, torch.Tensor], pipeline: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a network reads of a batch, and what it is asked for. A decoder reads the answer asked for, one token behind."""
    labels = {name: value for name, value in batch.items() if name in LABELS}
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    if makes_answers(pipeline):
        told = labels["labels"]
        behind = told.masked_fill(told == IGNORED, pipeline["start"][0])[:, :-1]
        inputs[NEW] = torch.cat([torch.full_like(told[:, :1], pipeline["start"][0]), behind], dim=1)
    return inputs, labels


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

    lesson: _Lesson
    kept: TeacherOutputs | None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The weighted sum; the signature is the Trainer's."""
        kept = inputs.pop(KEPT, None)
        inputs, labels = _inputs_and_labels(inputs, self.lesson.pipeline)
        mask = _mask(inputs)
        if self.kept is not None:
            wanted = self.kept.told(kept)
        else:
            with torch.no_grad(), self.accelerator.autocast():
                wanted = self.lesson.told(inputs, mask)
        return self.lesson.loss(model(inputs), wanted, mask, labels)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The Trainer's, of copies where two names share memory (a head that is the table of words): safetensors refuses that."""
        assert self.model is not None
        state = self.model.state_dict() if state_dict is None else state_dict
        seen = Counter(tensor.data_ptr() for tensor in state.values())
        super()._save(output_dir, {name: t.clone() if seen[t.data_ptr()] > 1 else t for name, t in state.items()})


class _Watch(transformers.TrainerCallback):
    """Saves every few minutes, tells how far training is, and ends it when its time is over."""

    def __init__(self, options: Distill, progress: Callable[[str], None], deadline: float | None) -> None:
        self.options, self.progress = options, progress
        self.deadline = math.inf if deadline is None else deadline
        self.begun = self.saved = self.told = time.monotonic()
        self.first, self.out_of_time, self.too_late = 0, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = state.global_step
        on = f", going on at step {self.first}" if self.first else ""
        self.progress(f"distilling: {state.max_steps} steps{on}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if several.agreed(now - self.saved >= 60 * self.options.save_minutes):
            self.saved, control.should_save = now, True
        if now - self.told >= TOLD_S:
            self.told = now
            left = (now - self.begun) / (state.global_step - self.first) * (state.max_steps - state.global_step)
            self.progress(f"distilling: step {state.global_step} of {state.max_steps}, {left / 60:.1f} min left")
        limit = self.options.time_limit_s
        if limit is not None and several.agreed(now - self.begun > limit):
            self.out_of_time = control.should_training_stop = True
        if several.agreed(now > self.deadline):
            self.too_late = control.should_save = control.should_training_stop = True


# ------------------------------------------------------------------------------------------------ what is compared


class _View(nn.Module):
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


class _Lesson:
    """Student, teacher, and how much each loss between them counts."""

    def __init__(
        self, student: _View, teacher: _View, facts: CheckpointFacts, weights: Mapping[str, float], temperature: float
    ) -> None:
        self.student, self.teacher, self.weights = student, teacher, weights
        self.pipeline, self.temperature, self.heads = facts.pipeline, temperature, 1
        several = bool(facts.pipeline.get("multi_label"))
        self.kind = "several" if several else "number" if facts.task == "text-regression" else "classes"

    @property
    def layers(self) -> list[list[int]]:
        """Pairs of a student layer and the teacher layer it learns from."""
        return [list(pair) for pair in zip(self.student.layers, self.teacher.layers, strict=True)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the losses need of the teacher; nothing where labels alone teach."""
        return tuple(sorted({TELLS[name] for name, weight in self.weights.items() if weight and name in TELLS}))

    def told(self, inputs: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> Told:
        """What the teacher says of a batch, by kind."""
        if not self.kinds:
            return {}
        seen = self.teacher(inputs)
        if "vectors" in self.kinds:
            seen["vectors"] = [self._vectors(seen["outputs"][0], mask)]
        return {kind: seen[kind] for kind in self.kinds}

    def loss(
        self, got: Any, wanted: Told, mask: torch.Tensor | None, labels: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The weighted sum for one batch; `mask` is bool [B, n], or of the samples that states are made of."""
        mask = _of_states(self.student.net, mask, got["hidden"][0])
        terms = {name: weight for name, weight in self.weights.items() if weight}
        return torch.stack([w * self._term(name, got, wanted, mask, labels) for name, w in terms.items()]).sum()

    def _term(self, name: str, got: Any, wanted: Told, mask: torch.Tensor | None, labels: Any) -> torch.Tensor:
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
        spells = self.pipeline["task"] == SPELLING and asked is None
        if name == "task" and spells:
            return losses.spelled_loss(answers[0], labels["labels"], mask, self.pipeline["ctc"]["blank"])
        if name == "task":
            return losses.task_loss(answers, labels)
        wished = self._answers(wanted["outputs"], mask)
        if asked is not None:
            wished = [logits[asked[0]] for logits in wished]
        if (spells or self.pipeline["task"] == "token-classification") and mask is not None:
            answers, wished = ([logits[mask] for logits in part] for part in (answers, wished))
        return losses.logit_loss(answers, wished, self.temperature, self.kind)

    def _asked(
        self, labels: Mapping[str, torch.Tensor], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(bool [B, n] where a word of the vocabulary is asked for, the words [K]); None in other tasks.

        Of a masked text where masks are: elsewhere the token can be read, and there is nothing to learn. Of a text that goes
        on, each place asks for the token after it. Of an answer, every place that it has.
        """
        if not _of_a_vocabulary(self.pipeline):
            return None
        words = labels["labels"]
        if makes_answers(self.pipeline):
            return words != IGNORED, words[words != IGNORED]
        if self.pipeline["task"] == "text-generation":
            words = torch.nn.functional.pad(words[:, 1:], (0, 1), value=IGNORED)
        place = words != IGNORED if mask is None else mask & (words != IGNORED)
        return place, words[place]

    def _masks(
        self, layers: int, mask: torch.Tensor | None, labels: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """That of the states of every layer: those of a decoder are of the answer's tokens."""
        if not makes_answers(self.pipeline):
            return [mask] * layers
        return [mask if layer < self.student.encoder_layers else labels["labels"] != IGNORED for layer in range(layers)]

    def _vectors(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert mask is not None  # only texts are pooled
        return losses.pooled(states, mask, self.pipeline.get("pooling", "mean"))

    def _answers(self, outputs: list[torch.Tensor], mask: torch.Tensor | None) -> list[torch.Tensor]:
        """Logits, those of padding out of reach where tokens compete (question answering)."""
        if self.pipeline["task"] != "question-answering":
            return outputs
        assert mask is not None
        return [logits.masked_fill(~mask, losses.FAR_BELOW) for logits in outputs]


def _lesson(model: TorchModel, teacher: TorchModel, options: Distill, batch: dict[str, torch.Tensor]) -> _Lesson:
    """Which layers learn from which, through what, and how much each loss counts; `batch` is one of real items."""
    inputs, labels = _inputs_and_labels(batch, model.facts.pipeline)
    outputs = list(model.facts.pipeline["outputs"])
    (states, ends), (taught_states, taught_ends) = (_all_layers(part.net, inputs) for part in (model, teacher))
    widths = [states[0].shape[-1], taught_states[0].shape[-1]]
    projection = nn.Identity() if widths[0] == widths[1] else nn.Linear(widths[0], widths[1])
    student = _View(model.net, outputs, range(len(states)), projection, ends)
    mask = _of_states(model.net, _mask(inputs), states[0])
    answer = labels["labels"] != IGNORED if makes_answers(model.facts.pipeline) else mask
    matched = losses.matched_layers(states[:ends], taught_states[:taught_ends], mask) if ends else []
    matched += [taught_ends + n for n in losses.matched_layers(states[ends:], taught_states[taught_ends:], answer)]
    taught = _View(teacher.net.requires_grad_(False), outputs, matched, nn.Identity(), taught_ends)
    names = [_last_projections(part.net, part.family) for part in (model, teacher)]
    weights = _weights(options, model.facts, widths[0] == widths[1], related=all(names))
    lesson = _Lesson(student, taught, model.facts, weights, options.softened(model.facts))
    if weights["relations"]:
        student.related, taught.related = names
        lesson.heads = _relation_heads(student, taught, inputs)
    return lesson


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


def _weights(options: Distill, facts: CheckpointFacts, same_width: bool, related: bool) -> dict[str, float]:
    """How much each loss counts: the task's defaults, then what the options say. PassError for what cannot be compared.

    Where widths differ, relations say more than states seen through a random projection, if there are layers to relate.
    """
    defaults = GENERATION if generates(facts.pipeline) else LABELLED
    found = dict(EMBEDDING if facts.task == "sentence-embedding" else defaults)
    if related and not same_width:
        found |= {"hidden": 0.0, "relations": 1.0}
    unknown = [name for name in options.weights if name not in found]
    if unknown:
        raise PassError(f"distill: {facts.task} has no loss {unknown[0]!r}; it has {', '.join(found)}")
    found |= options.weights
    if found["relations"] and not related:
        raise PassError(
            f"distill: relations need known attention blocks in one stack, which {facts.model_type} has not; give hidden"
        )
    if not any(found.values()):
        raise PassError("distill: all weights are 0, so there is nothing to learn; leave one above 0")
    return found


def _relation_heads(student: _View, teacher: _View, inputs: Mapping[str, torch.Tensor]) -> int:
    """Relation heads that both widths can be cut into: the teacher's attention heads, or fewer."""
    with torch.no_grad():
        widths = [part.shape[-1] for view in (student, teacher) for part in view(inputs)["relations"]]
    return losses.relation_heads(widths, int(teacher.net.config.num_attention_heads))  # type: ignore[union-attr,arg-type]
