"""Data that runs of the whole road take."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from tests.conftest import LABELS, SENTENCES

ROWS = 160


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A csv of sentences, each with a word that makes it another one, and a label."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    draw = random.Random(0)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(ROWS):
            writer.writerow(
                [" ".join(draw.choices(words, k=8 + number % 9)), draw.choice(LABELS["text-classification"])]
            )
    return path
