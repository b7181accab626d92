#!/usr/bin/env bash
# Fine-tune MiniLM on nine sets of ../shared/data, optimize each checkpoint, judge it on the test split.
#
#     benchmarks/finetuned.sh train [NAME...]       checkpoints in $FMOPT_CHECKPOINTS (default out/finetuned); resumes
#     benchmarks/finetuned.sh optimize [NAME...]    records in benchmarks/results; the machine should be quiet
#
# About 40 minutes of training for the first four and 4 minutes for each optimization on two cores with AVX-512 BF16 and VNNI.
# $LIMIT (8m) ends each training there, with the best so far.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/finetuned}
fmopt=.venv/bin/fmopt
[ $# -gt 0 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
what=$1; shift
[ $# -gt 0 ] || set -- stsb wnut17 banking77 sst2 qamr squad_small war_and_peace clinc150 agnews

for name in "$@"; do
  drop=1pt again=
  case $name in
    sst2)          task=text-classification  epochs=2  rate=1e-4 again="3 5e-5" ;;  # the mean of two trainings
    clinc150)      task=text-classification  epochs=8  rate=2e-4 ;;
    agnews)        task=text-classification  epochs=3  rate=1e-4 ;;
    banking77)     task=text-classification  epochs=10 rate=2e-4 ;;
    wnut17)        task=token-classification epochs=8  rate=2e-4 ;;
    stsb)          task=text-regression      epochs=5  rate=1e-4 ;;
    qamr)          task=question-answering   epochs=2  rate=1e-4 ;;
    squad_small)   task=question-answering   epochs=2  rate=1e-4 ;;
    war_and_peace) task=fill-mask            epochs=3  rate=1e-4 drop=2% ;;
    *) echo "no recipe for $name" >&2; exit 2 ;;
  esac
  case $what in
    train)
      train() {
        "$fmopt" finetune minilm --task "$task" --data "$data/$name" -o "$checkpoints/$1" \
          --epochs "$2" --learning-rate "$3" ${LIMIT:+--time-limit "$LIMIT"}
      }
      if [ -z "$again" ]; then
        train "$name" "$epochs" "$rate"
      elif [ ! -e "$checkpoints/$name" ]; then
        train "$name-a" "$epochs" "$rate"
        train "$name-b" $again
        .venv/bin/python benchmarks/soup.py "$checkpoints/$name" "$data/$name" "$checkpoints/$name-a" "$checkpoints/$name-b"
      fi ;;
    optimize)
      code=0
      "$fmopt" optimize "$checkpoints/$name" --task "$task" --data "$data/$name" --max-drop "$drop" \
        -o "out/optimized-$name" || code=$?
      [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
      .venv/bin/python benchmarks/compact_results.py "out/optimized-$name/record.json" "benchmarks/results/finetuned-$name.json" ;;
    *) echo "train or optimize, not $what" >&2; exit 2 ;;
  esac
done
