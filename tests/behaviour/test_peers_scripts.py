"""The scripts that compare peers, as far as they work without the peers' environments."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LABELS, SENTENCES

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
NAMES = ("harness", "subjects", "build", "contenders", "comparison", "table", "page_plot", "page", "run")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts import each other by plain names, as they do when run."""
    monkeypatch.syspath_prepend(str(PEERS))
    yield lambda name: __import__(name)
    for name in NAMES:
        sys.modules.pop(name, None)


# ------------------------------------------------------------------------------------------------ results → pages


def right(wrong: int) -> dict:
    """Per-item accuracy of 100 items."""
    values = [[float(number >= wrong)] for number in range(100)]
    return {"name": "accuracy", "metric": "mean", "values": values, "primary": True, "against_baseline": False}


def row(name, ms, wrong=10, full_precision=False, error=None):
    return {
        "name": name, "error": error, "size_bytes": 2_500_000, "full_precision": full_precision,
        "made": {"peer": name.split()[0], "minutes": 0.5, "lines": 3, "versions": {"torch": "1"}},
        "samples_ms": [ms] * 40, "scores": right(wrong), "others": {"agreement": 0.9},
    }  # fmt: skip


def failed(name, error):
    return {**row(name, 0, error=error), "samples_ms": [], "scores": None, "others": {}}


def written(folder: Path, rows, **metadata) -> Path:
    document = {
        "subject": "banking77", "task": "text-classification", "model": {"title": "tiny", "parameters": 9},
        "date": "2026-01-02T00:00:00", "batch": 1, "length": 16, "threads": 1, "seed": 0,
        "items": {"scored": 100, "of": 3080}, "host": {"cpu": "a cpu", "isa": ["avx2"]},
        "versions": {"fmopt": "0"}, "command": "run.py", "warnings": ["busy"],
        "reference": {"name": "PyTorch fp32", "scores": right(10), "others": {}}, "rows": rows, **metadata,
    }  # fmt: skip
    path = folder / f"peers-{document['subject']}-{document['date'][:10]}.json"
    path.write_text(json.dumps(document))
    return path


ROWS = [
    row("optimum_onnx fp32", 30.0, 10, True), row("nncf fp32", 20.0, 10, True), row("fmopt ours", 10.0, 11),
    row("nncf int8", 16.0, 11), row("olive static", 12.0, 60), failed("olive quantize", "no <b>tokenizer</b>"),
]  # fmt: skip


def test_table_is_sorted_and_claims_against_the_fastest_full_precision(scripts, tmp_path):
    found = scripts("comparison").read(written(tmp_path, ROWS))
    page = scripts("table").markdown(found)
    names = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert names == ["fmopt ours", "olive static", "nncf int8", "nncf fp32", "optimum_onnx fp32"]
    ours = next(line for line in page.splitlines() if line.startswith("| fmopt"))
    assert "| 2.00 (2.00 – 2.00) | 3.00 (3.00 – 3.00) | 89.00 (1.00; " in ours
    assert ours.endswith("| 2.5 | 0.50 | 3 |")
    assert "Fastest full precision: nncf fp32." in page
    assert "- olive quantize: no <b>tokenizer</b>" in page
    assert "100 of 3,080 test items" in page
    assert "**Warning:** busy." in page


def test_best_peer_is_the_fastest_that_loses_at_most_a_point(scripts, tmp_path):
    found = scripts("comparison").read(written(tmp_path, ROWS))
    assert found.best_peer == "nncf int8"  # the faster one lost half of its accuracy
    assert found.over_best_peer.point == pytest.approx(1.6)
    drop = {each.name: each.drop for each in found.rows}["nncf int8"]
    assert drop.low < drop.point < drop.high
    assert drop.point == pytest.approx(0.01)


def test_the_committed_result_of_november_is_still_read(scripts):
    found = scripts("comparison").read(ROOT / "benchmarks" / "results" / "peers-2026-11-24-b1-l128-t1.json")
    assert (found.subject, found.metric, found.items) == ("minilm", "Spearman", 1379)
    assert found.reference == pytest.approx(0.8203, abs=5e-5)
    by_name = {each.name: each for each in found.rows}
    assert by_name["olive workflow_static"].drop.point == pytest.approx(0.4338, abs=5e-5)
    assert "HFValidationError" in found.failures[0].error


