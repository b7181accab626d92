"""The scripts that compare peers, as far as they work without the peers' environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parents[1] / "benchmarks" / "peers"


@pytest.fixture
def scripts(monkeypatch):
    """The scripts import each other by plain names, as they do when run."""
    monkeypatch.syspath_prepend(str(PEERS))
    names = ("harness", "table", "build", "contenders")
    yield lambda name: __import__(name)
    for name in names:
        sys.modules.pop(name, None)


def document(rows):
    return {
        "model": {"title": "tiny"}, "date": "2026-01-02T00:00:00", "batch": 1, "length": 16, "threads": 1, "seed": 0,
        "host": {"cpu": "a cpu", "isa": ["avx2"]}, "versions": {"fmopt": "0"}, "command": "run.py",
        "warnings": ["busy"],
        "rows": rows,
    }  # fmt: skip


def row(name, ms, full_precision=False, error=None):
    return {
        "name": name, "error": error, "size_bytes": 2_500_000, "full_precision": full_precision,
        "made": {"minutes": 0.5, "lines": 3}, "samples_ms": [ms] * 40,
        "accuracy": {"cosine_mean": 0.99, "cosine_min": 0.9, "stsb_spearman": 0.82, "stsb_points_from_fp32": -0.25},
    }  # fmt: skip


def test_table_is_sorted_and_claims_against_the_fastest_full_precision(scripts):
    failed = {**row("olive static", 0, error="no tokenizer"), "samples_ms": []}
    rows = [row("optimum_onnx fp32", 30.0, True), row("nncf fp32", 20.0, True), row("ours", 10.0), failed]
    page = scripts("table").markdown(document(rows), "raw.json")
    names = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert names == ["ours", "nncf fp32", "optimum_onnx fp32"]
    ours = next(line for line in page.splitlines() if line.startswith("| ours"))
    assert "| 2.00 (2.00 – 2.00) | 3.00 (3.00 – 3.00) | 0.9900 (0.900) | 82.00 (-0.25) | 2.5 | 0.50 | 3 |" in ours
    assert "Fastest full precision: nncf fp32." in page
    assert "- olive static: no tokenizer" in page
    assert "**Warning:** busy." in page


def test_lines_are_those_of_the_body_without_docstring_comments_and_blanks(scripts):
    harness = scripts("harness")

    def variant(model: str, calibration: str, out: str) -> None:
        """Says what it is,

        on several lines.
        """
        # a comment
        import json

        text = json.dumps(model)

        Path(out).write_text(text)

    assert harness.lines(variant) == 3
    assert harness.lines(harness.Shell(("one {model}", "two {out}"))) == 2


MAKE = """
from harness import Shell, Variant, main

def good(model, calibration, out):
    open(out + "/model.onnx", "w").close()

def bad(model, calibration, out):
    raise ValueError("needs  a\\nhub")

raise SystemExit(main("toy", {
    "good": Variant(good, "onnxruntime", "*.onnx", full_precision=True),
    "bad": Variant(bad, "onnxruntime", "*.onnx"),
    "silent": Variant(Shell(("true",)), "onnxruntime", "*.onnx"),
    "shell": Variant(Shell(("echo no such preset >&2; exit 3",)), "onnxruntime", "*.onnx"),
}))
"""


def test_a_failing_variant_is_written_down_and_the_others_are_made(tmp_path):
    (tmp_path / "make_toy.py").write_text(MAKE)
    command = [sys.executable, "make_toy.py", "model", "calibration.jsonl", "out"]
    environment = {**os.environ, "PYTHONPATH": str(PEERS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    meta = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/meta.json")}
    assert meta["good"]["error"] is None
    assert (meta["good"]["file"], meta["good"]["lines"], meta["good"]["full_precision"]) == ("model.onnx", 1, True)
    assert meta["bad"]["error"] == "ValueError: needs a hub"
    assert meta["silent"]["error"] == "FileNotFoundError: no *.onnx was written"
    assert meta["shell"]["error"] == "RuntimeError: exit 3: no such preset"


def test_a_peer_that_was_not_installed_is_a_row_with_the_reason(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("FMOPT_PEERS", str(tmp_path / "peers"))
    (tmp_path / "peers" / "nncf").mkdir(parents=True)
    (tmp_path / "peers" / "nncf" / "install-error.txt").write_text("ERROR: no matching distribution\n")
    assert scripts("build").make("nncf", tmp_path, tmp_path / "c.jsonl", tmp_path / "made" / "nncf") == 1
    found = scripts("contenders").peers(tmp_path / "made", tmp_path, 1, [])
    assert [(each.name, each.error) for each in found] == [
        ("nncf all", "not installed: ERROR: no matching distribution")
    ]


def test_a_folder_that_is_no_bundle_is_a_row_with_the_reason(scripts, tmp_path):
    found = scripts("contenders").bundle(tmp_path, 1)
    assert found.runner is None
    assert "is not a bundle: it has no fmopt.json" in found.error


def test_every_peer_has_pinned_requirements_and_a_script(scripts):
    for peer in scripts("build").PEERS:
        pinned = (PEERS / "requirements" / f"{peer}.txt").read_text().splitlines()
        assert all("==" in line for line in pinned if line and not line.startswith("#"))
        assert (PEERS / f"make_{peer}.py").is_file()
