import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import fmopt
from fmopt.cli.app import main
from fmopt.cli.tables import comparison_table, trial_table, verdict_panel
from fmopt.core.errors import BundleError
from fmopt.core.model import Artifact
from fmopt.core.results import Estimate, Outcome, Scores
from fmopt.evaluation.comparison import Cell, Comparison, Difference, compare, ratio_of
from fmopt.evaluation.record import Record, Trial
from fmopt.exporters.bundles.bundle_writer import write_bundle
from fmopt.exporters.bundles.golden import Golden
from tests import records
from tests.conftest import write_tokenizer
from tests.exporters.bundles.test_bundle import facts_of, write_graph


def row(found: Comparison, what: str) -> Difference:
    return next(r for r in found.rows if r.what == what)


def second(found: Comparison, what: str) -> Cell:
    """What B has in a line."""
    return row(found, what).cells[1]


def faster(record: Record, factor: float) -> Record:
    """The same run with every latency divided by `factor`."""

    def quick(trial: Trial) -> Trial:
        if trial.latency is None:
            return trial
        samples = [float(x) / factor for x in np.random.default_rng(5).permutation(trial.latency.samples_ms)]
        return trial.model_copy(update={"latency": trial.latency.model_copy(update={"samples_ms": samples})})

    return record.model_copy(
        update={"trials": [quick(t) for t in record.trials], "baselines": [quick(t) for t in record.baselines]}
    )


def with_winner(record: Record, **changes: object) -> Record:
    winner = record.trials[0].model_copy(update=changes)
    return record.model_copy(update={"trials": [winner, *record.trials[1:]]})


def printed(thing: Table | object, width: int = 110) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(thing)
    return console.export_text()


def test_a_record_equals_itself() -> None:
    found = compare(records.realistic(), records.realistic())
    assert [r.what for r in found.rows if r.matters] == []
    assert "no difference that matters" in printed(comparison_table(found))
    assert len(found.caveats) == 1


def test_faster_by_more_than_noise_matters_and_comes_first() -> None:
    found = compare(records.realistic(), faster(records.realistic(), 1.25))
    latency = second(found, "latency, shipped")
    assert latency.matters
    assert latency.estimate is not None
    assert latency.estimate.point == pytest.approx(1.25, rel=0.02)
    assert latency.change.startswith("1.25× as fast (")
    flags = [r.matters for r in found.rows]
    assert flags == sorted(flags, reverse=True)


def test_slower_is_said_as_slower() -> None:
    latency = second(compare(faster(records.realistic(), 1.25), records.realistic()), "latency, shipped")
    assert latency.change.startswith("1.25× as slow (")


def test_two_percent_between_two_runs_is_noise() -> None:
    latency = second(compare(records.realistic(), faster(records.realistic(), 1.015)), "latency, shipped")
    assert not latency.matters
    assert latency.change.startswith("same within noise")


def test_accuracy_is_compared_item_by_item() -> None:
    a = records.realistic()
    base = a.trials[0].test_scores[0]
    worse = [[0.0] if i % 20 == 0 else list(v) for i, v in enumerate(base.values)]
    b = with_winner(a, test_scores=[base.model_copy(update={"values": worse})])
    found = second(compare(a, b), "MRR@10, shipped")
    lost = base.array().mean() - np.asarray(worse).mean()
    assert found.matters
    assert found.estimate is not None
    assert found.estimate.point == pytest.approx(lost)
    assert found.estimate.low > 0
    assert found.change.startswith(f"loses {100 * lost:.2f} pt (drop ")


def test_other_items_are_not_compared() -> None:
    a = records.realistic()
    b = records.realistic(data=a.data | {"digest": "other"})
    found = compare(a, b)
    assert second(found, "MRR@10, shipped").change == "not comparable: other items"
    assert "the data is not the same" in found.caveats


