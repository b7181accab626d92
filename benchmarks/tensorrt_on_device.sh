#!/usr/bin/env bash
# The whole road on a machine with TensorRT: graphs in every precision, engines, checks and latencies, in one JSON.
#   benchmarks/tensorrt_on_device.sh MODEL TARGET OUT.json [LENGTH]      MODEL as for `fmopt optimize`, TARGET e.g. nvidia-h100
# Needs fmopt, `pip install tensorrt cuda-python` and an NVIDIA GPU; exit code 4 without. The same call again resumes.
set -euo pipefail

if [ $# -lt 3 ]; then sed -n '2,4p' "$0"; exit 2; fi
model=$1 target=$2 out=$3 length=${4:-128}
python=${PYTHON:-python}
if ! reason=$("$python" -c 'import sys; from fmopt.edge.tensorrt import absent; why = absent(); print(why or ""); sys.exit(why is not None)'); then
  echo "UNMEASURED: $reason" >&2
  exit 4
fi
work=${out%.json}-bundles
mkdir -p "$work"

recipe() {  # NAME PRECISION STEP_TOML
  printf 'name = "tensorrt-%s"\nruntime = "tensorrt"\nprecision = "%s"\n%s\n' "$1" "$2" "$3" > "$work/$1.toml"
}
half() { printf '[[steps]]\nuse = "cast"\noptions = { to = "%s" }\n' "$1"; }
recipe fp32 fp32 ""
recipe fp16 fp16 "$(half fp16)"
recipe bf16 bf16 "$(half bf16)"
recipe int8 int8 "$(printf '[[steps]]\nuse = "quantize_static"\n'; half fp16)"
recipe fp8 fp8 "$(printf '[[steps]]\nuse = "quantize_fp8"\n'; half fp16)"

for name in fp32 fp16 bf16 int8 fp8; do
  bundle=$work/$name
  code=0  # 1, 3 and 4 are verdicts; 2 is a recipe that this device does not take
  "$python" -m fmopt optimize "$model" --target "$target" --length "$length" --recipe "$work/$name.toml" -o "$bundle" \
    --json > "$work/$name.optimize.json" 2> "$work/$name.log" || code=$?
  if [ "$code" = 2 ]; then echo "$name: $(tail -n 1 "$work/$name.log")" >&2; continue; fi
  ( cd "$bundle"
    "$python" run.py build > "../$name.build.json" 2>> "../$name.log"
    "$python" run.py verify --json > "../$name.verify.json" 2>> "../$name.log" || true
    "$python" run.py bench --json --length "$length" > "../$name.bench.json" 2>> "../$name.log" )
  echo "$name: done" >&2
done

"$python" - "$work" "$out" <<'PY'
import json
import sys
from pathlib import Path

work, out = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
for name in ("fp32", "fp16", "bf16", "int8", "fp8"):
    parts = {part: work / f"{name}.{part}.json" for part in ("optimize", "build", "verify", "bench")}
    texts = {part: path.read_text() for part, path in parts.items() if path.is_file()}
    read = {part: json.loads(text) for part, text in texts.items() if text.strip()}
    record = read.pop("optimize", None)
    if record:
        trials = record["trials"] + record["baselines"]
        shipped = next(trial for trial in trials if trial["recipe"]["name"] == record["winner"])
        drop = shipped["test_drop"] or shipped["drop"]
        read["accuracy"] = {"winner": record["winner"], "verdict": record["verdict"], "drop": drop}
    log = (work / f"{name}.log").read_text().strip().splitlines()
    found[name] = read or {"refused": log[-1] if log else "no reason was given"}
out.write_text(json.dumps(found, indent=1))
print(out)
PY
