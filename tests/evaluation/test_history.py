"""Records over time: what is marked as worse, what the machine or another wish explains, and the exit code."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import BundleError
from fmopt.core.results import Estimate
from fmopt.evaluation.history import Entry
from fmopt.evaluation.record import Record, Trial
from tests import records


def at(day: int, factor: float = 1.0, *, reference: float = 1.0, around: dict[str, Any] | None = None, **changes: Any):
    """A record of that day whose winner takes `factor` times as long; `reference` times as long in full precision."""

    def timed(trial: Trial, by: float) -> Trial:
        if trial.latency is None:
            return trial
        samples = [by * ms for ms in np.random.default_rng(day).permutation(trial.latency.samples_ms)]
        return trial.model_copy(update={"latency": trial.latency.model_copy(update={"samples_ms": samples})})

    base = records.realistic()
    ratio = 2.15 * reference / factor
    winner = timed(base.trials[0], factor).model_copy(
        update={"speedup": Estimate(point=ratio, low=ratio / 1.01, high=ratio * 1.01)} | changes.pop("winner", {})
    )
    circumstances = base.circumstances.model_copy(update={"date": f"2026-11-{day:02d}T10:00:00+00:00"} | (around or {}))
    return base.model_copy(
        update={
            "baselines": [timed(trial, reference) for trial in base.baselines],
            "trials": [winner],
            "circumstances": circumstances,
            **changes,
        }
    )


def entries(folder: Path, *found: Record) -> list[Entry]:
    for number, record in enumerate(found):
        (folder / str(number)).mkdir()
        record.save(folder / str(number))
    groups = fmopt.history(folder).groups
    assert len(groups) == 1
    return groups[0].entries


def test_slower_than_the_best_is_marked_though_each_step_was_noise(tmp_path: Path):
    got = entries(tmp_path, at(3, 1.05), at(1), at(2, 1.02))
    assert [entry.date[8:10] for entry in got] == ["01", "02", "03"]  # by date, not by name
    assert [entry.regressed for entry in got] == [False, False, True]
    (found,) = got[-1].regressions
    assert (found.what, found.than, found.date[:10]) == ("latency", "the best so far", "2026-11-01")
    assert found.change.startswith("1.05× as slow (")
    assert got[0].latency is not None
    assert got[0].latency.low <= got[0].latency.point <= got[0].latency.high


def test_two_percent_is_noise_and_faster_is_no_regression(tmp_path: Path):
    assert not any(entry.regressions for entry in entries(tmp_path, at(1), at(2, 1.02), at(3, 0.7)))


def worse(share: int) -> dict[str, Any]:
    scores = records.realistic().trials[0].test_scores[0]
    values = [[0.0] if i % share == 0 else list(value) for i, value in enumerate(scores.values)]
    return {"test_scores": [scores.model_copy(update={"values": values})]}


def test_accuracy_and_size_are_marked_by_item_and_by_byte(tmp_path: Path):
    got = entries(tmp_path, at(1), at(2, winner=worse(20) | {"size_bytes": 23_900_000}))
    assert [found.what for found in got[1].regressions] == ["accuracy", "size"]
    assert got[1].regressions[0].change.startswith("loses ")
    assert got[1].regressions[1].change == "+2 %"


def test_items_that_are_not_the_same_are_not_compared(tmp_path: Path):
    other = records.realistic().data | {"digest": "other"}
    got = entries(tmp_path, at(1), at(2, winner=worse(20), data=other))
    assert got[1].regressions == []
    assert got[1].differs == ["data: 9f2b6c01 → other"]


def test_another_machine_explains_latency_but_not_accuracy(tmp_path: Path):
    elsewhere = {"host": records.realistic().circumstances.host | {"isa": ["avx2"], "kernel": "7"}}
    got = entries(tmp_path, at(1), at(2, 1.5, around=elsewhere, winner=worse(20)))
    latency, accuracy = got[1].regressions
    assert latency.explained == "another machine (isa)"
    assert accuracy.explained == ""
    assert "isa beyond what all have: fma → no more" in got[1].differs


def test_a_machine_that_got_slower_is_distinguished_from_a_model_that_did(tmp_path: Path):
    got = entries(tmp_path, at(1), at(2, 1.2, reference=1.2), at(3, 1.2))
    (machine,) = got[1].regressions
    assert machine.explained.startswith("the machine: onnxruntime-fp32, under the same versions, is 1.20× as slow")
    (model,) = got[2].regressions
    assert model.explained == ""


def test_a_slower_machine_explains_a_record_also_beside_one_of_other_versions(tmp_path: Path):
    newer = {"versions": records.realistic().circumstances.versions | {"onnxruntime": "1.33.0"}}
    got = entries(tmp_path, at(1), at(2, 1.01, around=newer), at(3, 1.2, reference=1.2))
    (found,) = got[2].regressions
    assert (found.than, found.date[:10]) == ("the best so far", "2026-11-01")
    assert found.explained.startswith("the machine: ")


def test_slower_full_precision_excuses_nothing_under_other_versions(tmp_path: Path):
    newer = {"versions": records.realistic().circumstances.versions | {"onnxruntime": "1.33.0"}}
    got = entries(tmp_path, at(1), at(2, 1.2, reference=1.2, around=newer))
    assert got[1].regressed
    assert got[1].differs == ["version of onnxruntime: 1.32.0 → 1.33.0"]


def test_another_request_is_another_trade(tmp_path: Path):
    budget = records.realistic().budget | {"max_drop": {"amount": 3.0, "unit": "pt"}}
    got = entries(tmp_path, at(1), at(2, 0.5, winner=worse(20), budget=budget))
    (found,) = got[1].regressions
    assert found.explained == "something else was asked for (max drop)"
    assert got[1].differs == ["asked for max drop: 1 pt → 3 pt"]
    assert not got[1].regressed


def test_other_models_shapes_and_targets_are_other_groups(tmp_path: Path):
    model = records.realistic().model | {"digest": "another"}
    found = [at(1), at(2, 2.0, model=model), at(3, 2.0, around={"batch": 8})]
    paths = [record.save(tmp_path / f"{number}.json") for number, record in enumerate(found)]
    got = fmopt.history(*paths, paths[0])  # named twice, there once
    assert [len(group.entries) for group in got.groups] == [1, 1, 1]
    assert not got.regressed


class Page(HTMLParser):
    """Counts what a page holds, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_command_exits_1_when_the_newest_is_worse_and_draws_a_page(tmp_path: Path, capsys):
    (tmp_path / "runs").mkdir()
    at(1).save(tmp_path / "runs")
    bad = at(2, 1.3, model=records.realistic().model | {"title": "<b>x</b>"}).save(tmp_path / "bad.json")
    at(2, 1.3).save(tmp_path / "new.json")
    (tmp_path / "grid.json").write_text("{}")
    page, words = (
        tmp_path / "history.html",
        ["history", tmp_path / "runs", tmp_path / "new.json", tmp_path / "grid.json"],
    )
    assert main([*map(str, words), "-o", str(page), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    (group,) = document["groups"]
    assert group["regressed"]
    assert [entry["regressed"] for entry in group["entries"]] == [False, True]
    assert group["entries"][1]["path"] == str(tmp_path / "new.json")
    assert len(document["skipped"]) == 1
    text = page.read_text("utf8")
    drawn = Page(text)
    assert drawn.fetched == []
    assert "script" not in drawn.tags
    assert drawn.tags.count("svg") == 4
    assert drawn.tags.count("figcaption") == 4
    assert text.count('class="point worse"') == 1
    assert text.count('class="point fine"') == 7
    assert main(["history", str(tmp_path / "runs"), str(bad), "-o", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "openvino-" in shown
    assert "<b>x</b>" not in page.read_text("utf8")


def test_the_table_marks_what_is_worse(tmp_path: Path, capsys):
    paths = [str(at(day, factor).save(tmp_path / f"{day}.json")) for day, factor in ((1, 1.0), (2, 1.3), (3, 1.0))]
    assert main(["history", *paths]) == 0  # the newest one is as fast as the first
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line[:18] for line in shown if "2026-11-0" in line[:14]] == [
        "2026-11-01 10:00  ", "▼ 2026-11-02 10:00", "2026-11-03 10:00  ",
    ]  # fmt: skip


def test_nothing_to_read_is_one_line(tmp_path: Path, capsys):
    with pytest.raises(BundleError, match=r"there is nothing at .*nowhere"):
        fmopt.history(tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("[]")
    assert main(["history", str(tmp_path), str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("fmopt: there is no record under ")
