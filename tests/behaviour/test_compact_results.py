"""Committed results are as small as benchmarks/compact_results.py makes them, and records stay records."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from fmopt.evaluation.record import Record, summary_sentence
from tests import records

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MOST_BYTES = 8_000_000


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compact_results

    return compact_results


def test_committed_results_are_compact(script: ModuleType) -> None:
    results = BENCHMARKS / "results"
    for path in results.glob("*.json"):
        held = path.read_text("utf8")
        assert held == script.text(json.loads(held), path.stem), (
            f"{path.name}: run python benchmarks/compact_results.py"
        )
    assert sum(path.stat().st_size for path in results.iterdir()) < MOST_BYTES


def test_a_record_keeps_the_scores_of_what_ships_and_of_its_reference(script: ModuleType, tmp_path: Path) -> None:
    record, path = records.realistic(), tmp_path / "small.json"
    script.write(json.loads(record.model_dump_json()), path)
    small = Record.load(path)
    assert summary_sentence(small) == summary_sentence(record)
    assert [trial.latency for trial in small.everything] == [trial.latency for trial in record.everything]
    for trial in small.everything:
        assert bool(trial.scores) == (trial.name in (record.winner, record.reference))
        assert not trial.profile
    assert record.changed
    assert not small.changed


def test_numbers_keep_nine_digits_and_whole_ones_in_lists_lose_their_point(script: ModuleType) -> None:
    document = {"share": 1 / 3, "whole": 2.0, "rows": [[1.0, 123456789012.0], [0.1234567891, True]], "answers": "kept"}
    assert script.text(document, "grid-today") == (
        '{"share":0.333333333,"whole":2.0,"rows":[[1,123456789012],[0.123456789,true]],"answers":"kept"}\n'
    )
    assert script.text(document | {"answers": [1]}, "code-completions").endswith("true]]}\n")
