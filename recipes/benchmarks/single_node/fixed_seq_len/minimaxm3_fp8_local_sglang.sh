#!/usr/bin/env bash
# MiniMax-M3 FP8 with SGLang on one node, in the form of InferenceX's scripts. The programs are those of the image: on the
# runner `local` stand-ins, which serve no model.
set -euo pipefail
source "$(dirname "$0")/../../benchmark_lib.sh"

check_env_vars MODEL HF_HUB_CACHE TP CONC ISL OSL MAX_MODEL_LEN RANDOM_RANGE_RATIO RESULT_FILENAME PORT

start_gpu_monitor

sglang serve --model-path "$MODEL" --port "$PORT" \
  --tp "$TP" --context-length "$MAX_MODEL_LEN" >server.log 2>&1 &
SERVER_PID=$!
wait_for_server_ready --port "$PORT" --server-log server.log --server-pid "$SERVER_PID"

if [ "${EVAL_ONLY:-false}" != true ]; then
  run_benchmark_serving --model "$MODEL" --port "$PORT" --backend sglang \
    --input-len "$ISL" --output-len "$OSL" --random-range-ratio "$RANDOM_RANGE_RATIO" \
    --num-prompts "$((CONC * 10))" --max-concurrency "$CONC" \
    --result-filename "$RESULT_FILENAME" --result-dir "$PWD"
fi
if [ "${RUN_EVAL:-false}" = true ]; then
  run_eval --port "$PORT"
fi
