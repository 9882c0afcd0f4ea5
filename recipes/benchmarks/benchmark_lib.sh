# shellcheck shell=bash
# Functions of benchmarks of one node, by the names and options that they have in InferenceX's benchmark_lib.sh.

check_env_vars() {
  local name missing=()
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing+=("$name")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    echo "Error: the following required environment variables are not set: ${missing[*]}" >&2
    exit 1
  fi
}

start_gpu_monitor() {
  nvidia-smi --query-gpu=timestamp,index,power.draw --format=csv >gpu_metrics.csv
}

# wait_for_server_ready --port PORT --server-log FILE --server-pid PID
wait_for_server_ready() {
  local port=$2 log=$4 pid=$6
  trap 'kill "$SERVER_PID" 2>/dev/null' EXIT
  until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    if ! kill -0 "$pid" 2>/dev/null; then
      echo "Server died before becoming healthy. Exiting." >&2
      tail -n 20 "$log" >&2
      exit 1
    fi
    sleep 0.1
  done
}

run_benchmark_serving() {
  benchmark_serving "$@"
}

run_eval() {
  lm_eval "$@"
}
