"""Rendered scripts of jobs of several nodes, run as Slurm would run them: each node is processes of this host.

Stand-ins: ``srun`` (a task for each node, or one on a node that is named), ``docker`` (each node's own containers,
which are sessions), ``sudo`` (keeps no variables), ``ip``, ``uname``, ``rocm-smi``. The lanes are those of the real
runner files, with directories of the test in the place of the cluster's.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import Benchmark, Component, Role
from launcher.container.multinode_job_script import render
from launcher.container.multinode_resolve import MultinodePlanner
from launcher.container.planned import MultinodeJob
from launcher.container.submit import environment as job_environment
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.plan.derive import Context
from launcher.plan.plan import Plan
from launcher.runner.file import RunnerFile
from tests.benchmarks import a_benchmark
from tests.container.jobs import start_script
from tests.model.checkpoints import checkpoint

ID = "77"

SRUN_STAND_IN = r"""#!/usr/bin/env bash
# srun_stand_in: a task is a session of this host, with its node's name, rank and home. A signal reaches every process.
root=@ROOT@
call=$(mktemp "$root/calls/srun.XXXXXX"); printf '%s\0' "$@" >"$call"
nodes=1 nodelist= image= mounts= options=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --container-* | --no-container-*) ;;
    *) options+=("$1") ;;
  esac
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --nodelist=*) nodelist=${1#*=} ;;
    --container-image=*) image=${1#*=} ;;
    --container-mounts=*) mounts=${1#*=} ;;
  esac
  shift
done
if [ -n "$image" ]; then # pyxis_stand_in: paths of the container are the host's
  IFS=, read -ra pairs <<<"$mounts"
  for pair in "${pairs[@]}"; do
    IFS=: read -r source target _ <<<"$pair"
    set -- "${@//"$target/"/"$source/"}"
    LAUNCHER_ENVIRONMENT=${LAUNCHER_ENVIRONMENT//"$target"/"$source"}
  done
  printf 'IMAGE %s\n' "$image"
fi
[ -z "${SLURM_CONF-}" ] || exec "$(PATH=${PATH#*:}; command -v srun)" "${options[@]}" "$@"
tasks=()
for ((rank = 0; rank < nodes; rank++)); do
  name=${nodelist:-node$rank}
  [ ! -e "$root/lost-$name" ] || { echo "srun: error: Node failure on $name" >&2; exit 1; }
  mkdir -p "$root/nodes/$name"
  echo "$$" >"$root/srun-$name"
  SLURM_PROCID=$rank SLURMD_NODENAME=$name HOME=$root/nodes/$name setsid "$@" &
  tasks+=("$!")
done
trap 'for task in "${tasks[@]}"; do kill -TERM -- "-$task" 2>/dev/null; done' TERM
worst=0
for task in "${tasks[@]}"; do
  until wait "$task"; code=$?; ! kill -0 "$task" 2>/dev/null; do :; done
  kill -KILL -- "-$task" 2>/dev/null # nothing of a task outlives it
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
"""

DOCKER_STAND_IN = r"""#!/usr/bin/env bash
# docker_stand_in: the engine of one node; a container is a session of this host.
root=@ROOT@
node=$root/nodes/$SLURMD_NODENAME
mkdir -p "$node/containers"
call=$(mktemp "$root/calls/docker.XXXXXX"); printf '%s\0' "$@" >"$call"
if [ -e "$node/needs-sudo" ] && [ -z "${BY_SUDO-}" ]; then echo "permission denied: docker.sock" >&2; exit 1; fi
case $1 in
  pull)
    [ ! -e "$root/pull-hangs" ] || { touch "$root/pulling-$SLURMD_NODENAME"; exec sleep 600; }
    [ ! -e "$root/pull-fails" ] || { echo "Error response from daemon: manifest unknown" >&2; exit 1; }
    ;;
  image)
    [ ! -e "$root/pull-fails" ] || exit 1
    case "$*" in
      *RepoDigests*) echo "repo/name@sha256:$(cat "$node/digest" 2>/dev/null || echo abc)" ;;
      *) echo "sha256:$(cat "$node/digest" 2>/dev/null || echo id)" ;;
    esac
    ;;
  run)
    shift
    name= label= mounts=()
    while [[ ${1-} == -* ]]; do
      case $1 in
        --name=*) name=${1#*=} ;;
        --label=*) label=${1#*=} ;;
        --volume=*) mounts+=("${1#*=}") ;;
      esac
      shift
    done
    [ "$2" != sh ] || exit 0 # what containers wrote is given back
    given=$(cat) command=${*: -1}
    for mount in "${mounts[@]}"; do
      IFS=: read -r source target _ <<<"$mount"
      given=${given//"$target"/"$source"} command=${command//"$target/"/"$source/"}
    done
    container=$(mktemp -d "$node/containers/XXXXXX")
    printf '%s\n' "$label" >"$container/label"; printf '%s\n' "$name" >"$container/name"
    setsid env -i PATH="$PATH" HOME=/root SLURMD_NODENAME="$SLURMD_NODENAME" \
      bash -c 'eval "$0"; exec bash -c "$1" </dev/null' "$given" "$command" &
    task=$!
    echo "$task" >"$container/pid"
    trap '' TERM INT HUP
    until wait "$task"; code=$?; ! kill -0 "$task" 2>/dev/null; do :; done
    kill -KILL -- "-$task" 2>/dev/null
    rm -rf "$container"
    exit "$code"
    ;;
  ps)
    for container in "$node"/containers/*; do
      [ -e "$container/label" ] || continue
      case " $* " in
        *" --filter=label=$(<"$container/label") "*) basename "$container" ;;
        *" --filter=name=^/?$(<"$container/name")\$ "*) basename "$container" ;;
        *--filter*) ;;
        *) basename "$container" ;;
      esac
    done
    ;;
  kill) kill -KILL -- "-$(<"$node/containers/$2/pid")" ;;
  rm)
    for id in "$node/containers/$3" "$node"/containers/*; do
      if [ "${id##*/}" = "$3" ] || [ "$(cat "$id/name" 2>/dev/null)" = "$3" ]; then
        kill -KILL -- "-$(cat "$id/pid" 2>/dev/null)" 2>/dev/null; rm -rf "$id"
      fi
    done
    ;;