def test_other_metrics_and_other_shapes_are_not_compared() -> None:
    a = records.realistic()
    winner = a.trials[0]
    assert winner.latency is not None
    b = with_winner(
        a,
        test_scores=[],
        scores=[Scores(name="accuracy", metric="mean", values=[[1.0]], primary=True)],
        latency=winner.latency.model_copy(update={"threads": 2}),
    )
    found = compare(a, b)
    assert second(found, "MRR@10, shipped").change == "no metric in common"
    assert second(found, "latency, shipped").change == "not comparable: batch 1, 128 tokens, 2 threads, the model alone"


def test_verdict_size_versions_and_missing_variants() -> None:
    a = records.realistic()
    b = with_winner(records.realistic(Outcome.FAIL), size_bytes=50_000_000)
    b = b.model_copy(
        update={
            "trials": b.trials[:-1],
            "circumstances": b.circumstances.model_copy(
                update={"versions": b.circumstances.versions | {"onnxruntime": "1.33.0"}}
            ),
        }
    )
    found = compare(a, b)
    assert row(found, "verdict").matters
    assert [cell.shown for cell in row(found, "verdict").cells] == ["PASS", "FAIL"]
    assert second(found, "size").change == "+114 %"
    assert [cell.shown for cell in row(found, "variant openvino-broken").cells] == ["tried", "–"]
    assert "version of onnxruntime: 1.32.0 in A, 1.33.0 in B" in found.caveats
    text = printed(comparison_table(found))
    assert text.index("verdict") < text.index("the rest") < text.index("variant openvino-broken")


def test_a_device_that_is_not_here_compares_without_latency() -> None:
    found = second(compare(records.realistic(), records.absent_device()), "latency, shipped")
    assert (found.shown, found.change, found.matters) == ("–", "", False)


def test_three_records_have_a_column_each_and_are_held_to_the_first() -> None:
    a = records.realistic()
    other_data = faster(records.realistic(data=a.data | {"digest": "other"}), 1.25)
    found = compare(a, faster(a, 1 / 1.25), other_data)
    shown = row(found, "latency, shipped").cells
    assert [cell.change.partition(" (")[0] for cell in shown] == ["", "1.25× as slow", "1.25× as fast"]
    assert [cell.matters for cell in shown] == [False, True, True]
    assert shown[2].value == pytest.approx(records_median(a) / 1.25)
    assert row(found, "MRR@10, shipped").cells[2].change == "not comparable: other items"
    assert "the data is not the same: A and B; C" in found.caveats
    lines = [line.strip() for line in printed(comparison_table(found), 100).splitlines()]
    assert max(map(len, lines)) <= 100
    first = next(number for number, line in enumerate(lines) if line.startswith("latency, shipped"))
    assert [word for word in lines[first].split() if word[0].isdigit()] == ["14.6", "18.3", "11.7"]
    assert lines[first + 1].count("1.25× as") == 2


def records_median(record: Record) -> float:
    assert record.winning is not None
    assert record.winning.p50 is not None
    return record.winning.p50


def test_a_speedup_is_a_ratio_within_its_run_so_a_slower_machine_does_not_change_it() -> None:
    a = records.realistic()
    found = compare(a, faster(a, 1 / 1.25))
    assert second(found, "latency, shipped").matters
    assert not second(found, "speedup, shipped").matters
    assert second(found, "speedup, shipped").estimate.point == pytest.approx(1)


