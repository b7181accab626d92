"""What every training shares: batches padded as production pads them, the precision, the last whole save of a killed run."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fmopt.edge.host import isa_features

# mallopt's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX; then as glibc has them by itself
KEEPING = ((-1, 2**31 - 1), (-2, 256 << 20), (-4, 0))


GIVING_BACK = ((-1, 128 << 10), (-2, 128 << 10), (-4, 65536))


WARMUP = 0.06  # share of the steps, as RoBERTa's fine-tuning (Liu et al., 2019)


WEIGHT_DECAY = 0.01


def has_bf16() -> bool:
    """Whether this machine multiplies bfloat16 natively; emulated, it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(isa_features()))


def last_checkpoint(work: Path) -> Path | None:
    """The newest of the Trainer's saves in `work`, None without one; what a killed save left there is removed."""
    saves = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for folder in saves:
        if not (folder / "trainer_state.json").is_file():  # the Trainer writes it last
            shutil.rmtree(folder)
    return next((folder for folder in reversed(saves) if folder.is_dir()), None)


@contextmanager
def _memory_kept() -> Iterator[None]:
    """While entered, the C library keeps freed memory instead of giving it back to the system after every step.

    Training frees and takes the same large blocks thousands of times; mapped anew each time, they cost a seventh to a half
    of the time on a CPU. Does nothing where the C library is not glibc.
    """
    try:
        tune = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        yield
        return
    for setting, value in KEEPING:
        tune(setting, value)
    try:
        yield
    finally:
        for setting, value in GIVING_BACK:
            tune(setting, value)


@contextmanager
def tuned() -> Iterator[None]:
    """While entered, memory and attention are as training wants them."""
    with _memory_kept(), _attention_of_any_length():
        yield


@contextmanager
def _attention_of_any_length() -> Iterator[None]:
    """While entered, attention is not cuDNN's, which plans anew for every shape: of padded batches nearly each has a new one.

    On an H200 the plans of a distillation's first 80 batches took ten times as long as all the rest of their steps.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def weights_digest(net: torch.nn.Module) -> str:
    """sha256 over all that a network computes by: its class and config, and the names, kinds, shapes and values of all
    parameters and buffers. What earlier steps were called does not say what they left."""
    config = getattr(net, "config", None)
    total = hashlib.sha256(f"{type(net).__name__}:{config.to_json_string() if config is not None else ''}".encode())
    for name, tensor in net.state_dict().items():
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        # as bytes: numpy has no bfloat16
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
