#!/usr/bin/env bash
# What bench/packed.py compares, side by side on one GPU: bash bench/packed_all.sh small|mid|large
# TEXTS=reviews.csv (columns text and label) takes the real 135M model and real reviews for small.
# Each line is given a time limit of its own; what does not end in time has no row.
run() { limit=$1; shift; echo "== $*"; timeout "$limit" python3 bench/packed.py --warm 6 "$@" 2>&1 | tail -4; }
small=(--model 135m --seconds 6)
if [ -n "${TEXTS:-}" ]; then small+=(--real --texts "$TEXTS"); fi
case "${1:?small, mid or large}" in
small)
  run 180 "${small[@]}" --arm packed
  run 50 "${small[@]}" --arm trainer
  run 100 "${small[@]}" --arm packed --method qlora
  run 50 "${small[@]}" --arm trainer --method qlora
  run 150 "${small[@]}" --arm packed --ranks full
  for count in 2 4 8; do run 70 "${small[@]}" --arm processes --count "$count"; done
  run 70 "${small[@]}" --arm processes --count 8 --mps
  run 210 "${small[@]}" --arm compiled
  ;;
mid)
  run 120 --model 1b --seconds 6 --arm packed
  run 50 --model 1b --seconds 6 --arm trainer
  run 120 --model 1b --seconds 6 --arm packed --method qlora
  run 50 --model 1b --seconds 6 --arm trainer --method qlora
  ;;
large)
  run 230 --model 8b --seconds 8 --arm packed
  run 90 --model 8b --seconds 8 --arm trainer
  run 170 --model 8b --seconds 8 --arm packed --method qlora
  run 90 --model 8b --seconds 8 --arm trainer --method qlora
  ;;
*) echo "no part $1: small, mid or large" >&2 && exit 2 ;;
esac
