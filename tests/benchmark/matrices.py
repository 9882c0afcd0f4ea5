"""A small matrix, written to files for the tests of the matrix."""

from __future__ import annotations

from pathlib import Path

FIXED = """\
m-fp4-gb200:
  image: vllm/vllm-openai:v1
  model: acme/M
  model-prefix: m
  runner: gb200
  precision: fp4
  framework: dynamo-vllm
  kv-p2p-transfer: nixl
  multinode: true
  disagg: true
  scenarios:
    fixed-seq-len:
    - isl: 8192
      osl: 1024
      search-space:
      - spec-decoding: mtp
        conc-list: [4, 16, 64]
        prefill:
          num-worker: 1
          tp: 4
          ep: 4
          dp-attn: true
          additional-settings:
          - "CONFIG_FILE=recipes/m.yaml"
          - "SLURM_PARTITION=first"
        decode:
          num-worker: 2
          tp: 8
          ep: 1
          dp-attn: false
          additional-settings:
          - "SLURM_PARTITION=second"
"""

AGENTIC = """\
m-fp4-gb300-agentic:
  image: vllm/vllm-openai:v1
  model: acme/M
  model-prefix: m
  runner: cluster:gb300-nv
  precision: fp4
  framework: dynamo-vllm
  router: { name: dynamo-router, version: "1.2" }
  kv-p2p-transfer: nixl
  multinode: true
  disagg: true
  scenarios:
    agentic-coding:
    - dram-utilization: 0.5
      search-space:
      - kv-offloading: dram
        kv-offload-backend: { name: mooncake, version: "0.3" }
        conc-list: [8, 32]
        prefill: { num-worker: 2, tp: 2, ep: 1, dp-attn: false, additional-settings: ["CONFIG_FILE=a.yaml"] }
        decode: { num-worker: 1, tp: 8, ep: 8, dp-attn: true }
"""

SINGLE = """\
m-fp8-h200:
  image: vllm/vllm-openai:v1
  model: acme/M
  model-prefix: m
  runner: h200
  precision: fp8
  framework: vllm
  multinode: false
  scenarios:
    fixed-seq-len:
    - isl: 1024
      osl: 1024
      search-space:
      - { tp: 8, conc-start: 4, conc-end: 48 }
    - isl: 2048
      osl: 512
      search-space:
      - { tp: 4, ep: 4, dp-attn: true, conc-list: [7] }
"""

RUNNERS = """\
labels:
  gb200: [gb200-nv_0]
  cluster:gb300-nv: [gb300-nv_0]
hardware:
  cluster:gb300-nv:
    available-cpu-dram-mib: 1000000
    gpus-per-node: 4
"""


def write(directory: Path, text: str = FIXED + AGENTIC + SINGLE, runners: str | None = RUNNERS) -> Path:
    """Write a matrix file, and a runners file beside it unless ``runners`` is None."""
    path = directory / "matrix.yaml"
    path.write_text(text)
    if runners is not None:
        (directory / "runners.yaml").write_text(runners)
    return path
