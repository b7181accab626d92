"""Keep committed results small: only what a table or a picture is drawn from, numbers to nine digits, no spaces.

    python benchmarks/compact_results.py                   # every JSON file in benchmarks/results, in place
    python benchmarks/compact_results.py RECORD RESULT     # the record of a run, as the result that is committed

A record stays one: `fmopt compare` reads it. Of scores per item it keeps the metric it was judged by, of the variant that
ships, of the reference, and of the candidates that gate_calibration.py draws its items from; of all others the drops.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gate_populations import RESULTS, SOURCES

DIGITS = 9
# Times of single operators, bytes of layers; and texts of items, for not every data set may be copied.
LEFT_OUT_OF_RECORDS = ("profile", "layer_bytes", "changed")
LEFT_OUT = {  # beginning of a result's name: what no table is drawn from
    "gate-calibration-latency": ("samples_ms",),
    "code-completions": ("answers",),
}


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("result", type=Path, nargs="?")
    asked = parser.parse_args()
    if asked.record is None:
        for path in sorted(RESULTS.glob("*.json")):
            write(json.loads(path.read_text("utf8")), path)
    elif asked.result is None:
        parser.error("name the result that the record becomes")
    else:
        write(json.loads(asked.record.read_text("utf8")), asked.result)


def write(document: dict[str, Any], path: Path) -> None:
    """Write a result as it is committed."""
    path.write_text(text(document, path.stem), "utf8")


def text(document: dict[str, Any], name: str) -> str:
    """A result as its file holds it; `name` is the file's, without the ending."""
    left_out: Collection[str] = next((parts for start, parts in LEFT_OUT.items() if name.startswith(start)), ())
    if "trials" in document and "verdict" in document:
        left_out = LEFT_OUT_OF_RECORDS
        document = with_few_scores(document, name)
    small = rounded(without(document, left_out))
    return json.dumps(small, ensure_ascii=False, separators=(",", ":")) + "\n"


def with_few_scores(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A record with scores of the variants alone that something is computed from."""
    read = {candidate for _, file, candidate, _ in SOURCES.values() if file == name}
    kept = read | {record["winner"], record["reference"]}
    return record | {
        part: [with_judged_scores(trial, kept=trial["recipe"]["name"] in kept) for trial in record[part]]
        for part in ("baselines", "trials")
    }


def with_judged_scores(trial: dict[str, Any], *, kept: bool) -> dict[str, Any]:
    """A variant with the scores of the metric it is judged by, or with none."""
    return trial | {
        split: [scores for scores in trial[split] if kept and scores["primary"]] for split in ("scores", "test_scores")
    }


def without(value: Any, names: Collection[str]) -> Any:
    """The same without the fields of these names, however deep they lie."""
    if isinstance(value, dict):
        return {key: without(part, names) for key, part in value.items() if key not in names}
    return [without(part, names) for part in value] if isinstance(value, list) else value


def rounded(value: Any) -> Any:
    """The same with every number to `DIGITS` digits; whole ones stay, in lists without `.0`."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [int(part) if isinstance(part, float) and part.is_integer() else rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) and not value.is_integer() else value


if __name__ == "__main__":
    main()
