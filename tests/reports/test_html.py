import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fmopt.core.results import Circumstances, Estimate, Latency, OpTime, Outcome
from fmopt.evaluation.record import Changed, RecipeLine, Record, Trial
from fmopt.models.families.base import Stack
from fmopt.models.structure import LayerMetadata, LayerWidths, Structure
from fmopt.reports.axes import Scale, nice_step
from fmopt.reports.html import budget_words, write_markdown, write_report
from fmopt.reports.layer_table import layer_table, left_by_layer
from fmopt.reports.plots import on_front, scatter
from fmopt.reports.profile import layer_of, spent_by_kind, spent_by_layer
from fmopt.reports.roofline import distance_by_layer, points_of, roof_plot
from fmopt.reports.waterfall import falls
from tests import records

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Text a reader sees, attributes by name, and whether tags are balanced."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(source)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def drawn(record: Record, folder: Path) -> tuple[Page, str]:
    source = write_report(record, folder / "report.html").read_text(encoding="utf-8")
    return Page(source), source


def test_verdict_and_summary_come_first(tmp_path: Path) -> None:
    page, _ = drawn(records.realistic(), tmp_path)
    head = page.words.split("What was asked for")[0]
    assert "✓ PASS all-MiniLM-L6-v2" in head
    assert records.realistic().summary in head
    assert "2.15× 2.12–2.19" in head
    assert "another process used 31 % of a core" in head


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_its_page(tmp_path: Path, outcome: Outcome) -> None:
    record = records.absent_device() if outcome is Outcome.UNMEASURED else records.realistic(outcome)
    page, source = drawn(record, tmp_path)
    assert f"<title>{outcome.value} · all-MiniLM-L6-v2 on" in source
    assert f" {outcome.value} " in page.words


def test_a_device_that_is_not_here_shows_predictions_as_such(tmp_path: Path) -> None:
    page, _ = drawn(records.absent_device(), tmp_path)
    assert "predictions of a roofline model" in page.words
    assert "36.6 ms predicted" in page.words
    assert "as fast as" not in page.words
    assert "All variants were timed in turn" not in page.words


def test_undecided_says_how_many_items_would_decide(tmp_path: Path) -> None:
    page, _ = drawn(records.realistic(Outcome.UNDECIDED), tmp_path)
    assert "about 5,513 items would decide" in page.words


def test_all_sections_say_what_a_reader_looks_for(tmp_path: Path) -> None:
    page, _ = drawn(records.realistic(), tmp_path)
    for text in (
        "openvino-nncf-int8",
        "faster, but accuracy may fall by 2.90 pt on validation, allowed are 1.00",
        "the exported graph differs from the torch model by 3.1",
        "on test 0.10",
        "−0.18 to 0.39",
        "from raw input to answer",
        "softmax, GELU and LayerNorm stay in float",
        "activations are quantized again before each of 36 MatMul",
        "openvino-bf16 : this CPU has no bf16",
        "Test whether a path is absolute",
        "layer 3",
        "7.10 MB → 1.77 MB",
        "22,713,216",
        "calibration: 512, validation: 600, test: 1,800",
        "max size 25.0 MB",
        "fmopt optimize minilm --max-drop 1pt --min-speedup 2x --max-size 25MB -o out/minilm",
    ):
        assert text in page.words, text


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page, source = drawn(records.realistic(), tmp_path)
    assert "http" not in re.sub(r"http-equiv", "", source)
    assert "url(" not in source
    assert "@import" not in source
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "src", "xlink:href"))
    assert "default-src 'none'" in source


