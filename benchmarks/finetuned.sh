#!/usr/bin/env bash
# Fine-tune MiniLM on four sets of ../shared/data, optimize each checkpoint, judge it on the test split.
#
#     benchmarks/finetuned.sh train [NAME...]       checkpoints in $FMOPT_CHECKPOINTS (default out/finetuned); resumes
#     benchmarks/finetuned.sh optimize [NAME...]    records in benchmarks/results; the machine should be quiet
#
# About 40 minutes of training and 4 minutes for each optimization on two cores with AVX-512 BF16 and VNNI.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/finetuned}
fmopt=.venv/bin/fmopt
[ $# -gt 0 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
what=$1; shift
[ $# -gt 0 ] || set -- stsb wnut17 banking77 sst2

train() {
  case $1 in
    sst2)      set -- "$1" text-classification  2   1e-4 ;;
    banking77) set -- "$1" text-classification  10  2e-4 ;;
    wnut17)    set -- "$1" token-classification 8   2e-4 ;;
    stsb)      set -- "$1" text-regression      5   1e-4 ;;
    *) echo "no recipe for $1" >&2; exit 2 ;;
  esac
  "$fmopt" finetune minilm --task "$2" --data "$data/$1" -o "$checkpoints/$1" --epochs "$3" --learning-rate "$4"
}

for name in "$@"; do
  case $what in
    train) train "$name" ;;
    optimize)
      code=0
      "$fmopt" optimize "$checkpoints/$name" --data "$data/$name" -o "out/optimized-$name" || code=$?
      [ "$code" -le 4 ] || exit "$code"
      # the record without the texts of changed items: not every data set may be copied
      .venv/bin/python -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])) | {"changed": []}))' \
        "out/optimized-$name/record.json" > "benchmarks/results/finetuned-$name.json" ;;
    *) echo "train or optimize, not $what" >&2; exit 2 ;;
  esac
done
