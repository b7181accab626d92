"""PyTorch as it is: eager fp32 and bf16, and torch.compile. Nothing is made; run.py loads the checkpoint itself."""

from __future__ import annotations

from harness import Task, Variant, main


def fp32(model: str, task: Task, calibration: str, out: str) -> None:
    """Eager."""
    model_class = task.auto_class()
    model_class.from_pretrained(model).eval()


def bf16(model: str, task: Task, calibration: str, out: str) -> None:
    """Eager in bfloat16, weights too."""
    import torch

    model_class = task.auto_class()
    model_class.from_pretrained(model, dtype=torch.bfloat16).eval()


def compiled(model: str, task: Task, calibration: str, out: str) -> None:
    """torch.compile with default options; run.py times it warm."""
    import torch

    model_class = task.auto_class()
    torch.compile(model_class.from_pretrained(model).eval())


def compiled_bf16(model: str, task: Task, calibration: str, out: str) -> None:
    """torch.compile in bfloat16."""
    import torch

    model_class = task.auto_class()
    torch.compile(model_class.from_pretrained(model, dtype=torch.bfloat16).eval())


VARIANTS = {
    "eager_fp32": Variant(fp32, "torch", full_precision=True, options={"dtype": "fp32"}),
    "eager_bf16": Variant(bf16, "torch", full_precision=True, options={"dtype": "bf16"}),
    "compile_fp32": Variant(compiled, "torch", full_precision=True, options={"dtype": "fp32", "compile": True}),
    "compile_bf16": Variant(compiled_bf16, "torch", full_precision=True, options={"dtype": "bf16", "compile": True}),
}

if __name__ == "__main__":
    raise SystemExit(main("pytorch", VARIANTS))
