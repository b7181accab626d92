#!/usr/bin/env bash
# A network that speaks, optimized and judged on digit words: benchmarks/results/speech-vits-mini.json.
#
#     benchmarks/voices.sh texts       the digits of fsdd, two to six in a row, as words in out/digits
#     benchmarks/voices.sh optimize    the record; the machine should be quiet
#
# The network has random weights: its figures are those of fidelity and speed, not of a voice (docs/speech.md).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}
case ${1:-} in
  texts)
    .venv/bin/python - "$data/fsdd" out/digits <<'PYTHON'
import json, sys
from pathlib import Path
import numpy as np

words = "zero one two three four five six seven eight nine".split()
source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
for split, texts in (("train", 128), ("validation", 64), ("test", 300)):
    labels = np.load(source / f"{split}.npz", allow_pickle=False)["label"]
    draw = np.random.RandomState(13)
    said = [" ".join(words[digit] for digit in draw.choice(labels, draw.randint(2, 7))) for _ in range(texts)]
    (out / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
PYTHON
    ;;
  optimize)
    code=0
    .venv/bin/fmopt optimize "${2:-vits-mini}" --data out/digits --max-drop 10pt -o out/optimized-voice || code=$?
    [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
    .venv/bin/python benchmarks/compact_results.py out/optimized-voice/record.json benchmarks/results/speech-vits-mini.json ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
