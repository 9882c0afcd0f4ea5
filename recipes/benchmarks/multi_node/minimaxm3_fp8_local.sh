#!/usr/bin/env bash
# A node of MiniMax-M3 FP8 over several nodes, in the form of InferenceX's scripts: each node serves, and the one of rank
# MEASURES measures. The programs are those of the image: on the runner `local` stand-ins, which serve no model.
set -euo pipefail
source "$(dirname "$0")/../benchmark_lib.sh"

check_env_vars MODEL_NAME MODEL_PATH FRAMEWORK CONC_LIST ISL OSL RANDOM_RANGE_RATIO RESULT_FILENAME \
  PREFILL_TP DECODE_TP BENCHMARK_LOGS_DIR MEASURES PORT

vllm serve "$MODEL_PATH" --served-model-name "$MODEL_NAME" --port "$PORT" >"$BENCHMARK_LOGS_DIR/server_$NODE_RANK.log" 2>&1 &
SERVER_PID=$!
wait_for_server_ready --port "$PORT" --server-log "$BENCHMARK_LOGS_DIR/server_$NODE_RANK.log" --server-pid "$SERVER_PID"
echo "node $NODE_RANK serves"

# It is ended once the benchmark is over.
[ "$NODE_RANK" = "$MEASURES" ] || wait "$SERVER_PID"

export GPU_COUNT=$((PREFILL_TP + DECODE_TP))
split="gpus_${GPU_COUNT}_ctx_${PREFILL_TP}_gen_${DECODE_TP}"
for CONC in $CONC_LIST; do
  # AMD's client names its results by concurrency, in a directory of its own; those of llm-d and TileRT by RESULT_FILENAME.
  case $FRAMEWORK in
    *-disagg) into=$BENCHMARK_LOGS_DIR/${FRAMEWORK}_isl_${ISL}_osl_${OSL} name=concurrency_${CONC}_req_rate_inf_$split ;;
    *) into=$(dirname "$0")/../.. name=${RESULT_FILENAME}_c${CONC}_$split ;;
  esac
  mkdir -p "$into"
  run_benchmark_serving --model "$MODEL_NAME" --port "$PORT" --backend vllm \
    --input-len "$ISL" --output-len "$OSL" --random-range-ratio "$RANDOM_RANGE_RATIO" \
    --num-prompts "$((CONC * 10))" --max-concurrency "$CONC" --result-filename "$name" --result-dir "$into"
done
