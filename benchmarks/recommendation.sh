#!/usr/bin/env bash
# Train SASRec-mini on MovieLens from random weights, optimize it, judge it on the last item of every user.
#
#     benchmarks/recommendation.sh train       checkpoint in $FMOPT_CHECKPOINTS (default out/recommendation); resumes
#     benchmarks/recommendation.sh optimize    record in benchmarks/results; the machine should be quiet
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}/movielens_small
checkpoint=${FMOPT_CHECKPOINTS:-out/recommendation}/movielens
fmopt=.venv/bin/fmopt
case ${1:-} in
  train) "$fmopt" finetune sasrec-mini --data "$data" -o "$checkpoint" ;;
  optimize)
    code=0
    "$fmopt" optimize "$checkpoint" --data "$data" -o out/optimized-movielens || code=$?
    [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
    .venv/bin/python benchmarks/compact_results.py out/optimized-movielens/record.json benchmarks/results/recommendation-movielens.json ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