def test_texts_of_the_data_cannot_become_markup_or_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' {{ 7*7 }}"
    base = records.realistic()
    record = base.model_copy(
        update={
            "command": evil,
            "summary": evil,
            "model": base.model | {"title": evil},
            "data": base.data | {"name": evil, "notes": [evil]},
            "changed": [Changed(row=1, text=evil, label=evil, baseline=evil, candidate=evil)],
            "trials": [
                *base.trials,
                Trial(
                    recipe=RecipeLine(name=evil, runtime=evil, precision="int8", steps=[evil]),
                    status="failed",
                    reason=evil,
                ),
                records.trial(evil, evil, "int8", 20.0, drop=(0.001, 0, 0.002), reason=evil),
            ],
            "circumstances": Circumstances(
                host={evil: evil},
                versions={evil: evil},
                threads=1,
                batch=1,
                length=1,
                seed=0,
                date=evil,
                warnings=[evil],
            ),
        }
    )
    page, source = drawn(record, tmp_path)
    assert len(re.findall(r"<script", source)) == 1
    assert "<img" not in source
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "49" not in page.words.split("Reproduce")[-1]
    assert page.words.count("</script><script>alert(1)</script><img src=x onerror=alert(2)>") >= 9
    markdown = write_markdown(record, tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.split("Reproduce:")[0]


def test_only_the_one_script_may_run(tmp_path: Path) -> None:
    import base64
    import hashlib

    _, source = drawn(records.realistic(), tmp_path)
    script = re.search(r"<script>(.*?)</script>", source, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source


def test_a_hundred_candidates_with_all_their_samples_stay_a_small_page(tmp_path: Path) -> None:
    record = records.many(100)
    sample = Latency(samples_ms=records.samples(20.0, n=2000, seed=9), batch=1, length=128, threads=1)
    changed = [Changed(row=i, text="ä" * 5000, label="l" * 500, baseline="b", candidate="c") for i in range(40)]
    record = record.model_copy(
        update={
            "trials": [t.model_copy(update={"latency": t.latency and sample}) for t in record.trials],
            "changed": changed,
        }
    )
    page, source = drawn(record, tmp_path)
    assert len(record.trials) == 100
    assert len(source.encode()) < 3_000_000
    assert len(re.findall(r'<tr id="v\d+"', source)) == 103
    words = page.words
    assert all(f"{trial.name} " in words for trial in record.trials)
    markdown = write_markdown(record, tmp_path / "report.md").read_text(encoding="utf-8")
    variants = markdown.split("## All variants")[1].split("\n## ")[0]
    assert all(trial.name in variants for trial in record.trials)


def test_every_mark_leads_to_its_row_and_has_words_for_those_who_cannot_see_it(tmp_path: Path) -> None:
    page, _ = drawn(records.realistic(), tmp_path)
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = [value[1:] for _, name, value in page.attributes if name == "href"]
    assert set(links) <= ids
    labels = [value.splitlines() for tag, name, value in page.attributes if tag == "a" and name == "aria-label"]
    variants = [label for label in labels if label[-1].startswith("size ")]
    assert len(variants) == 2 * 9
    assert [
        "1 · openvino-static-int8",
        "INT8 on OpenVINO",
        "1. quantize_static(calibrator=mse, smooth=search)",
        "runtime options: precision: bf16",
        "median 14.6 ms, 2.15× (2.12–2.19)",
        "drop 0.11 pt (−0.09 to 0.36)",
        "size 23.4 MB",
    ] in variants


def test_a_record_with_next_to_nothing_still_has_a_page(tmp_path: Path) -> None:
    bare = Trial(recipe=RecipeLine(name="torch-fp32", runtime="torch"), status="failed", reason="no memory")
    record = records.realistic(
        baselines=[bare],
        trials=[],
        winner="",
        reference="",
        changed=[],
        refused=[],
        stages={},
        model={"title": "m"},
        data={},
    )
    page, _ = drawn(record, tmp_path)
    assert "no memory" in page.words
    assert write_markdown(record, tmp_path).name == "report.md"


def test_leaving_it_as_it_is_shows_one_variant_once(tmp_path: Path) -> None:
    page, _ = drawn(records.realistic(winner="onnxruntime-fp32"), tmp_path)
    assert "leave the model as it is" in page.words
    assert "was 31.5 ms" not in page.words


def test_markdown_holds_the_same_figures(tmp_path: Path) -> None:
    text = write_markdown(records.realistic(), tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# PASS · all-MiniLM-L6-v2 on AMD EPYC")
    rows = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert rows == [
        "| 1 | **openvino-static-int8**, shipped, front | quantize\\_static(calibrator=mse, smooth=search), precision: bf16 "
        "| 14.6 ms | 15.2 ms | 19.9 ms | 2.15× (2.12–2.19) "
        "| 0.11 (−0.09 to 0.36) | 23.4 MB | 157 MB | 107 ms |  |"
    ]
    variants = text.split("## All variants")[1].split("## ")[0]
    assert {line.count("|") for line in variants.splitlines() if line.startswith("|")} == {13}


def test_one_ruined_variant_does_not_flatten_the_others() -> None:
    record = records.realistic()
    plot = scatter(record, record.everything, 960, 440)
    assert plot is not None
    by_name = {mark.trial.name: mark for mark in plot.marks}
    ruined = by_name["onnxruntime-own-static-int8"]
    assert ruined.below
    assert ruined.y == plot.bottom
    assert by_name["openvino-static-int8-minmax"].y - by_name["openvino-static-int8"].y > 100
    assert plot.missing == 1


def test_areas_are_in_the_ratio_of_the_sizes_and_the_legend_keeps_to_it() -> None:
    record = records.realistic()
    plot = scatter(record, record.everything, 960, 440)
    assert plot is not None
    per_byte = {mark.trial.name: mark.radius**2 / (mark.trial.size_bytes or 1) for mark in plot.marks}
    assert max(per_byte.values()) == pytest.approx(min(per_byte.values()), rel=0.05)
    assert [text for _, text in plot.sizes] == ["10.0 MB", "20.0 MB", "50.0 MB"]
    assert plot.sizes[-1][0] ** 2 / 50e6 == pytest.approx(per_byte["torch-fp32"], rel=0.05)


def test_the_front_steps_through_what_none_is_both_faster_and_more_accurate_than() -> None:
    made = [
        records.trial(name, "openvino", "int8", ms, drop=(drop, drop, drop), mb=mb)
        for name, ms, drop, mb in (
            ("fast", 10, 0.01, 20), ("beaten", 12, 0.012, 20), ("small", 13, 0.011, 10), ("exact", 20, 0.0, 90),
            ("slow", 25, 0.0, 90),
        )
    ]  # fmt: skip
    assert on_front(made) == {"fast", "small", "exact"}
    plot = scatter(records.realistic(baselines=[], trials=made, winner="fast"), made, 960, 440)
    assert plot is not None
    at = {mark.trial.name: mark for mark in plot.marks}
    assert plot.front == (f"M{at['fast'].x},{at['fast'].y} H{at['exact'].x} V{at['exact'].y} H{plot.right}")


def test_the_waterfall_goes_on_where_the_bar_before_ended() -> None:
    latency, size, accuracy = falls(records.realistic())
    for fall in (latency, size, accuracy):
        assert [bar.kind == "total" for bar in fall.bars] == [True, False, False, False, True]
        for before, bar in itertools.pairwise(fall.bars[:-1]):
            ends = (before.start, before.start + before.width)
            assert any(bar.came_from == pytest.approx(end, abs=0.02) for end in ends)
    assert [bar.kind for bar in latency.bars] == ["total", "better", "same", "better", "total"]
    assert [bar.kind for bar in accuracy.bars] == ["total", "worse", "better", "worse", "total"]
    assert [bar.change for bar in latency.bars] == ["", "1.38× as fast", "1.00× as fast", "1.64× as fast", ""]
    assert [bar.change for bar in size.bars] == ["", "−19.3 MB", "no change", "−47.6 MB", ""]
    assert (accuracy.bars[1].value, accuracy.bars[1].interval) == ("−1.20 pt", "−1.70 pt to −0.80 pt")
    assert latency.bars[0].width == 100
    assert latency.bars[-1].width == pytest.approx(100 * 14.6 / 33, abs=0.02)


def test_a_layer_has_its_precision_sensitivity_and_what_pruning_left() -> None:
    record = records.realistic()
    table = layer_table(record, points_of(record))
    assert table is not None
    assert (table.measured_on, table.pruned) == ("openvino-nncf-int8", True)
    lines = {line.spent.name: line for line in table.lines}
    assert lines["layer 1"].heads == (9, 12)
    assert lines["layer 1"].neurons == (768, 1536)
    assert lines["layer 2"].neurons == (1536, 1536)
    assert lines["layer 1"].precision == "INT8 55 %, fp32 45 %"
    assert lines["layer 1"].sensitivity == pytest.approx(2 * 2 * 0.0004)  # two groups
    assert lines["embeddings"].sensitivity is None
    assert lines["embeddings"].heads is None


def test_layers_of_a_decoder_are_counted_by_themselves() -> None:
    """Of an encoder and a decoder, whose heads are those of both attentions; and of OPT, whose layers are called so too."""
    record = records.realistic()

    def left(stack: Stack, cross: tuple[int, ...], less: int) -> LayerMetadata:
        one = LayerWidths(heads=tuple(range(12 - less)), ffn=1536 - less, cross=cross, stack=stack)
        layers = (LayerWidths(heads=(0,), ffn=8, stack="encoder"),) if stack else ()
        return LayerMetadata(structure=Structure(layers=(*layers, one)))

    def widths(stack: Stack, cross: tuple[int, ...]) -> dict[str, object]:
        trials = [
            one.model_copy(update={"layers": left(stack, cross[: 1 if less else 2], less)})
            for less, part in ((0, record.baselines), (3, record.trials)) for one in part
        ]  # fmt: skip
        count = len(record.baselines)
        return dict(left_by_layer(record.model_copy(update={"baselines": trials[:count], "trials": trials[count:]})))

    both = widths("decoder", (0, 1))
    assert both == {"layer 0": ((1, 1), (8, 8)), "decoder layer 0": ((10, 14), (1533, 1536))}
    assert widths("", ())["decoder layer 0"] == ((9, 12), (1533, 1536))


def test_layers_sit_under_the_ceilings_that_were_measured() -> None:
    record = records.realistic()
    points = points_of(record)
    plot = roof_plot(record, points, 960, 440)
    assert plot is not None
    assert {line.precision for line in plot.roofs} == {"fp32", "int8"}
    assert len(plot.dots) == len([point for point in points if point.operations])
    for dot in plot.dots:
        assert plot.left <= dot.x <= plot.right
        assert plot.top <= dot.y <= plot.bottom
        assert (dot.y > dot.floor_y) is (dot.point.of_roof < 1)  # pixels grow downwards
    floor, times = distance_by_layer(points)["layer 3"]
    inside = [point for point in points if ".layer.3." in point.layer]
    assert floor * times == pytest.approx(sum(point.ms for point in inside))
    assert roof_plot(record, [], 960, 440) is None


def test_a_record_from_before_there_were_points_has_no_roofline(tmp_path: Path) -> None:
    old = json.loads(records.realistic().model_dump_json())
    for trial in old["baselines"] + old["trials"]:
        del trial["layers"]
        for op in trial["profile"]:
            del op["operations"], op["bytes"]
    page, _ = drawn(Record.model_validate(old), tmp_path)
    assert "Roofline" not in page.words
    assert "Layer by layer" in page.words
    assert "FFN neurons" not in page.words


@pytest.mark.parametrize("width", [380, 960])
def test_labels_do_not_collide(width: int) -> None:
    record = records.many(100)
    plot = scatter(record, record.everything, width, 420)
    assert plot is not None
    boxes = []
    for mark in plot.marks:
        if mark.label:
            wide = 6.4 * len(mark.label)
            x = mark.label_x - {"start": 0, "middle": wide / 2, "end": wide}[mark.anchor]
            boxes.append((x, mark.label_y - 10, x + wide, mark.label_y + 3))
    assert len(boxes) > 10
    clash = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]
    assert clash == []
    assert all(plot.left < a[0] and a[2] < plot.right for a in boxes)


def test_bars_hold_infinite_bounds_inside_the_plot() -> None:
    record = records.realistic()
    wild = record.trials[1].model_copy(
        update={
            "drop": Estimate(point=0.001, low=float("-inf"), high=float("inf")),
            "speedup": Estimate(point=2, low=0, high=float("inf")),
        }
    )
    plot = scatter(record, [*record.baselines, record.trials[0], wild], 960, 440)
    assert plot is not None
    mark = plot.marks[-1]
    assert (mark.y_high, mark.y_low) == (plot.top, plot.bottom)
    assert plot.left <= mark.x_low <= mark.x_high <= plot.right


@pytest.mark.parametrize(("rough", "nice"), [(0.7, 1), (1.0, 1), (1.2, 2), (3, 5), (7, 10), (0.03, 0.05), (120, 200)])
def test_ticks_are_round(rough: float, nice: float) -> None:
    assert nice_step(rough) == pytest.approx(nice)


def test_logarithmic_ticks_stay_few() -> None:
    ticks = Scale(0.8, 900, 0, 100, log=True).ticks(5)
    assert 3 <= len(ticks) <= 6
    assert ticks == sorted(ticks)


def test_time_is_added_up_by_kind_and_by_layer() -> None:
    before = records.trial("a", "onnxruntime", "fp32", 30.0, layer_bytes={"encoder.layer.1.x": 40})
    after = records.trial("b", "openvino", "int8", 10.0, layer_bytes={"encoder.layer.1.x": 7, "encoder.layer.1.y": 3})
    kinds = {s.name: s for s in spent_by_kind(before, after)}
    assert kinds["MatMul"].before == pytest.approx(0.98 * 30 * 0.6)
    assert kinds["MatMul"].after == 0
    layers = spent_by_layer(before, after)
    assert [s.name for s in layers] == ["embeddings"] + [f"layer {i}" for i in range(6)]
    assert sum(s.before for s in layers) == pytest.approx(30.0)
    assert (layers[2].before_bytes, layers[2].after_bytes) == (40, 10)


def test_many_kinds_are_folded_into_one_line() -> None:
    many = records.trial("a", "torch", "fp32", 1.0).model_copy(
        update={"profile": [OpTime(name=f"op{i}", kind=f"kind{i}", ms=20 - i) for i in range(20)]}
    )
    found = spent_by_kind(many, None)
    assert len(found) == 13
    assert found[-1].name == "8 other kinds"
    assert found[-1].before == sum(20 - i for i in range(12, 20))


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("bert.encoder.layer.11.output.dense", "layer 11"),
        ("model.encoder.layers.2.fc1", "layer 2"),
        ("model.decoder.layers.2.encoder_attn.q_proj", "decoder layer 2"),
        ("embeddings.word_embeddings", "embeddings"),
        ("classifier", "classifier"),
        ("", "elsewhere"),
    ],
)
def test_layers_are_read_off_module_names(module: str, layer: str) -> None:
    assert layer_of(module) == layer


def test_the_budget_reads_as_it_was_asked() -> None:
    from fmopt.evaluation.gate import Budget

    asked = Budget.parse(max_drop="0.5%", min_speedup="2x", max_latency="8ms", max_size="25MB").model_dump(mode="json")
    assert budget_words(asked) == [
        ("max drop", "0.5 %"),
        ("min speedup", "2×"),
        ("max latency", "8.00 ms"),
        ("max size", "25.0 MB"),
        ("confidence", "95 %"),
    ]
