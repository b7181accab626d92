"""What a notebook shows of a result: its numbers as a table, and nothing of a text as HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from fmopt.core import escaping
from fmopt.core.results import Check, Outcome, Verdict
from fmopt.evaluation.comparison import compare
from fmopt.workflow.regressions import check
from tests.records import realistic

HOSTILE = '<img src=x onerror=alert(1)> & "it\'s" \u202e'
TAGS = {"div", "strong", "p", "table", "thead", "tbody", "tr", "th", "td", "br"}


class Shown(HTMLParser):
    """The tags and the text of some HTML; fails where a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style"}
        if tag != "br":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data


def test_a_record_shows_its_summary_every_variant_and_the_verdict() -> None:
    record = realistic()
    shown = Shown(record._repr_html_())
    assert record.summary in shown.text
    assert [cell for cell in shown.cells if cell.startswith("openvino-static-int8 (shipped)")]
    for trial in record.everything:
        assert any(cell.startswith(trial.name) for cell in shown.cells), trial.name
    assert {"14.6 ms", "2.15×", "23.4 MB"} <= set(shown.cells)
    assert shown.cells[-6:] == ["size", "PASS", "23.4 MB", "", "25.0 MB", ""]


def test_a_drop_of_a_verdict_is_in_points_with_its_interval() -> None:
    assert Shown(realistic().verdict._repr_html_()).cells[:5] == [
        "accuracy drop", "PASS", "0.10 pt", "−0.18 pt to 0.39 pt", "1.00 pt"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "html",
    [
        realistic(summary=HOSTILE)._repr_html_(),
        realistic(model={**realistic().model, "title": HOSTILE})._repr_html_(),
        Verdict(checks=[Check(name=HOSTILE, outcome=Outcome.FAIL, note=HOSTILE)])._repr_html_(),
        compare(realistic(model={**realistic().model, "title": HOSTILE}), realistic())._repr_html_(),
        check(realistic(model={**realistic().model, "title": HOSTILE}), realistic())._repr_html_(),
    ],
    ids=["summary", "title", "check", "comparison", "regressions"],
)
def test_a_text_is_text(html: str) -> None:
    shown = Shown(html)
    assert shown.tags <= TAGS
    if "onerror" in html:
        assert "<img src=x onerror=alert(1)>" in shown.text  # as it was written
    assert "\u202e" not in html  # nothing that turns the direction of writing


def test_html_is_escaped_inside_quotes_too() -> None:
    assert escaping.html("<a href=\"x\" title='y'>&") == "&lt;a href=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;"
