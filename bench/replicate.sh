#!/usr/bin/env bash
# Study P (Patil et al. 2025) on a small model, stage by stage, each a command that a user would
# type. A stage that was stopped goes on by the same command, also from a copy of the record on
# another machine.
#
#   bash bench/replicate.sh STAGE...      in this order:
#     paper     52 trials and the untrained base at the paper's settings, every seed
#     search    a learning rate for each method and target, on other seeds and held-out reviews
#     tuned     the 52 trials at the rates that the search found
#     alpha     alpha below the rank, at those rates
#     alone     one trial of each method and target alone on a GPU: what a step costs there
#     base8b    makes the 8B base of random weights that the next needs
#     cost      Table 1: LoRA and QLoRA at 8B, each alone on a GPU
#     table     the results file
#   commands    prints what the stages above would type (the rates as found so far)
#
# Set by the environment: DATA (folder of train.parquet and val.parquet), SEEDS, ALPHA_SEEDS,
# COST_SEEDS, TRAIN, EVAL (items), LIMIT (seconds until a stage is asked to stop), GRACE (and until
# it is ended), OUTPUT (the record's folder), RESULTS (the results file), PYTHON, MODEL, EXTRA
# (words added to each command).
set -u
PYTHON=${PYTHON:-python} DATA=${DATA:-data/yelp5} OUTPUT=${OUTPUT:-outputs}
SEEDS=${SEEDS:-0,1,2,3,4} ALPHA_SEEDS=${ALPHA_SEEDS:-0,1,2} COST_SEEDS=${COST_SEEDS:-0,1,2}
TRAIN=${TRAIN:-16000} EVAL=${EVAL:-5000} LIMIT=${LIMIT:-0} GRACE=${GRACE:-60}
MODEL=${MODEL:-smollm2_135m} RESULTS=${RESULTS:-results/trials.parquet} EXTRA=${EXTRA:-}
RECORD=sqlite:///$OUTPUT/mlflow.db
export HF_HUB_OFFLINE=1
end=$((LIMIT > 0 ? $(date +%s) + LIMIT : 0))
print=

# One command: shown, and asked to stop when the time of all stages is up (once: timeout would
# otherwise signal both the program and its group, and twice means at once).
say() {
  echo "$*"
  [ -n "$print" ] && return 0
  local left=0
  if [ "$end" -gt 0 ]; then
    left=$((end - $(date +%s)))
    [ "$left" -lt 5 ] && { echo "no time left for it"; return 130; }
  fi
  timeout --foreground -s INT -k "$GRACE" "$left" "$@"
}

sweep() { # shellcheck disable=SC2086
  say "$PYTHON" sweep.py "$@" output_dir="$OUTPUT" $EXTRA
}

data="task=local task.train_file=$DATA/train.parquet"
judged="task.eval_file=$DATA/val.parquet task.name=yelp"
sizes="task.train_size=$TRAIN task.eval_size=$EVAL"
model="model=$MODEL model.precision=bf16 train.precision=bf16 train.eval_batch_size=64"
packed="engine=packed engine.save_adapter=false engine.pack_size=" # trials of one seed and method

rates() {
  "$PYTHON" -m analysis rates --uri "$RECORD" --table "$OUTPUT/rates.parquet" 2>/dev/null |
    grep '^train.learning_rate=' || echo train.learning_rate=not,searched,for,yet
}

# shellcheck disable=SC2086
stage() {
  case $1 in
  paper)
    sweep study=patil2025 $model $data $judged $sizes ${packed}26 seed="$SEEDS" || return
    sweep study=patil2025_base $model $data $judged $sizes seed="$SEEDS"
    ;;
  search)
    sweep study=patil2025_lr $model $data task.name=yelp_search $sizes ${packed}26 seed=100,101
    ;;
  tuned)
    sweep study=patil2025_tuned "$(rates)" $model $data $judged $sizes ${packed}26 seed="$SEEDS"
    ;;
  alpha)
    sweep study=patil2025_small_alpha "$(rates)" $model $data $judged $sizes ${packed}14 \
      seed="$ALPHA_SEEDS"
    ;;
  alone)
    sweep -m name=patil2025_alone train=patil2025 method=lora,qlora \
      target=attention,all_linear_head lora.dropout=0.05 $model $data $judged engine=trainer \
      engine.save_adapter=false task.train_size=$((TRAIN / 16)) task.eval_size=$((EVAL / 10))
    ;;
  base8b)
    say "$PYTHON" sweep.py model=llama3_8b model.source=random model.tokenizer=bytes method=base \
      name=patil2025_base8b $data $judged task.train_size=40 task.eval_size=40 \
      output_dir="$OUTPUT.scratch" $EXTRA
    ;;
  cost)
    sweep study=patil2025_cost model.source=random model.tokenizer=bytes $data $judged \
      task.train_size=$((TRAIN / 40)) task.eval_size=$((EVAL / 50)) engine.save_adapter=false \
      seed="$COST_SEEDS"
    ;;
  table) say "$PYTHON" -m analysis table --uri "$RECORD" --out "$RESULTS" ;;
  commands)
    print=1
    for one in paper search tuned alpha alone base8b cost table; do stage "$one"; done
    ;;
  *) echo "no stage $1" && return 2 ;;
  esac
}

for one in "${@:?which stage? see the head of this file}"; do
  stage "$one" || exit
done
