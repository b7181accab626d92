#!/usr/bin/env bash
# Everything for the comparison page: environments, peers' variants, fmopt's bundle, one run a subject, the page.
#
#     benchmarks/peers/all.sh [SUBJECT...]     all of minilm banking77 wnut17 by default; the machine should be quiet
#
# Checkpoints are those of benchmarks/finetuned.sh ($FMOPT_CHECKPOINTS), data lie in $FMOPT_DATA (../shared/data).
# ITEMS bounds how many test rows are scored (1000), SAMPLES how many rounds are timed (100). What is there is not made
# again: remove $FMOPT_PEERS/artifacts/SUBJECT or out/optimized-SUBJECT to make it anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=benchmarks/peers
python=.venv/bin/python
data=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/finetuned}
artifacts=${FMOPT_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/fmopt-peers}/artifacts
[ $# -gt 0 ] || set -- minilm banking77 wnut17

$here/setup.sh all || true  # a peer that cannot be installed is a row of the table
for name in "$@"; do
  # build.py ends with 1 when a peer could not do something, which is a result
  [ -f "$artifacts/$name/.built" ] || "$python" $here/build.py "$name" || [ -f "$artifacts/$name/.built" ]
  if [ ! -f "out/optimized-$name/fmopt.json" ]; then
    asked=("$checkpoints/$name" --data "$data/$name")
    [ "$name" != minilm ] || asked=(minilm)
    code=0
    .venv/bin/fmopt optimize "${asked[@]}" -o "out/optimized-$name" || code=$?
    [ "$code" -le 4 ] || exit "$code"
  fi
  "$python" $here/run.py "$name" --fmopt "out/optimized-$name" --items "${ITEMS:-1000}" --samples "${SAMPLES:-100}"
done
"$python" $here/page.py
