#!/usr/bin/env bash
# Named by `srtctl apply --setup-script`. srtctl runs /configs/<this name> with bash in every container before the worker
# starts, and mounts nothing of this repository but the checkout's configs/ there: the patcher must lie beside this file.
set -euo pipefail
exec python3 "$(dirname -- "${BASH_SOURCE[0]}")/minimax_m3_gb200_vllm_fixes.py" "$@"
