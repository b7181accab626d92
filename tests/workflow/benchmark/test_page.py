"""The page of a benchmark, and the figures on it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from fmopt.cli.app import main
from fmopt.core.errors import BundleError
from fmopt.workflow.benchmark.page import view, write_benchmark
from fmopt.workflow.benchmark.record import Benchmark, Offline, Server, SingleStream
from fmopt.workflow.benchmark.scenarios import Load, quantile
from tests import benchmarks
from tests.reports.test_html import Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    write_benchmark(benchmarks.realistic(9), made)
    return made


def test_the_page_says_who_is_best_and_what_is_missing(folder: Path) -> None:
    page = Page((folder / "benchmark.html").read_text("utf-8"))
    head = page.words.split("One query of")[0]
    assert "single-stream : out/minilm is best in all 4 cells, at 3.0" in head
    assert "15 of 24 cells are not measured: the time limit of 10 min 00 s was over" in head
    assert "not quiet in 1 of 9 cells" in head
    assert "other processes keep 1.2 of 2 cores busy" in page.words
    assert "out/dynamic <b>int8</b>" in page.words  # as text: the parser saw no such tag


def test_the_page_needs_no_network(folder: Path) -> None:
    source = (folder / "benchmark.html").read_text("utf-8")
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"(?s)<script>.*?</script>", "", source))
    assert "default-src 'none'" in source
    named = {name for _, name, _ in Page(source).attributes}
    assert not named & {"src", "srcset", "action"}
    assert {value[0] for _, name, value in Page(source).attributes if name == "href"} == {"#"}
    assert "@import" not in source
    assert "url(" not in source


def test_every_link_of_the_heat_map_has_its_line(folder: Path) -> None:
    attributes = Page((folder / "benchmark.html").read_text("utf-8")).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value[1:] for _, name, value in attributes if name == "href"}
    assert links <= set(ids)
    assert sum(link.startswith("f") and "-" in link for link in links) == 9 * len(benchmarks.SPEEDS)


def test_markdown_has_the_same_figures(folder: Path) -> None:
    shades = [
        shade for drawn in view(benchmarks.realistic(9))["maps"] for c in drawn.columns for shade in c.shades.values()
    ]
    text = (folder / "benchmark.md").read_text("utf-8")
    assert len(shades) == 9 * len(benchmarks.SPEEDS)
    assert all(shade.figure in text and shade.ratio in text for shade in shades)
    assert "**3.0" in text
    assert "<b>" not in text


def test_the_record_is_read_back_and_draws_the_same_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Benchmark.load(folder) == benchmarks.realistic(9)
    before = (folder / "benchmark.html").read_bytes()
    (folder / "benchmark.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "benchmark.html").read_bytes() == before
    (folder / "damaged.json").write_text('{"fmopt": 1}')
    with pytest.raises(BundleError, match="is damaged at"):
        Benchmark.load(folder / "damaged.json")
    capsys.readouterr()


def test_colour_is_only_where_variants_are_distinguished(folder: Path) -> None:
    shades = view(benchmarks.realistic(9))["maps"][0].columns[0].shades
    same = shades["all-MiniLM-L6-v2 openvino-fp32"]
    fast, slow = shades["out/minilm"], shades["out/slow"]
    assert (same.tone, same.heat) == ("even", 0)
    assert (fast.tone, slow.tone) == ("faster", "slower")
    assert 0 < slow.heat < fast.heat < 1
    assert fast.heat == pytest.approx(math.log(3.07, 4), abs=0.02)
    assert [name for name, shade in shades.items() if shade.reference] == ["all-MiniLM-L6-v2 onnxruntime-fp32"]
    assert [name for name, shade in shades.items() if shade.best] == ["out/minilm"]


def test_without_full_precision_the_first_is_the_reference() -> None:
    found = benchmarks.realistic(9)
    int8 = [one for one in found.variants if one.precision == "int8"]
    cell = found.cells[0]
    assert cell.reference(int8) == "out/minilm"
    assert cell.reference(found.variants) == "all-MiniLM-L6-v2 onnxruntime-fp32"


def test_figures_are_those_of_the_scenario() -> None:
    rng = np.random.default_rng(0)
    single = SingleStream(samples_ms={"a": list(rng.normal(10, 1, 200)), "b": list(rng.normal(5, 0.5, 200))})
    got = single.figure("a", 4)
    assert got is not None
    assert got.point == quantile(single.samples_ms["a"], 0.9)
    assert got.low <= got.point <= got.high
    ratio = single.ratio("b", "a")
    assert ratio is not None
    assert ratio.low < ratio.point == got.point / quantile(single.samples_ms["b"], 0.9) < ratio.high

    offline = Offline(calls={"a": 2, "b": 5}, bursts_ms={"a": [100.0, 300.0] * 10, "b": [50.0] * 20})
    assert [offline.figure(name, 8).point for name in "ab"] == [80, 800]  # type: ignore[union-attr]
    assert offline.ratio("b", "a").point == pytest.approx(10)  # type: ignore[union-attr]


def test_the_server_claims_no_more_than_its_search_showed() -> None:
    def load(rate: float, ms: float) -> Load:
        return Load(rate=rate, queries=10, limit_ms=5, samples_ms=[ms] * 10, busy_s=0)

    loads = {"a": [load(100, 1), load(120, 9), load(110, 9)], "b": [load(300, 9), load(200, 1)], "none": [load(1, 9)]}
    found = Server(limit_ms=5, limit_words="", service_ms={}, loads=loads)
    got, ratio = found.figure("a", 1), found.ratio("b", "a")
    assert got is not None
    assert ratio is not None
    assert (got.point, got.low, got.high) == (100, 100, 110)
    assert (ratio.point, ratio.low, ratio.high) == (2, 200 / 110, 3)
    assert found.figure("none", 1) is None
    assert found.ratio("none", "a") is None
