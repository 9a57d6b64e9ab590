#!/usr/bin/env bash
# Everything bench/packed.py compares, side by side on one GPU: bash bench/packed_all.sh small|large
# Each line is given a time limit of its own; what does not end in time has no row.
run() { limit=$1; shift; echo "== $*"; timeout "$limit" python3 bench/packed.py --warm 6 "$@" 2>&1 | tail -4; }
case "${1:?small or large}" in
small)
  run 60 --model 135m --arm trainer --seconds 8
  run 130 --model 135m --arm packed --seconds 10
  run 70 --model 135m --arm packed --seconds 6 --compile no
  run 70 --model 135m --arm packed --seconds 6 --compile no --method qlora
  run 60 --model 135m --arm trainer --seconds 8 --method qlora
  run 80 --model 135m --arm processes --count 4 --seconds 8
  run 60 --model 1b --arm trainer --seconds 6
  run 80 --model 1b --arm packed --seconds 6 --compile no
  run 80 --model 1b --arm packed --seconds 6 --compile no --method qlora
  ;;
large)
  run 230 --model 8b --arm packed --seconds 8 --compile yes
  run 90 --model 8b --arm trainer --seconds 8
  run 170 --model 8b --arm packed --seconds 8 --compile yes --method qlora
  run 90 --model 8b --arm trainer --seconds 8 --method qlora
  run 150 --model 1b --arm packed --seconds 8
  ;;
esac
