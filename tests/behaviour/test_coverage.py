"""The coverage table is what the committed records give, and every number in it comes from one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fmopt.core.results import Estimate, Scores
from fmopt.evaluation.gate import Drop
from tests import records

ROOT = Path(__file__).resolve().parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_table", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage = _script()


def test_the_page_is_what_the_records_give() -> None:
    lines = coverage.rows(coverage.records(ROOT / "benchmarks" / "results"))
    assert (ROOT / "docs" / "coverage.md").read_text("utf8") == coverage.page(lines), (
        "run: python benchmarks/coverage.py"
    )
    assert {line[0] for line in lines} >= {application.name for application in coverage.APPLICATIONS}


def test_a_row_is_its_record(tmp_path: Path) -> None:
    record = records.realistic()
    winner, reference = record.winning, record.fastest_full_precision
    assert winner is not None
    assert reference is not None
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    record.save(results / "ours.json")
    (results / "other.json").write_text('{"what": "another benchmark"}')
    (tmp_path / "docs").mkdir()
    assert coverage.main(["--check"], tmp_path) == 1
    assert coverage.main([], tmp_path) == 0
    assert coverage.main(["--check"], tmp_path) == 0
    page = (tmp_path / "docs" / "coverage.md").read_text("utf8")
    (row,) = [line for line in page.splitlines() if "ours.json" in line]
    assert f"{winner.speedup.point:.2f}× ({winner.speedup.low:.2f}–{winner.speedup.high:.2f})" in row
    assert f"{reference.size_bytes / winner.size_bytes:.2f}× smaller" in row
    assert f"| {record.verdict.outcome.value} |" in row
    assert f"| {Drop.model_validate(record.budget['max_drop'])} |" in row
    assert "(../benchmarks/results/ours.json)" in row
    assert page.count(coverage.NO_RUN) == len(coverage.APPLICATIONS) - 1


def test_a_metric_without_an_end_loses_percent() -> None:
    def judged(trial, nats):
        scores = [Scores(name="perplexity", metric="perplexity", values=[[nats, 1.0]] * 4, primary=True)]
        return trial.model_copy(update={"scores": scores, "test_scores": scores})

    record = records.realistic()
    drop = Estimate(point=0.5, low=0.25, high=1.0)  # of e^3 = 20.09
    record = record.model_copy(
        update={
            "baselines": [judged(trial, 3.0) for trial in record.baselines],
            "trials": [judged(t, 3.025).model_copy(update={"drop": drop, "test_drop": drop}) for t in record.trials],
            "model": {**record.model, "task": "text-generation"},
            "data": {**record.data, "name": "builtin:stdlib"},
        }
    )
    row = dict(zip(coverage.HEAD, coverage.cells(coverage.application_of(record), "a.json", record), strict=True))
    assert (row["application"], row["full precision"]) == ("code generation", "perplexity 20.09")
    assert row["lost (bound)"] == "2.49 % (≤ 4.98)"
