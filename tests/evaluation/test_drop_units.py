"""A metric without an end (perplexity) is told as it is, and what it loses in percent of full precision, everywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fmopt.cli.tables import trial_table, verdict_panel
from fmopt.core import formatting
from fmopt.core.results import Check, Estimate, Outcome, Scores, Verdict
from fmopt.evaluation.comparison import compare
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import Record, as_displayed, drop_unit, summary_sentence
from fmopt.reports.html import view, write_markdown, write_report
from fmopt.reports.waterfall import falls
from fmopt.workflow import optimize
from fmopt.workflow.search.selection import drop_limit
from tests import records

BASE = 40.0  # perplexity of full precision
DROP = Estimate(point=0.8, low=0.2, high=1.4)  # 2 % of it, 0.5 to 3.5


def judged(trial: Any, perplexity: float) -> Any:
    values = [[float(np.log(perplexity)), 1.0]] * 5
    scores = [Scores(name="perplexity", metric="perplexity", values=values, primary=True)]
    return trial.model_copy(update={"scores": scores, "test_scores": scores})


@pytest.fixture(scope="module")
def record() -> Record:
    plain = records.realistic()
    check = Check(name="accuracy drop", outcome=Outcome.UNDECIDED, limit=0.8, got=DROP)
    moved = {"drop": DROP, "test_drop": DROP}
    return plain.model_copy(
        update={
            "baselines": [judged(trial, BASE) for trial in plain.baselines],
            "trials": [judged(trial, BASE + 0.8).model_copy(update=moved) for trial in plain.trials],
            "verdict": Verdict(checks=[check]),
            "waterfall": [step.model_copy(update={"drop": DROP}) for step in plain.waterfall],
        }
    )


def test_the_summary_says_that_perplexity_rose_by_so_many_percent(record: Record) -> None:
    text = summary_sentence(record)
    assert "perplexity rose by 2.00 %, at most 3.50 % at 95 % confidence over 5 items of the test split." in text
    assert "80.00" not in text
    assert " pt" not in text


def test_pages_and_tables_tell_percent(record: Record, tmp_path: Path) -> None:
    markdown = write_markdown(record, tmp_path / "report.md").read_text("utf8")
    assert "| accuracy drop | UNDECIDED | 2.00 % | 2.00 % | 0.50 % to 3.50 % |" in markdown
    assert "drop, %" in markdown
    assert "| perplexity (judged by this) | test | 5 | 40.00 | 40.80 | +2.00 % |" in markdown
    assert "drop, pt" not in markdown
    html = write_report(record, tmp_path / "report.html").read_text("utf8")
    assert "drop, %" in html
    assert "change of perplexity in percent · up is better" in html
    assert ("accuracy drop", "2.00 %", "at most 3.50 % at 95 %") in view(record)["tiles"]
    assert falls(as_displayed(record))[2].bars[1].interval == "−3.50 % to −0.50 %"
    console = Console(width=220, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(trial_table(record), verdict_panel(record))
    shown = console.export_text()
    assert "drop, %" in shown
    assert "accuracy drop: 2.00 % (0.50 % to 3.50 %), limit 2.00 %" in shown


def test_the_default_budget_allows_a_percent_of_it(record: Record) -> None:
    request = SimpleNamespace(budget=Budget())
    run: Any = SimpleNamespace(trials={"full": record.baselines[1]}, job=SimpleNamespace(request=request))
    assert drop_limit(run, "full") == pytest.approx(0.01 * BASE)


def test_comparisons_and_reasons_tell_percent(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = record.model_copy(update={"trials": [judged(trial, 1.1 * (BASE + 0.8)) for trial in record.trials]})
    (row,) = [one for one in compare(record, worse).rows if one.what == "perplexity, shipped"]
    assert [cell.shown for cell in row.cells] == ["40.80", "44.88"]
    assert "loses 10.00 % (drop " in str(row.cells[1].change)
    trial, reference = record.trials[1], record.baselines[1]
    run: Any = SimpleNamespace(trials={"faster": trial, "full": reference})
    monkeypatch.setattr(optimize, "time_ratio", lambda run, name, winner: 0.5)
    monkeypatch.setattr(optimize, "drop_limit", lambda run, reference: 0.4)
    assert optimize.losing_reason(run, "faster", "winner", "full") == (
        "faster, but lost 2.00 % on validation, where half of the allowed 1.00 % may go"
    )


def test_a_metric_that_ends_is_given_in_points() -> None:
    plain = records.realistic()
    assert as_displayed(plain) is plain
    assert drop_unit(plain) == "pt"
    assert (formatting.loss(0.0012), formatting.loss(0.8, BASE)) == ("0.12 pt", "2.00 %")
    assert (formatting.score(0.9), formatting.score(44.712, bounded=False)) == ("90.00", "44.71")
    assert formatting.change(0.5, 0.49) == "−1.00 pt"
