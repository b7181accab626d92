#!/usr/bin/env bash
# Train models that read pictures from random weights, optimize each, judge it on the test split.
#
#     benchmarks/images.sh train [NAME...]       checkpoints in $FMOPT_CHECKPOINTS (default out/images); resumes
#     benchmarks/images.sh optimize [NAME...]    records in benchmarks/results; the machine should be quiet
#
# NAME is cifar10 (ViT-32), features (vectors by that ViT), clip (CLIP-32, labels told in words), nuclei (SegFormer-B0-128)
# or bccd (RT-DETR-96x128).
# $EPOCHS overrides what the entries of models/ say, $LIMIT (25m) ends each training there, with the best so far.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${FMOPT_DATA:-../shared/data}
checkpoints=${FMOPT_CHECKPOINTS:-out/images}
fmopt=.venv/bin/fmopt
[ $# -gt 0 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
what=$1; shift
[ $# -gt 0 ] || set -- cifar10 features clip nuclei bccd

for name in "$@"; do
  checkpoint=$name task=
  case $name in
    cifar10) model=vit-32 set=cifar10_small ;;
    features) model=vit-32 set=cifar10_small checkpoint=cifar10 task=image-feature-extraction ;;
    clip)    model=clip-32 set=cifar10_small ;;
    nuclei)  model=segformer-128 set=nuclei_dsb2018 ;;
    bccd)    model=rt-detr-bccd set=bccd ;;
    *) echo "no recipe for $name" >&2; exit 2 ;;
  esac
  case $what in
    train) "$fmopt" finetune "$model" --data "$data/$set" -o "$checkpoints/$checkpoint" ${EPOCHS:+--epochs "$EPOCHS"} \
        ${LIMIT:+--time-limit "$LIMIT"} ;;
    optimize)
      code=0
      "$fmopt" optimize "$checkpoints/$checkpoint" ${task:+--task "$task"} --data "$data/$set" \
        -o "out/optimized-$name" || code=$?
      [ "$code" -ne 2 ] && [ "$code" -le 4 ] || exit "$code"
      .venv/bin/python benchmarks/compact_results.py "out/optimized-$name/record.json" "benchmarks/results/images-$name.json" ;;
    *) echo "train or optimize, not $what" >&2; exit 2 ;;
  esac
done
