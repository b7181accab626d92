"""A checkpoint's catalogue of items: what it says of a pipeline, and how one is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.edge.recommendation import CATALOGUE, read_catalogue
from fmopt.models.checkpoint_files import CheckpointFiles

SOME = 64


def read_items(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The part of a pipeline that says what a network of `config` takes; CheckpointError when its catalogue does not fit."""
    try:
        items = read_catalogue(files.folder).items
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if len(items) + 1 != config.vocab_size:
        raise CheckpointError(
            f"{files.folder / CATALOGUE} has {len(items)} items and the network scores {config.vocab_size - 1}; copy the file "
            "that this checkpoint was trained with"
        )
    return {
        "inputs": ["input_ids", "attention_mask"],
        "max_length": int(config.max_position_embeddings),
        "padding": {"id": 0, "type_id": 0, "token": "", "side": "right"},
        "some_items": [name for name, _ in items[:SOME]],  # for what runs without data
    }


def write_catalogue(items: Sequence[str], out: Path) -> dict[str, int]:
    """items.json of `out`, of ids and titles parted by a tab; the sizes that a config must name."""
    pairs = [item.partition("\t")[::2] for item in items]
    (out / CATALOGUE).write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return {"vocab_size": len(pairs) + 1, "pad_token_id": 0}
