"""Accuracy against speed, ours and the peers', from the committed results alone: `image.py` writes docs/speed-accuracy.svg.

Speed is against ONNX Runtime fp32 on the same machine; accuracy is the change of the metric on the test split against
full precision, in points: STS-B Spearman for the peers (and our own bundle there), each data set's own metric for our
fine-tuned checkpoints.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from peers.comparison import read_all
from smaller import over_full

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 470, 64, 24, 30, 52
LOWEST, HIGHEST = -4.0, 1.5  # points; what lies lower is drawn on the edge and says so
FASTEST = 30.0
OURS, THEIRS = "#d95f0e", "#999"


class Point(NamedTuple):
    """One mark."""

    name: str
    speed: float
    change: float  # points
    ours: bool


def points() -> list[Point]:
    """Every peer and every result of ours."""
    found = []
    peers = next(each for each in read_all(HERE / "results") if each.subject == "minilm")
    for row in peers.rows:
        name = "STS-B embeddings, quick" if row.ours else row.name
        speed = row.over_onnx_runtime.point if row.over_onnx_runtime else 1.0
        if row.drop:
            found.append(Point(name, speed, -100 * row.drop.point, row.ours))
    for path in sorted((HERE / "results").glob("smaller-*.json")) + sorted((HERE / "results").glob("finetuned-*.json")):
        record = json.loads(path.read_text())
        trials = {trial["recipe"]["name"]: trial for trial in (*record["baselines"], *record["trials"])}
        won = trials[record["winner"]]
        speed = over_full(won["speedup"]["point"], trials)
        name = f"{path.stem.split('-')[1]}, {record['effort']}"
        found.append(Point(name, speed, -100 * won["test_drop"]["point"], ours=True))
    return found


def x_of(speed: float) -> float:
    """Pixels, logarithmic."""
    share = math.log(speed / 0.8) / math.log(FASTEST / 0.8)
    return LEFT + min(max(share, 0), 1) * (WIDTH - LEFT - RIGHT)


def y_of(change: float) -> float:
    """Pixels."""
    share = (min(max(change, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def draw(marks: list[Point]) -> str:
    """The image."""
    middle, floor = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        tag("rect", width=WIDTH, height=HEIGHT, fill="#fff"),
        tag(
            "rect", x=LEFT, y=y_of(HIGHEST), width=WIDTH - LEFT - RIGHT, height=y_of(-1) - y_of(HIGHEST), fill="#eef6f1"
        ),
    ]
    for speed in (1, 2, 3, 4, 6, 8, 12, 16, 20, 25):
        parts.append(tag("line", x1=x_of(speed), x2=x_of(speed), y1=TOP, y2=floor, stroke="#e3e3e3"))
        parts.append(tag("text", f"{speed}×", x=x_of(speed), y=floor + 18, text_anchor="middle", fill="#444"))
    for change in range(math.ceil(LOWEST), math.floor(HIGHEST) + 1):
        stroke = {0: "#bbb", -1: "#c33"}.get(change, "#e3e3e3")
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y_of(change), y2=y_of(change), stroke=stroke))
        said = f"{change:+d}".replace("-", "−") if change else "0"
        parts.append(tag("text", said, x=LEFT - 8, y=y_of(change) + 4, text_anchor="end", fill="#444"))
    taken: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda point: (point.ours, point.speed)):
        parts.append(drawn(mark, taken))
    across = "times as fast as ONNX Runtime fp32 · batch 1, 128 tokens, 1 thread"
    parts.append(tag("text", across, x=middle, y=HEIGHT - 12, text_anchor="middle", fill="#222"))
    upright = f"translate(16 {(TOP + floor) / 2:.1f}) rotate(-90)"
    parts.append(
        tag("text", "change of the metric on test, points", transform=upright, text_anchor="middle", fill="#222")
    )
    for at, colour, said in (
        (14, OURS, "fmopt, on MiniLM and MiniLM fine-tuned"),
        (300, THEIRS, "other tools, on MiniLM (STS-B)"),
    ):
        parts.append(tag("circle", cx=LEFT + at, cy=TOP - 14, r=5, fill=colour))
        parts.append(tag("text", said, x=LEFT + at + 12, y=TOP - 10, fill="#222"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def drawn(mark: Point, taken: list[tuple[float, float, float]]) -> str:
    """A mark with its words, out of the way of those in `taken`; one below the scale is a triangle that tells its value."""
    x, y, below = x_of(mark.speed), y_of(mark.change), mark.change < LOWEST
    colour = OURS if mark.ours else THEIRS
    shape = (
        tag("path", d=f"M{x - 6:.1f},{y - 10:.1f} h12 l-6,10 z", fill=colour)
        if below
        else tag("circle", cx=x, cy=y, r=6 if mark.ours else 4.5, fill=colour)
    )
    words = tag("title", f"{mark.name}: {mark.speed:.2f}×, {mark.change:+.2f} points") + shape
    if mark.ours or below:
        text = f"{mark.name}: {mark.change:+.0f}" if below else mark.name
        left = mark.speed > FASTEST / 2
        start = x - 10 - 6.2 * len(text) if left else x + 10
        at = free(start, y - 6 if below else y + 4, 6.2 * len(text), taken)
        words += tag("text", text, x=start, y=at, font_size=11, fill="#a3450a" if mark.ours else "#777")
    return f"<g>{words}</g>"


def free(start: float, y: float, width: float, taken: list[tuple[float, float, float]]) -> float:
    """The nearest height to `y` where a label from `start` meets none that is taken; it is taken then."""
    for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5):
        at = y + 13 * step
        if all(abs(at - other) >= 12 or start > end or start + width < begin for begin, end, other in taken):
            break
    taken.append((start, start + width, at))
    return at


def tag(name: str, text: str = "", **attributes: object) -> str:
    """An element; numbers get one decimal."""
    said = "".join(
        f' {key.replace("_", "-")}="{value:.1f}"' if isinstance(value, float) else f' {key.replace("_", "-")}="{value}"'
        for key, value in attributes.items()
    )
    return f"<{name}{said}>{text}</{name}>"


if __name__ == "__main__":
    (HERE.parent / "docs" / "speed-accuracy.svg").write_text(draw(points()), encoding="utf-8")
