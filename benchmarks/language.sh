#!/usr/bin/env bash
# Train language models from random weights, optimize each, judge it on the test split.
#
#     benchmarks/language.sh train [NAME...]       checkpoints in $FMOPT_CHECKPOINTS (default out/language); resumes
#     benchmarks/language.sh optimize [NAME...]    records in benchmarks/results; the machine should be quiet
#
# NAME is lstm (lstm-mini on war_and_peace) or code (code-mini on the functions of the standard library).
set -euo pipefail
cd "$(dirname "$0")/.."
shared=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/language}
fmopt=.venv/bin/fmopt
[ $# -gt 0 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
what=$1; shift
[ $# -gt 0 ] || set -- lstm code

for name in "$@"; do
  case $name in
    lstm) model=lstm-mini data=$shared/war_and_peace ;;
    code) model=code-mini data=builtin:stdlib ;;
    *) echo "no recipe for $name" >&2; exit 2 ;;
  esac
  case $what in
    train) "$fmopt" finetune "$model" --data "$data" -o "$checkpoints/$name" ;;
    optimize)
      code=0
      "$fmopt" optimize "$checkpoints/$name" --data "$data" --max-drop 2% -o "out/optimized-$name" || code=$?
      [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
      .venv/bin/python benchmarks/compact_results.py "out/optimized-$name/record.json" "benchmarks/results/language-$name.json"
      if [ "$name" = code ]; then
        "$fmopt" export "$checkpoints/$name" --data "$data" -o out/exported-code
        .venv/bin/python benchmarks/code_completions.py out/exported-code out/optimized-code \
          -o benchmarks/results/code-completions.json
      fi ;;
    *) echo "train or optimize, not $what" >&2; exit 2 ;;
  esac
done
