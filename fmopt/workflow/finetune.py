"""Train a head on labelled data, before anything is optimized."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fmopt.core import plugins
from fmopt.core.errors import ConfigError
from fmopt.core.model import ModelSource
from fmopt.core.progress import Progress
from fmopt.data.datasets import catalogue, fitting_tasks, load_data, training_texts
from fmopt.models import checkpoint, initialization
from fmopt.models import source as models_source
from fmopt.models.source import resolve
from fmopt.tasks.base import find_task
from fmopt.training.examples import TRAINED
from fmopt.workflow.job.given import data_path, require_options

if TYPE_CHECKING:
    from fmopt.workflow.job.given import Data


class TrainingOptions(TypedDict, total=False):
    """How a head is trained; None is as the known model says."""

    epochs: float | None
    batch: int | None  # items
    learning_rate: float | None
    patience: int | None  # epochs without a better metric
    augment: Sequence[str] | None  # what is done to images


def finetune(
    model: str | Path,
    data: Data,
    out: str | Path,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **training: Unpack[TrainingOptions],
) -> dict[str, Any]:
    """Train a task head on `model`, and the network under it, into the checkpoint folder `out`; resumes a run that was cut off.

    Arguments:
        model: a checkpoint's folder, a known name or a hub name. A known model with a tokenizer to be made has it trained on the
            texts of the train split, one with a catalogue has that made of the items of the data.
        data: a file, a folder, a hub name, a `datasets.Dataset` or `DatasetDict`, or a list of dicts.
        out: the folder of the checkpoint.
        task: what to train it for; None takes what the model is for.
        columns: the data's column for each role, such as {"text": "review"}.
        time_limit_s: seconds after which training ends with the best epoch so far.
        seed: decides the head's first weights, the order of items, and what is cut from what in data without splits.
        training: epochs, batch, learning_rate and patience (how long and how fast; by default as the known model says, else 3
            epochs in batches of 32 items at 5e-5, and a patience of 2 epochs without a better metric), augment (what is done to
            images: "shift", "mirror").

    Returns the record that is in `out`/finetune.json: the metric's name and value on validation, and every epoch's.
    Raises DataError for data that cannot train the task, ConfigError for a task that is not trained here.

    >>> record = fmopt.finetune(checkpoint, rows, out / "trained", task="text-classification", epochs=1)
    >>> record["metric"]
    'accuracy'
    """
    require_options(training, TrainingOptions.__annotations__)
    data = str(data_path(data))
    from fmopt.training.collation import AUGMENTATIONS
    from fmopt.training.finetune import Settings
    from fmopt.training.finetune import finetune as train

    entry = initialization.read_entry(str(model))
    if entry is not None:
        kind = find_task(task or entry["task"])
        texts = (
            training_texts(data, kind, columns=columns, seed=seed)
            if "tokenizer" in entry
            else catalogue(data, kind, columns=columns)
        )
        task = task or entry["task"]
        cache = models_source.cache_folder()
        model = initialization.write_untrained({**entry, "task": task}, texts, cache, str(model), seed)
    source = resolve(str(model))
    if entry is not None:
        source = dataclasses.replace(source, training=entry.get("finetune", {}))
    asked = {("batch_size" if name == "batch" else name): value for name, value in training.items()}
    settings = {**source.training, **{name: value for name, value in asked.items() if value is not None}}
    unknown = [way for way in settings.get("augment", ()) if way not in AUGMENTATIONS]
    if unknown:
        raise ConfigError(
            f"--augment {unknown[0]}: there is no such change{plugins.did_you_mean(unknown[0], AUGMENTATIONS)}"
        )
    if task is None:
        task = _task_for(source, str(data), columns or {}, str(model), Path(out))
    metadata = checkpoint.inspect(source, task, fresh_head=True)
    kind = find_task(task)
    dataset = load_data(data, kind, metadata, columns=columns, seed=seed)
    folder = train(
        metadata,
        dataset,
        kind,
        Path(out),
        Settings(seed=seed, **settings),
        labels=dataset.label_names or None,
        time_limit_s=time_limit_s,
        progress=progress,
    )
    record: dict[str, Any] = json.loads((folder / "finetune.json").read_text())
    return record


def _task_for(source: ModelSource, data: str, columns: Mapping[str, str], model: str, out: Path) -> str:
    """The task to train a checkpoint for: that of its own head, else what the columns of the data are for.

    ConfigError with the command to give when both leave it open.
    """
    with warnings.catch_warnings():  # said again when the task is known
        warnings.simplefilter("ignore")
        found = source.task or checkpoint.inspect(source).task
    kind = find_task(found)
    if kind.output in TRAINED:
        return found
    fitting = fitting_tasks(data, kind.modality, columns)
    if len(fitting) != 1:
        named = " or ".join(fitting) or "text-classification, or another"
        raise ConfigError(
            f"{model} has no head that is trained, and the columns of {data} fit {len(fitting) or 'none'} of the tasks that are; "
            f"say which: fmopt finetune {model} --data {data} --task TASK -o {out}, with {named} for TASK"
        )
    warnings.warn(
        f"trained for {fitting[0]}, by the columns of {Path(data).name or data}; --task says otherwise", stacklevel=3
    )
    return fitting[0]
