"""Train a head on labelled data, before anything is optimized."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import ConfigError
from fmopt.core.progress import Progress
from fmopt.data.datasets import catalogue, load_data, training_texts
from fmopt.models import checkpoint, initialization
from fmopt.models import source as models_source
from fmopt.models.source import resolve


def finetune(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
    augment: Sequence[str] | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a task head on `model` into the checkpoint folder `out`; resumes a run that was cut off. Returns its record.

    What is None is as the entry of `models/` says, else 3 epochs in batches of 32 at 5e-5, a patience of 2, and images
    left as they are. `augment` names what is done to images: "shift", "mirror". An entry with a tokenizer to be made has
    it trained on the texts of the train split, one with a catalogue has that made of the items of the data.
    """
    from fmopt.training.collation import AUGMENTATIONS
    from fmopt.training.finetune import finetune as train

    entry = initialization.read_entry(str(model))
    if entry is not None:
        kind = plugins.find("tasks", task or entry["task"])
        texts = (
            training_texts(str(data), kind, columns=columns, seed=seed)
            if "tokenizer" in entry
            else catalogue(str(data), kind, columns=columns)
        )
        task = task or entry["task"]
        cache = models_source.cache_folder()
        model = initialization.write_untrained({**entry, "task": task}, texts, cache, str(model), seed)
    source = resolve(str(model))
    if entry is not None:
        source = dataclasses.replace(source, training=entry.get("finetune", {}))
    asked = {
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "patience": patience,
        "augment": augment,
    }
    settings = {**source.training, **{name: value for name, value in asked.items() if value is not None}}
    unknown = [way for way in settings.get("augment", ()) if way not in AUGMENTATIONS]
    if unknown:
        raise ConfigError(
            f"--augment {unknown[0]}: there is no such change{plugins.did_you_mean(unknown[0], AUGMENTATIONS)}"
        )
    if task is None:
        task = source.task or checkpoint.inspect(source).task
    metadata = checkpoint.inspect(source, task, fresh_head=True)
    kind = plugins.find("tasks", task)
    dataset = load_data(str(data), kind, metadata, columns=columns, seed=seed)
    folder = train(
        metadata,
        dataset,
        kind,
        Path(out),
        labels=dataset.label_names or None,
        time_limit_s=time_limit_s,
        seed=seed,
        progress=progress,
        **settings,
    )
    record: dict[str, Any] = json.loads((folder / "finetune.json").read_text())
    return record
