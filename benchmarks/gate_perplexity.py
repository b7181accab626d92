"""Real per-item values of a perplexity for gate_calibration.py: a small GPT-2-shaped network and itself with rounded weights.

    .venv/bin/python benchmarks/gate_perplexity.py [--steps 300]

Trained on characters of tinyshakespeare's train split ($FMOPT_DATA, ../shared/data) for at most three minutes; items are
stretches of 96 to 128 characters of the validation and test splits. The candidate has its matrices rounded to nearest in
3 bits, and as many of them in 2 as cost about 1 % (all that was tried is noted). Writes
results/gate-calibration-perplexity-items.json: summed negative log-likelihood and characters of every item, for both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from gate_populations import PERPLEXITY_ITEMS
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fmopt.evaluation.metrics import METRICS
from fmopt.measurement import host_probe

DATA = Path(os.environ.get("FMOPT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "tinyshakespeare"
LENGTH, BATCH, MOST_SECONDS = 128, 16, 180


def main() -> None:
    """Train, round, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    texts = {
        split: gzip.decompress((DATA / f"{split}.txt.gz").read_bytes()).decode()
        for split in ("train", "validation", "test")
    }
    letters = sorted(set("".join(texts.values())))
    ids = {split: torch.tensor([letters.index(letter) for letter in text]) for split, text in texts.items()}
    net = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(letters), n_positions=LENGTH, n_embd=96, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    steps = train(net, ids["train"], asked.steps)
    pieces = stretches(torch.cat([ids["validation"], ids["test"]]), asked.seed)
    reference = score(net, pieces)
    formula = METRICS["perplexity"]
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tried = {}
    for coarse in range(13):
        net.load_state_dict(weights)
        round_weights(net, coarse)
        tried[coarse] = score(net, pieces)
    worse = {coarse: float(formula.of(rows) / formula.of(reference) - 1) for coarse, rows in tried.items()}
    chosen = min(worse, key=lambda coarse: abs(worse[coarse] - 0.01))
    print(
        f"perplexity {float(formula.of(reference)):.3f} after {steps} steps; worse by {worse}; {chosen} matrices in 2 bits"
    )
    document = {
        "what": "nats and characters of stretches of tinyshakespeare, of a GPT-2-shaped network and of it with rounded weights",
        "command": f"python benchmarks/gate_perplexity.py --steps {asked.steps} --seed {asked.seed}",
        "steps": steps, "matrices_in_2_bits": chosen, "worse_by": worse, "seed": asked.seed,
        "host": host_probe.host_fingerprint(),
        "versions": host_probe.versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "reference": np.round(reference, 4).tolist(), "candidate": np.round(tried[chosen], 4).tolist(),
    }  # fmt: skip
    PERPLEXITY_ITEMS.write_text(json.dumps(document))


def train(net: nn.Module, ids: torch.Tensor, steps: int) -> int:
    """Steps of AdamW on random stretches, fewer when the time is over; how many were made."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    begun = time.process_time()
    for step in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,))
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = net(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.process_time() - begun > MOST_SECONDS:
            return step + 1
    return steps


def stretches(ids: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Items of unequal lengths, as texts are."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(96, LENGTH + 1, size=len(ids) // 96))
    return [part for part in torch.tensor_split(ids, ends[ends < len(ids)].tolist()) if len(part) > 8]


@torch.inference_mode()
def score(net: nn.Module, pieces: list[torch.Tensor]) -> np.ndarray:
    """Summed negative log-likelihood (nats) and predicted characters of every item, shape (n, 2)."""
    net.eval()
    rows = []
    for piece in pieces:
        logits = net(piece[None]).logits[0, :-1]
        rows.append((float(nn.functional.cross_entropy(logits, piece[1:], reduction="sum")), len(piece) - 1))
    return np.asarray(rows)


@torch.inference_mode()
def round_weights(net: nn.Module, coarse: int) -> None:
    """Matrices but for the embeddings to nearest on a symmetric grid, a scale for each output; the first `coarse` in 2 bits."""
    matrices = [w for name, w in net.named_parameters() if w.ndim == 2 and "wte" not in name and "wpe" not in name]
    for number, weight in enumerate(matrices):
        most = 1 if number < coarse else 3  # the largest whole number of 2 or 3 bits with a sign
        scale = weight.abs().amax(dim=0) / most  # Conv1D of GPT-2: [inputs, outputs]
        weight.copy_((weight / scale).round().clamp(-most, most) * scale)


if __name__ == "__main__":
    main()
