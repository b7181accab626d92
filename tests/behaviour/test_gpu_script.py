"""The GPU benchmark, as far as it works without one: the same code, small, on a CPU."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_pretended(tmp_path: Path) -> None:
    got = run("-o", str(tmp_path / "found.json"))
    assert got.returncode == 4
    assert got.stderr.count("\n") == 1
    assert got.stderr.startswith("UNMEASURED: PyTorch finds no NVIDIA GPU")
    assert not (tmp_path / "found.json").exists()
    assert run("--device", "cpu", "-o", str(tmp_path / "found.json")).returncode == 2


def test_the_whole_script_runs_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    wanted = ("eager", "compile-fp16", "cuda-graph-fp16", "onnxruntime-fp32")
    got = run(
        "--device", "cpu", "--tiny", "--subjects", "minilm", "gpt2-decode", "--variants", *wanted,
        "--samples", "3", "--seconds", "0.1", "-o", str(out),
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    found = json.loads(out.read_text())
    assert found["ceilings"]["fp32_tflops"] > 0
    assert found["ceilings"]["bandwidth_gbs"] > 0
    minilm, decode = found["subjects"]["minilm"], found["subjects"]["gpt2-decode"]
    assert minilm["refused"] == {"cuda-graph-fp16": "needs a GPU"}
    assert set(decode["refused"]) == {"cuda-graph-fp16", "eager-fused-fp32", "onnxruntime-fp32"}
    for cell in [*minilm["cells"], *decode["cells"]]:
        assert cell["failed"] == {}
        assert all(len(one["samples_ms"]) >= 3 for one in cell["variants"].values())
        assert {name for name, one in cell["variants"].items() if one["cosine_to_fp32"] < 0.99} == set()
    exact = minilm["cells"][0]["variants"]
    assert exact["eager-fused-fp32"]["cosine_to_fp32"] == pytest.approx(1, abs=1e-5)
    assert exact["onnxruntime-fp32"]["cosine_to_fp32"] == pytest.approx(1, abs=1e-5)
    # 2 layers: 4 products of 32 × 32 and 2 of 32 × 64 for each of 16 tokens, and attention's 2 of 16 × 16 × 32
    operations = 2 * 2 * (16 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 16 * 16 * 32)
    seconds = statistics.median(exact["eager-fp32"]["samples_ms"]) / 1e3
    assert exact["eager-fp32"]["tflops"] == pytest.approx(operations / seconds / 1e12, rel=1e-6)
