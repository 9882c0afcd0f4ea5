#!/usr/bin/env bash
# The GB300 lanes of MiniMax-M3 MXFP8 name this file; the image and what is wrong with it are those of GB200.
set -euo pipefail
exec python3 "$(dirname -- "${BASH_SOURCE[0]}")/minimax_m3_gb200_vllm_fixes.py" "$@"
