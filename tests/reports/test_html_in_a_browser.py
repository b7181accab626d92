"""The page as a browser shows it: without a network, on a phone, by keyboard, in the dark and on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import chromium
from fmopt.reports.html import write_report
from tests import records

pytestmark = pytest.mark.skipif(chromium.installed() is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(records.realistic(), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path / "profile") as started:
        yield started


def test_it_is_whole_without_a_network_and_as_wide_as_a_phone(browser: chromium.Browser, page: Path) -> None:
    browser.open(page, width=390, height=800, phone=True)
    assert [event["request"]["url"] for event in browser.reported("Network.requestWillBeSent")] == [page.as_uri()]
    assert browser.reported("Runtime.exceptionThrown") + browser.reported("Log.entryAdded") == []
    assert browser.reported("Runtime.consoleAPICalled") == []
    assert browser.value("document.documentElement.scrollWidth") == 390
    beyond = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML)"
    assert browser.value(beyond) == []


def test_a_recipe_is_shown_to_the_keyboard_and_put_away_again(browser: chromium.Browser, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelector('#plot svg.wide a:last-of-type').previousElementSibling.focus()")
    browser.press("Tab")
    reported = browser.value("document.activeElement.dataset.tip")
    assert browser.value("[tip.hidden, tip.textContent]") == [False, reported]
    assert "INT8 on OpenVINO" in reported
    browser.press("Escape")
    assert browser.value("tip.hidden") is True


def test_a_column_sorts(browser: chromium.Browser, page: Path) -> None:
    browser.open(page)
    browser.value("[...document.querySelectorAll('#variants th button')].find(b => b.textContent == 'size').click()")
    sizes = browser.value("[...document.querySelectorAll('#variants tbody td[data-name=size]')].map(c => +c.dataset.v)")
    known = [size for size in sizes if size]
    assert known == sorted(known)
    assert len(known) >= 9


def test_it_turns_dark_and_prints_with_everything_open(browser: chromium.Browser, page: Path) -> None:
    browser.open(page, dark=True)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    counting = "window.left_shut = document.querySelectorAll('details:not([open])').length"
    browser.value(f"addEventListener('beforeprint', () => {{ {counting} }})")
    printed = browser.call("Page.printToPDF")
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert browser.value("[document.querySelectorAll('details').length > 0, left_shut]") == [True, 0]
    assert browser.value("document.querySelectorAll('details[open]').length") == 0