esac
"""

OTHERS = {
    "sudo": """#!/bin/sh
# sudo_stand_in: keeps no variables, and runs docker alone
[ "$1 $2" = "-n docker" ] || exit 1
shift
exec env -i PATH="$PATH" SLURMD_NODENAME="$SLURMD_NODENAME" BY_SUDO=1 "$@"
""",
    "ip": """#!/bin/sh
[ -e @ROOT@/no-route-$SLURMD_NODENAME ] || echo "1.1.1.1 via 10.0.0.1 src 10.0.0.1${SLURMD_NODENAME#node} uid 0"
""",
    "uname": '#!/bin/sh\n[ "$1" = -n ] && echo "${SLURMD_NODENAME:-login}" || exec /bin/uname "$@"\n',
    "hostname": '#!/bin/sh\necho "${SLURMD_NODENAME:-login}"\n',
    "rocm-smi": """#!/bin/sh
cat @ROOT@/nodes/$SLURMD_NODENAME/gpus 2>/dev/null ||
  for i in 0 1 2 3 4 5 6 7; do echo "GPU[$i] : GPU Memory Allocated (VRAM%): 1"; done
""",
}

WRAPPER = "check_env_vars CONC_LIST ISL OSL IMAGE MODEL_PATH PREFILL_NODES DECODE_NODES FRAMEWORK\n"


def role(**changes: Any) -> Role:
    return Role(**{"workers": 1, "tp": 8, **changes})


def a_row(**changes: Any) -> Benchmark:
    """A row of sglang-disagg on two nodes."""
    settings = {"PREFILL_NODES": "1", "DECODE_NODES": "1", "DECODE_MTP_SIZE": "1", **changes.pop("settings", {})}
    fields: dict[str, Any] = {
        "exp_name": "dsv4_8k1k",
        "image": "repo/name:tag",
        "model": "deepseek-ai/DeepSeek-V4-Pro",
        "model_prefix": "dsv4",
        "precision": "fp8",
        "framework": "sglang-disagg",
        "runner": "mi355x",
        "concurrencies": (4, 8),
        "isl": 8192,
        "osl": 1024,
        "disagg": True,
        "prefill": role(),
        "decode": role(),
        "result_filename": "stem",
        "settings": settings,
    }
    return a_benchmark(**{**fields, **changes})


@dataclass
class Cluster:
    """Nodes, a workspace, and jobs of this test."""

    root: Path
    lane: str = "mi355x-amds"
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stand_ins = self.root / "stand-ins"
        programs = self.stand_ins / "bin"
        programs.mkdir(parents=True)
        (self.stand_ins / "calls").mkdir()
        for name, text in {"srun": SRUN_STAND_IN, "docker": DOCKER_STAND_IN, **OTHERS}.items():
            (programs / name).write_text(text.replace("@ROOT@", shlex.quote(str(self.stand_ins))))
            (programs / name).chmod(0o755)
        amd, multi = self.workspace / "benchmarks/multi_node/amd_utils", self.workspace / "benchmarks/multi_node"
        (amd / "helpers").mkdir(parents=True)
        for path in ("agentic", "llm-d", "llm-d-recipes", "tilert_utils"):
            (multi / path).mkdir()
        for name in ("models.yaml", "models_atom.yaml"):
            (amd / name).write_text("DeepSeek-V4-Pro-DI: {}\nDeepSeek-V4-Pro: {}\n")
        (amd / "helpers/rdma_check.sh").write_text("true\n")
        for name in ("_fp8_mi355x_sglang-disagg", "_fp8_mi355x_atom-disagg", "_fp4_gb200_llmd-vllm-disagg"):
            (multi / f"dsv4{name}.sh").write_text(WRAPPER)
        (multi / "agentic/dsv4_fp8_mi355x_sglang-disagg.sh").write_text(WRAPPER)
        (multi / "glm5.1_fp8_b200_tilert-disagg.sh").write_text(WRAPPER)
        checkpoint(self.model)
        self.server("true")

    @property
    def workspace(self) -> Path:
        return self.root / "checkout"

    @property
    def model(self) -> Path:
        return self.root / "data" / "DeepSeek-V4-Pro"

    @property
    def logs(self) -> Path:
        return self.workspace / "benchmark_logs"

    @property
    def own(self) -> Path:
        return self.root / "runs" / ID

    def node(self, index: int) -> Path:
        place = self.stand_ins / "nodes" / f"node{index}"
        (place / "containers").mkdir(parents=True, exist_ok=True)
        return place

    def server(self, text: str) -> None:
        """What runs in each container, whichever lane it is."""
        for path in ("amd_utils/server.sh", "llm-d/server.sh", "tilert_utils/run_node.sh"):
            script = self.workspace / "benchmarks/multi_node" / path
            script.write_text(f"#!/usr/bin/env bash\n{text}\n")
            script.chmod(0o755)

    @property
    def runner(self) -> RunnerFile:
        """The real runner file, with directories of this test."""
        text = (shipped("runners") / f"{self.lane}.yaml").read_text()
        for theirs, ours in (
            ("/it-share/data", str(self.root / "data")),
            ("/mnt/numa1/models", str(self.root / "data")),
            ("/home/sa-shared/models/GLM-5.1-FP8", str(self.model)),
            ("/lustre/fsw/gharunners/models", str(self.root / "weights")),
            ("/home/sa-shared/containers", str(self.root / "images")),
            ("/mnt/lustre01/users-public/sa-shared", str(self.root / "images")),
            ("/tmp/slurm_job-$JOB", "$HOME/slurm_job-$JOB"),
            ("/tmp: /run_logs", "$HOME: /run_logs"),
        ):
            text = text.replace(theirs, ours)
        return RunnerFile(Document(f"{self.lane}.yaml", text))

    def plan(self, row: Benchmark | None = None, **host: str) -> Plan:
        context = Context(
            workspace=str(self.workspace),
            runner_name=f"{self.lane}_00",
            run_key="77-1-abc",
            today="20260102",
            host={"USER": "runner", "HF_TOKEN": "hf_secretsecretsecret", **host},
        )
        plan = MultinodePlanner("me").plan(row or a_row(), self.runner, context).plan
        return replace(plan, details=plan.as_details())  # as one that was read

    def start(self, plan: Plan) -> subprocess.Popen[str]:
        script = self.root / "runs" / "job.sh"
        script.parent.mkdir(exist_ok=True)
        script.write_text(render(plan, script.parent, str(self.workspace)))
        self.logs.mkdir(exist_ok=True)
        (self.own / "logs").mkdir(parents=True, exist_ok=True)
        for image in plan.images:
            path = Path(image.squash)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"hsqs" + bytes(36) + (96).to_bytes(8, "little") + bytes(48))
        environment = {
            **job_environment(MultinodeJob.of(plan), {"HF_TOKEN": "hf_secretsecretsecret"}, {}),
            "PATH": f"{self.stand_ins / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "SLURM_JOB_ID": ID,
            **self.environment,
        }
        return start_script(script, environment, self.root)

    def run(self, plan: Plan | None = None, code: int = 0) -> str:
        """Run the script to its end; what it printed, after the exit code was what is expected."""
        with self.start(plan or self.plan()) as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == code, f"exit {process.returncode}, expected {code}:\n{said}"
        return said

    def calls(self, program: str) -> list[list[str]]:
        found = sorted((self.stand_ins / "calls").glob(f"{program}.*"), key=lambda p: p.stat().st_mtime_ns)
        return [path.read_bytes().decode().split("\0")[:-1] for path in found]

    def containers(self) -> list[str]:
        """The names of the containers that run, on all nodes."""
        return sorted(p.read_text().strip() for p in (self.stand_ins / "nodes").glob("*/containers/*/name"))

    def foreign(self, node: int, label: str = "other.77") -> Path:
        """A container of somebody else on a node."""
        place = self.node(node) / "containers" / label
        place.mkdir()
        (place / "name").write_text("theirs\n")
        (place / "label").write_text(f"launcher.job={label}\n")
        return place


def agentic(**changes: Any) -> Benchmark:
    backend = Component("hicache")
    fields: dict[str, Any] = {"scenario": "agentic-coding", "isl": None, "osl": None, "kv_offloading": "dram"}
    return a_row(**{**fields, "kv_offload_backend": backend, "concurrencies": (4,), **changes})


def as_json(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(plan.as_dict()))
    return found


def llmd(**changes: Any) -> Benchmark:
    """A row of llm-d: one node for prefill, two for decode, where nothing else is said."""
    more = {"PREFILL_NODES": "1", "DECODE_NODES": "2", "GPUS_PER_NODE": "4", "CONFIG_FILE": "r.yaml"}
    settings = {**more, **changes.pop("settings", {})}
    fields = {"framework": "llmd-vllm", "precision": "fp4", "runner": "gb200"}
    return a_row(settings=settings, **{**fields, **changes})


def tilert(**changes: Any) -> Benchmark:
    """A row of TileRT: a node and an image for each side."""
    settings = {"PREFILL_NODES": "1", "DECODE_NODES": "1", "PREFILL_IMAGE": "other/image:tag"}
    names = {"exp_name": "glm5.1_8k1k", "model": "zai-org/GLM-5.1-FP8", "model_prefix": "glm5.1"}
    return a_row(framework="tilert", runner="b200-multinode", settings=settings, **{**names, **changes})


LANES: dict[str, tuple[str, Callable[..., Benchmark], str]] = {
    "amd-multinode": ("mi355x-amds", a_row, "0"),
    "llm-d": ("gb200-nv", llmd, "1"),
    "tilert": ("b200-dgxc", tilert, "prefill"),
}
"""By kind: the runner file, a row, and which container measures (its NODE_RANK, or its TILERT_ROLE)."""
