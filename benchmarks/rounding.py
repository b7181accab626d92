"""What 4-bit weights of a decoder's layers lose in perplexity, by how they are rounded: in PyTorch, the head in float.

    .venv/bin/python benchmarks/rounding.py CHECKPOINT --train FILE --test FILE [--only autoround,gptq] [--iterations 64]

Texts are files, also .gz. The result, with host, versions, seed, date and command, goes to benchmarks/results/rounding.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmopt.core.model import Inputs
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.surgery.projections import put_weight, weight_of
from fmopt.passes.autoround import AutoRound
from fmopt.passes.base import Context
from fmopt.passes.gptq import Gptq
from fmopt.passes.quantization.blockwise import rounded
from fmopt.passes.quantization.rounded_linears import layer_linears

RESULT = Path(__file__).resolve().parent / "results" / "rounding.json"
WAYS = ("float", "nearest", "mse", "gptq", "autoround")
BITS, BLOCK = 4, 32
CHARACTERS = 1_000_000  # of a file: what is used of it is less


def rows_of(model: TorchModel, path: Path, count: int, tokens: int) -> np.ndarray:
    """Token ids [count, tokens] from the beginning of a file."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint.tokenizer_file(model.metadata)))
    with gzip.open(path, "rt", encoding="utf8") if path.suffix == ".gz" else path.open(encoding="utf8") as stream:
        text = stream.read(CHARACTERS)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids[: count * tokens], np.int64).reshape(-1, tokens)


def nearest(weight: np.ndarray) -> np.ndarray:
    """[out, in] rounded by the scale that just holds each block's largest weight."""
    blocks = weight.reshape(len(weight), -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scale = np.where(largest == 0, 1, largest / -8)
    return (np.clip(np.rint(blocks / scale), -8, 7) * scale).reshape(weight.shape)


def least_squares(weight: np.ndarray) -> np.ndarray:
    """[out, in] as `quantize_weights` rounds with method "mse"."""
    packed, scales = rounded(np.ascontiguousarray(weight.T), BITS, BLOCK)
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, BLOCK).astype(np.float32) - 8
    return (numbers * scales[..., None]).reshape(weight.shape)


def network(folder: Path, way: str, rows: np.ndarray, asked: argparse.Namespace) -> TorchModel:
    """The checkpoint's network, its layers rounded in one of the `WAYS`."""
    model = checkpoint.load(checkpoint.inspect(resolve(str(folder)), task="text-generation"))
    if way in ("nearest", "mse"):
        by = nearest if way == "nearest" else least_squares
        for module in layer_linears(model.net).values():
            put_weight(module, torch.from_numpy(by(weight_of(module).numpy())))
    if way in ("gptq", "autoround"):

        def calibration() -> Iterator[Inputs]:
            yield from ({"input_ids": row[None]} for row in rows)

        ctx = Context(model.metadata, host_probe.load_target("host"), calibration, asked.seed, progress=print)
        amount = {"bits": BITS, "block": BLOCK, "samples": len(rows), "tokens": rows.shape[1]}
        model = (Gptq(**amount) if way == "gptq" else AutoRound(**amount, iterations=asked.iterations)).apply(
            model, ctx
        )
    return model


def perplexity(net: Any, rows: np.ndarray) -> float:
    """Of every token of the rows but the first."""
    total = 0.0
    with torch.inference_mode():
        for row in torch.from_numpy(rows):
            logits = net(input_ids=row[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return math.exp(total / (rows.size - len(rows)))


def main() -> None:
    """Measure what is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--iterations", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    plain = checkpoint.load(checkpoint.inspect(resolve(str(asked.checkpoint)), task="text-generation"))
    calibration = rows_of(plain, asked.train, asked.samples, asked.tokens)
    test = rows_of(plain, asked.test, asked.passages, asked.tokens)
    del plain
    found: dict[str, dict[str, float]] = {}
    for way in (way for way in WAYS if way in asked.only.split(",")):
        start = time.monotonic()
        model = network(asked.checkpoint, way, calibration, asked)
        seconds = time.monotonic() - start
        found[way] = {"perplexity": round(perplexity(model.net, test), 4), "seconds": round(seconds, 1)}
        print(way, found[way], flush=True)
        record = {
            "checkpoint": asked.checkpoint.name, "bits": BITS, "block": BLOCK, "iterations": asked.iterations,
            "calibration rows": asked.samples, "passages": asked.passages, "tokens": asked.tokens, "ways": found,
            "train": asked.train.name, "test": asked.test.name, "host": host_probe.cpu_model(),
            "threads": torch.get_num_threads(), "versions": host_probe.versions(), "seed": asked.seed,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        }  # fmt: skip
        asked.out.write_text(json.dumps(record, indent=1) + "\n")  # after each: a later one may fail


if __name__ == "__main__":
    main()
