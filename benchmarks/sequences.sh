#!/usr/bin/env bash
# Train models of an encoder and a decoder from random weights, optimize each, judge it on the test split.
#
#     benchmarks/sequences.sh train [NAME...]       checkpoints in $FMOPT_CHECKPOINTS (default out/sequences); resumes
#     benchmarks/sequences.sh optimize [NAME...]    records in benchmarks/results; the machine should be quiet
#     benchmarks/sequences.sh smaller [NAME...]     pruned in both stacks and distilled to $SPEEDUP (4x), within $DROP (1pt), or by $RECIPE
#
# NAME is translation (Marian-shaped, multi30k), summaries (T5-shaped, scitldr) or digits (Whisper-shaped, fsdd). $EPOCHS overrides what the entries of models/ say.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/sequences}
fmopt=.venv/bin/fmopt
[ $# -gt 0 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
what=$1; shift
[ $# -gt 0 ] || set -- translation summaries digits

for name in "$@"; do
  case $name in
    translation) model=translation-mini set=multi30k length=16 ;;
    summaries)   model=summary-mini set=scitldr length=128 ;;
    digits)      model=whisper-mini set=fsdd length= ;;
    *) echo "no recipe for $name" >&2; exit 2 ;;
  esac
  from=$data/$set
  # a transcript is what is said: the words, not the numbers of the classes
  if [ "$name" = digits ]; then
    from=out/fsdd
    mkdir -p "$from"
    cp -f "$data/$set"/*.npz "$from"
    echo '["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]' > "$from/labels.json"
  fi
  case $what in
    train) "$fmopt" finetune "$model" --data "$from" -o "$checkpoints/$name" ${EPOCHS:+--epochs "$EPOCHS"} ;;
    optimize | smaller)
      code=0 out=out/optimized-$name result=sequences-$name asked=()
      if [ "$what" = smaller ]; then
        out=out/smaller-$name result=sequences-$name-smaller
        asked=(--effort max --min-speedup "${SPEEDUP:-4x}" --max-drop "${DROP:-1pt}" ${RECIPE:+--recipe "$RECIPE"})
      fi
      "$fmopt" optimize "$checkpoints/$name" --data "$from" ${length:+--length "$length"} "${asked[@]}" -o "$out" || code=$?
      [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
      .venv/bin/python benchmarks/compact_results.py "$out/record.json" "benchmarks/results/$result.json" ;;
    *) echo "train, optimize or smaller, not $what" >&2; exit 2 ;;
  esac
done