def test_minutes_on_a_busy_machine_are_those_of_the_processor(scripts, tmp_path):
    rows = [row("nncf int8", 10.0), row("nncf fp32", 20.0, full_precision=True)]
    rows[0]["made"] |= {"cpu_minutes": 0.2, "load_before": 12.0}
    rows[1]["made"] |= {"cpu_minutes": 0.4, "load_before": 1.0}
    lines = scripts("table").markdown(scripts("comparison").read(written(tmp_path, rows))).splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-2] for line in lines if line.startswith("| ")}
    assert (cells["nncf int8"], cells["nncf fp32"]) == ("0.20 CPU", "0.50")


def test_page_has_a_section_for_each_newest_result_and_keeps_messages_as_text(scripts, tmp_path, monkeypatch, capsys):
    written(tmp_path, ROWS)
    written(tmp_path, [row("nncf outdated", 5.0)], date="2026-01-01T00:00:00")
    written(tmp_path, ROWS[:2], subject="wnut17", task="token-classification")
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    assert scripts("page").main() == 0
    page = (tmp_path / "peers.html").read_text()
    assert len(re.findall(r'<section class="card" id="c\d', page)) == 2
    assert "no &lt;b&gt;tokenizer&lt;/b&gt;" in page
    assert "no <b>tokenizer" not in page
    assert "outdated" not in page
    assert not re.search(r"(?:src|href)=\"(?!#)|https?://|url\(", page)  # nothing is fetched
    assert "2: −50.00" in page  # olive static, below the scale of the plot, so it says how far
    assert "1.60×" in page
    table = (tmp_path / "peers.md").read_text()
    assert table.count("\n## ") == 2


def test_an_interrupted_run_is_drawn_with_what_it_has(scripts, tmp_path):
    rows = [{**row("nncf fp32", 20.0, full_precision=True), "scores": None, "others": {}}]
    found = scripts("comparison").read(written(tmp_path, rows, reference={"name": "PyTorch fp32", "scores": None}))
    assert "| nncf fp32 | 20.00 (20.00 – 20.00) | 20.00 | 1 | – | – |" in scripts("table").markdown(found)
    page = scripts("page").html([found])
    assert "<svg" not in page  # nothing to set against latency
    assert ">nncf fp32<" in page


