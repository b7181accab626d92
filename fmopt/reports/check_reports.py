"""What came of a check, as continuous integration reads it: JUnit XML, annotations of GitHub, a summary in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from fmopt.core import escaping, formatting
from fmopt.core.results import Check, Outcome

LEVELS = {Outcome.PASS: "notice", Outcome.FAIL: "error", Outcome.UNDECIDED: "warning", Outcome.UNMEASURED: "warning"}


def in_words(check: Check) -> str:
    """A check in one line: what came, its limit, and the note."""
    parts = []
    if check.got is not None:
        point, low, high = (_amount(value, check) for value in (check.got.point, check.got.low, check.got.high))
        parts.append(point if low == high else f"{point} ({low} to {high})")
    if check.limit is not None:
        parts.append(f"at most {_amount(check.limit, check)}")
    return "; ".join([*parts, *([check.note] if check.note else [])])


def _amount(value: float, check: Check) -> str:
    return f"{formatting.points(value)} pt" if check.name == "accuracy drop" else f"{value:.3g}{check.unit}"


def junit(title: str, checks: Sequence[Check]) -> str:
    """A test suite with a case for each check (the format that Jenkins, GitLab and GitHub's reporters read)."""
    counts = {outcome: sum(check.outcome is outcome for check in checks) for outcome in Outcome}
    doubtful = counts[Outcome.UNDECIDED] + counts[Outcome.UNMEASURED]
    suite = ElementTree.Element(
        "testsuite", name=escaping.one_line(f"fmopt check: {title}"), tests=str(len(checks)),
        failures=str(counts[Outcome.FAIL]), errors=str(doubtful), skipped="0",
    )  # fmt: skip
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="fmopt.check", name=escaping.one_line(check.name))
        said = escaping.one_line(in_words(check))
        if check.outcome is not Outcome.PASS:
            kind = "failure" if check.outcome is Outcome.FAIL else "error"
            ElementTree.SubElement(case, kind, type=check.outcome.value, message=said)
        else:
            ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(checks: Sequence[Check]) -> list[str]:
    """Workflow commands of GitHub, one for each check."""
    return [
        f"::{LEVELS[check.outcome]} title={_property(f'fmopt: {check.name} {check.outcome.value}')}::{_data(in_words(check))}"
        for check in checks
    ]


def _data(text: str) -> str:
    return escaping.one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def markdown(candidate: str, reference: str, outcome: Outcome, checks: Sequence[Check], caveats: Sequence[str]) -> str:
    """A summary for a pull request."""
    rows = [
        f"| {escaping.markdown(check.name)} | {check.outcome.value} | {escaping.markdown(in_words(check))} |"
        for check in checks
    ]
    notes = [f"* {escaping.markdown(caveat)}" for caveat in caveats]
    return "\n".join(
        [
            f"### fmopt check: {outcome.value}", "",
            f"B: {escaping.markdown(candidate)}, held to A: {escaping.markdown(reference)}", "",
            "| check | | |", "|---|---|---|", *rows, *([""] if notes else []), *notes, "",
        ]
    )  # fmt: skip
