"""What Arm targets get, and a bundle's own run.py on emulated cores where `make test-arm` has set them up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fmopt
from fmopt.core.target import read_target
from fmopt.edge import host
from fmopt.passes.quantize_static import QuantizeStatic
from fmopt.workflow.search.candidates import quick_candidates

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "arm.py"
EMULATED = Path(os.environ.get("FMOPT_ARM", host.cache_folder() / "arm64"))
TEXTS = (
    "the cat sat on the mat",
    "a small dog ran over the green hill",
    "Paris is a large city",
    "who wrote the book?",
)


def run(*arguments: str, folder: Path = EMULATED) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "FMOPT_ARM": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "bits"), [("raspberry-pi-5", 8), ("graviton3", 8), ("raspberry-pi-4", 7)])
def test_int8_is_signed_and_narrow_only_without_dot_products(name: str, bits: int) -> None:
    scheme = QuantizeStatic().scheme(read_target(name))
    assert (scheme.unsigned, scheme.weight_bits) == (False, bits)
    assert QuantizeStatic().scheme(read_target("x86-avx512-vnni")).unsigned


def test_kernels_for_arm_are_tried_on_arm_only() -> None:
    def providers(name: str) -> set[str]:
        recipes = quick_candidates(read_target(name))
        return {provider for recipe in recipes for provider in recipe.options.get("providers", ())}

    assert {"XnnpackExecutionProvider", "ACLExecutionProvider"} <= providers("raspberry-pi-5")
    assert providers("x86-amx") == set()


def test_without_the_emulated_python_one_line_says_how_to_make_it(tmp_path: Path) -> None:
    got = run(str(tmp_path), "-o", str(tmp_path / "found.json"), folder=tmp_path)
    assert got.returncode == 2
    assert got.stderr.count("\n") == 1
    assert "benchmarks/arm_setup.sh" in got.stderr


@pytest.mark.skipif(not (EMULATED / "finished").is_file(), reason="no emulated arm64 Python: make test-arm")
def test_bundles_answer_on_emulated_cores_with_and_without_dot_products(tiny_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("bert", "sentence-embedding")
    data = tmp_path / "pairs.csv"
    pairs = [(f"{first} {number}", second) for number in range(12) for first in TEXTS for second in TEXTS]
    rows = [f"{first},{second},{number % 5}" for number, (first, second) in enumerate(pairs)]
    data.write_text("sentence1,sentence2,score\n" + "\n".join(rows))
    for precision in ("fp32", "int8"):
        fmopt.export(checkpoint, tmp_path / precision, precision=precision, target="raspberry-pi-5", data=data)
    out = tmp_path / "found.json"
    cpus = ("cortex-a53", "cortex-a76")
    got = run(
        str(tmp_path / "fp32"),
        str(tmp_path / "int8"),
        "--cpus",
        *cpus,
        "--data",
        str(data),
        "--rows",
        "6",
        "-o",
        str(out),
    )
    assert got.returncode in (0, 1), got.stderr
    found = json.loads(out.read_text())
    assert "dotprod" in found["cpus"]["cortex-a76"]
    assert "dotprod" not in found["cpus"]["cortex-a53"]
    checks = {name: one["verdict"]["checks"] for name, one in found["bundles"].items()}
    for name in checks:
        golden = [check for check in checks[name] if check["name"].startswith("golden")]
        assert [check["outcome"] for check in golden] == ["PASS", "PASS"]
        assert checks[name][-1]["name"] == "latency"
        assert checks[name][-1]["outcome"] == "UNMEASURED"
    assert [check["limit"] for check in checks["fp32"][:2]] == [1e-5, 1e-5]
    assert found["bundles"]["int8"]["metric"]["items"] == 12  # six pairs
    assert checks["int8"][2]["name"] == "accuracy drop"
