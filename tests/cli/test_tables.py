"""Tables fit a terminal of 80 columns and lose nothing there; colours are for terminals, or for whoever asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fmopt.cli import console, output
from fmopt.cli.doctor import Line
from fmopt.core.results import Estimate, Finding, Latency, Outcome
from fmopt.core.target import read_target, target_names
from fmopt.evaluation.comparison import compare
from fmopt.evaluation.history import history
from fmopt.measurement.roofline.diagnosis import Diagnosis, KindTime
from fmopt.measurement.roofline.findings import ThreadTime
from fmopt.measurement.roofline.layers import LayerPoint, Roof
from fmopt.workflow.search.candidates import BASELINES, Refusal, quick_candidates
from fmopt.workflow.search.plan import Plan
from tests import benchmarks, records
from tests.cli.terminal import ANSI, at_terminal, plain

LONG = "openvino-static-int8-minmax"


def diagnosis() -> Diagnosis:
    """What `explain` says of a network of long names."""
    record = records.realistic()
    layer = LayerPoint(
        layer="encoder.layer.11.attention.self.query", group="matrix products", precision="int8", ms=3.2, share=0.12,
        operations=2e9, bytes=4e6, intensity=500.0, gops=120.4, roof_gops=141.0, floor_ms=2.9, of_roof=0.86,
        bound="arithmetic",
    )  # fmt: skip
    return Diagnosis(
        model="out/minilm", runtime="openvino", p50_ms=14.6,
        findings=[Finding(text="softmax, GELU and LayerNorm stay in float", share=0.41, remedy="a CPU with bf16 halves them")],
        kinds=[KindTime(kind="FullyConnected/brgemm_avx512_amx", group="matrix products", precision="int8", operators=36,
                        ms=8.123, share=0.55)],
        layers=[layer], roof=Roof(gops={"fp32": 84, "int8": 141}, bandwidth_gbs=18.2),
        threads=[ThreadTime(threads=2, p50_ms=9.1, speedup=Estimate(point=1.6, low=1.5, high=1.7))],
        latency=Latency(samples_ms=[14.6], batch=1, length=128, threads=1), circumstances=record.circumstances,
    )  # fmt: skip


def a_history(folder: Path) -> None:
    for day, factor in ((20, 1.0), (21, 1.3)):
        record = records.realistic()
        (folder / str(day)).mkdir()
        trials = [
            trial if trial.latency is None else trial.model_copy(
                update={"latency": trial.latency.model_copy(
                    update={"samples_ms": [ms * factor for ms in trial.latency.samples_ms]})})
            for trial in record.trials
        ]  # fmt: skip
        around = record.circumstances.model_copy(update={"date": f"2026-11-{day}T12:00:00+00:00"})
        record.model_copy(update={"trials": trials, "circumstances": around}).save(folder / str(day))
    output.history(history(folder))


def bench(folder: Path) -> None:
    name = "all-MiniLM-L6-v2 on onnxruntime-fp32"
    slow = Latency(samples_ms=records.samples(1231.4), batch=8, length=None, threads=2)
    output.bench([("out/minilm", Latency(samples_ms=[31.4] * 9, batch=8, length=128, threads=2)), (name, slow)])


def known_targets(folder: Path) -> None:
    output.targets([read_target(name) for name in target_names() if name != "host"])


def a_plan(folder: Path) -> None:
    refused = (Refusal(recipe="openvino-bf16", reason="this CPU has no bf16"),)
    output.plan(Plan(baselines=BASELINES, candidates=quick_candidates(read_target("x86-amx")), refused=refused))


REALISTIC, FAILED = records.realistic(), records.realistic(Outcome.FAIL)
# table -> what draws it, and words of every column that must be seen
TABLES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "optimize": (lambda folder: output.record(REALISTIC, folder), (LONG, "19.9 ms", "2.15×", "≤ 0.39", "23.4 MB", "p99")),
    "absent": (lambda folder: output.record(records.absent_device(), folder), (LONG, "predicted", "23.4 MB")),
    "family": (lambda folder: output.family([2.0], [REALISTIC], Path("/home/somebody/out")),
               ("/home/somebody/out/2x", "openvino-static-int8: PASS", "14.6 ms", "2.15×", "23.4 MB")),
    "plan": (a_plan, ("onnxruntime-dynamic-int8-embeddings", "quantize_embeddings", "refused openvino-bf16")),
    "compare": (lambda folder: output.comparison(compare(REALISTIC, FAILED)), ("differences that matter", "changed")),
    "compare three": (lambda folder: output.comparison(compare(REALISTIC, FAILED, records.absent_device())),
                      ("differences that matter", "FAIL")),
    "bench": (bench, ("all-MiniLM-L6-v2 on onnxruntime-fp32", "items as they are", "240 samples", "1,231 ms", "p99",
                      "1.00×")),
    "matrix": (lambda folder: output.matrix(benchmarks.realistic(), folder), ("single-stream", "page")),
    "eval": (lambda folder: output.metrics([{"metric": "cosine to baseline", "value": 0.9, "low": 0.8, "high": 0.95,
                                             "items": 1800}]), ("cosine to baseline", "0.8000 to 0.9500", "1800")),
    "explain": (lambda folder: output.diagnosis(diagnosis()),
                ("encoder.layer.11.attention.self.query", "FullyConnected/brgemm_avx512_amx", "86 %", "bound by", "55 %",
                 "a CPU with bf16 halves them")),
    "targets": (known_targets, ("raspberry-pi-5", "Raspberry Pi 5", "jetson-orin-nano", "onnxruntime", "307.2", "tensorrt")),
    "history": (a_history, ("▼ 2026-11-21", "openvino-static-int8", "1.30× as slow", "MRR@10", "23.4 MB", "2.12–2.19")),
    "doctor": (lambda folder: output.doctor([Line(what="runtime executorch", state="missing", detail="word " * 30)]),
               ("runtime executorch", "✗")),
}  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a terminal of 80 columns."""
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 80)
    monkeypatch.setattr(console.out, "_height", 50)
    return


@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_80_columns_and_shows_every_column(name, narrow, capsys, tmp_path) -> None:
    draw, seen = TABLES[name]
    draw(tmp_path)
    shown = plain(capsys.readouterr().out)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    for words in seen:  # whole, or on several lines where a column is narrow
        assert words in shown or all(part in shown for part in words.split()) or _folded(words, shown), words


def _folded(words: str, shown: str) -> bool:
    """Whether a word goes on in the next line of its own column."""
    lines = shown.splitlines()
    for cut in range(8, len(words)):
        for above, below in pairwise(lines):
            at = above.find(words[:cut])
            if at >= 0 and below[at : at + len(words) - cut] == words[cut:]:
                return True
    return False


def piped(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    command = [sys.executable, "-m", "fmopt", "targets", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**kept, **environment})
    return done.stdout


def test_a_pipe_gets_plain_text_of_at_most_100_columns_unless_colours_are_asked_for() -> None:
    said = piped()
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 100
    assert ANSI.search(piped(FORCE_COLOR="1"))


def test_a_terminal_gets_colours_unless_it_wants_none(tmp_path: Path) -> None:
    bundle = tmp_path / "record.json"
    records.realistic().save(bundle)
    draw = ("history", str(bundle))
    code, shown = at_terminal(*draw)
    assert code == 0
    assert "\x1b[" in shown
    assert max(len(line.rstrip()) for line in plain(shown).splitlines()) <= 80