def test_page_of_nothing_says_so(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    assert scripts("page").main() == 1
    assert "holds no peers-*.json" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ making variants


def test_lines_are_those_of_the_body_without_docstring_comments_and_blanks(scripts):
    harness = scripts("harness")

    def variant(model: str, task: str, calibration: str, out: str) -> None:
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

def good(model, task, calibration, out):
    open(out + "/model.onnx", "w").write(task.pipeline)

def bad(model, task, calibration, out):
    raise ValueError("needs  a\\nhub for " + model)

TRACEBACK = "Traceback:\\\\n  File x\\\\nlibrary.errors.HubError: no {columns} here\\\\nbye"

raise SystemExit(main("toy", {
    "good": Variant(good, "onnxruntime", "*.onnx", full_precision=True),
    "bad": Variant(bad, "onnxruntime", "*.onnx"),
    "silent": Variant(Shell(("true",)), "onnxruntime", "*.onnx"),
    "shell": Variant(Shell(("echo no such preset >&2; exit 3",)), "onnxruntime", "*.onnx"),
    "traceback": Variant(Shell(("printf '" + TRACEBACK + "' >&2; exit 1",)), "onnxruntime", "*.onnx"),
}))
"""


def test_a_failing_variant_is_written_down_and_the_others_are_made(tmp_path):
    (tmp_path / "make_toy.py").write_text(MAKE)
    command = [sys.executable, "make_toy.py", "model", "text-regression", "calibration.jsonl", "out"]
    environment = {**os.environ, "PYTHONPATH": str(PEERS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    meta = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/meta.json")}
    assert meta["good"]["error"] is None
    assert (meta["good"]["file"], meta["good"]["lines"], meta["good"]["full_precision"]) == ("model.onnx", 1, True)
    assert (tmp_path / "out" / "good" / "model.onnx").read_text() == "text-classification"
    assert meta["bad"]["error"] == "ValueError: needs a hub for MODEL"
    assert meta["silent"]["error"] == "FileNotFoundError: no *.onnx was written"
    assert meta["shell"]["error"] == "RuntimeError: exit 3: no such preset"
    assert meta["traceback"]["error"] == "RuntimeError: exit 1: library.errors.HubError: no text text_pair here bye"


def test_calibration_says_what_a_tokenizer_is_given(scripts, tmp_path):
    samples = ["a text", ("one", "two"), ["some", "words"]]
    path = scripts("build").write_calibration(samples, tmp_path / "c.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"text": "a text"},
        {"text": "one", "text_pair": "two"},
        {"text": ["some", "words"], "is_split_into_words": True},
    ]


def test_a_peer_that_was_not_installed_is_a_row_with_the_reason(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("FMOPT_PEERS", str(tmp_path / "peers"))
    (tmp_path / "peers" / "nncf").mkdir(parents=True)
    (tmp_path / "peers" / "nncf" / "install-error.txt").write_text("ERROR: no matching distribution\n")
    given = (tmp_path, "text-classification", tmp_path / "c.jsonl")
    assert scripts("build").make("nncf", given, tmp_path / "made" / "nncf") == 1
    found = scripts("contenders").peers(tmp_path / "made", None, 1, [])
    assert [(each.name, each.error) for each in found] == [
        ("nncf all", "not installed: ERROR: no matching distribution")
    ]


def test_a_folder_that_is_no_bundle_is_a_row_with_the_reason(scripts, tmp_path):
    found = scripts("contenders").bundle(tmp_path, None, 1)
    assert found.runner is None
    assert "is not a bundle: it has no fmopt.json" in found.error


def test_every_peer_has_pinned_requirements_and_a_script(scripts):
    for peer in scripts("build").PEERS:
        pinned = (PEERS / "requirements" / f"{peer}.txt").read_text().splitlines()
        assert all("==" in line for line in pinned if line and not line.startswith("#"))
        assert (PEERS / f"make_{peer}.py").is_file()


# ------------------------------------------------------------------------------------------------ a whole run


def meta_of(folder: Path, peer: str, variant: str, **metadata) -> None:
    place = folder / peer / variant
    place.mkdir(parents=True)
    meta = {"peer": peer, "variant": variant, "runtime": "torch", "file": "", "options": {}, "full_precision": True,
            "minutes": 0.1, "lines": 2, "versions": {}, "error": None}  # fmt: skip
    (place / "meta.json").write_text(json.dumps(meta | metadata))


def test_a_trained_model_is_timed_scored_and_compared_by_its_task(
    scripts, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    shutil.copytree(tiny_checkpoint("bert", "token-classification"), tmp_path / "finetuned" / "wnut17")
    data = tmp_path / "data" / "wnut17"
    data.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        with (data / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["tokens", "tags"])
            for number, text in enumerate(SENTENCES):
                words = f"{split} {text}".split()
                tags = [LABELS["token-classification"][(number + place) % 3] for place in range(len(words))]
                table.writerow([json.dumps(words), json.dumps(tags)])
    made = tmp_path / "artifacts"
    meta_of(made, "pytorch", "eager_fp32", options={"dtype": "fp32"})
    meta_of(made, "olive", "quantize", error="HubError: no name")
    meta_of(made, "nncf", "int8", runtime="onnxruntime", file="gone.onnx")
    asked = ["run.py", "wnut17", "--artifacts", str(made), "--items", "6", "--samples", "8", "--length", "16"]
    monkeypatch.setattr(sys, "argv", [*asked, "--results", str(tmp_path / "results")])
    monkeypatch.setenv("FMOPT_CHECKPOINTS", str(tmp_path / "finetuned"))
    monkeypatch.setenv("FMOPT_DATA", str(tmp_path / "data"))
    assert scripts("run").main() == 0
    document = json.loads(next((tmp_path / "results").glob("peers-wnut17-*-b1-l16-t1.json")).read_text())
    assert document["items"] == {"scored": 6, "of": 10}
    rows = {each["name"]: each for each in document["rows"]}
    fp32, reference = rows["pytorch eager_fp32"], document["reference"]
    assert fp32["scores"] == reference["scores"]
    assert fp32["scores"]["name"] == "span F1"
    assert len(fp32["scores"]["values"]) == 6
    assert len(fp32["samples_ms"]) == 8
    assert rows["olive quantize"]["error"] == "HubError: no name"
    assert rows["nncf int8"]["error"].startswith("does not open: ")
    assert "| pytorch eager_fp32 |" in capsys.readouterr().out