def test_errors_of_independent_ratios_add_in_quadrature() -> None:
    got = ratio_of(Estimate(point=2, low=2 / 1.03, high=2 * 1.03), Estimate(point=1, low=1 / 1.04, high=1.04))
    assert (got.point, got.low, got.high) == pytest.approx((2, 2 / 1.0507, 2 * 1.0507), rel=1e-3)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A bundle as `fmopt export --precision fp16` leaves it: no record."""
    checkpoint = tmp_path / "checkpoint"
    write_tokenizer(checkpoint, "bert")
    (checkpoint / "config.json").write_text("{}")
    return write_bundle(
        tmp_path / "made",
        metadata=facts_of(checkpoint),
        artifact=Artifact("onnxruntime", write_graph(tmp_path / "graph" / "model.onnx"), {}),
        recipe={"name": "onnx-fp16", "precision": "fp16"},
        verdict="UNMEASURED",
        golden=Golden([("a text", [0.0])], tolerance=0.1),
        needs_isa=[],
    )


def test_a_bundle_without_a_record_is_compared_by_what_it_has(tmp_path: Path, exported: Path) -> None:
    a = records.realistic()
    found = fmopt.compare(a.save(tmp_path / "a.json"), exported, str(exported / "fmopt.json"))
    size = row(found, "size")
    assert size.cells[1].value == (exported / "model.onnx").stat().st_size
    assert size.cells[1].matters
    assert [cell.shown for cell in row(found, "shipped as").cells] == [
        "INT8 on OpenVINO",
        *2 * ["fp16 on ONNX Runtime"],
    ]
    for what in ("latency, shipped", "MRR@10, shipped", "peak memory", "speedup, shipped"):
        assert second(found, what).shown == "not known", what
        assert not row(found, what).matters
    assert "B is a bundle without a record: its latency, accuracy and memory are not known" in found.caveats
    assert any(note.startswith("version of onnxruntime: 1.32.0 in A") or "torch" in note for note in found.caveats)
    assert not any(note.startswith(("memory_gb", "os:")) for note in found.caveats)


def test_a_folder_that_is_neither_record_nor_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has neither record\.json nor fmopt\.json"):
        compare(records.realistic(), tmp_path)


@pytest.mark.parametrize("name", ["smaller-sst2-standard-4x.json", "finetuned-sst2.json"])
def test_committed_records_are_read_also_where_a_script_added_to_them(name: str) -> None:
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    found = compare(results / "finetuned-sst2.json", results / name)
    assert bool([r for r in found.rows if r.matters]) == name.startswith("smaller")


def test_the_command_takes_two_or_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(records.realistic().save(tmp_path / f"{name}.json")) for name in "abc"]
    assert main(["compare", paths[0]]) == 2
    assert "compare takes two or more" in capsys.readouterr().err
    assert main(["compare", *paths, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["titles"]) == 3
    assert {len(line["cells"]) for line in document["rows"]} == {3}
    assert {line["matters"] for line in document["rows"]} == {False}


def test_the_table_names_shipped_reference_failed_and_every_reason() -> None:
    text = printed(trial_table(records.realistic()))
    lines = [line.strip() for line in text.splitlines()]
    first = next(line for line in lines if line.startswith("openvino"))
    assert " ".join(first.split()) == "openvino-static-int8 (shipped) 14.6 ms 19.9 ms 2.15× 0.10 23.4 MB"
    assert lines[lines.index(first) + 1] == "≤ 0.39"  # the bound of the drop, below it
    assert "onnxruntime-fp32 (reference)" in text
    assert "openvino-broken (failed)" in text
    assert "1.02× as long as openvino-static-int8" in text


def test_predictions_are_marked_in_the_table() -> None:
    text = printed(trial_table(records.absent_device()))
    assert "36.6 ms" in text
    assert text.count("predicted") == 9  # below each time


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_panel_has_the_verdict_and_every_check(outcome: Outcome) -> None:
    text = printed(verdict_panel(records.realistic(outcome)), 140)
    assert f"─ {outcome.value} ─" in text
    assert "limit 1.00 pt" in text
    assert "size: 23.4 MB, limit 25.0 MB" in text


def test_names_with_brackets_are_no_markup() -> None:
    odd = records.trial("a[bold]b", "onnxruntime", "int8", 20.0, reason="[red]x")
    text = printed(trial_table(records.realistic(trials=[*records.candidates(), odd])))
    assert "a[bold]b" in text
    assert "[red]x" in text
