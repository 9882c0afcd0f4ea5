"""Stand-ins for srun with pyxis and for docker: they record how they are called, and run the script on this host.

``docker_stand_in`` keeps containers as docker does: in processes that are not its children's group, under names of
which each exists once. ``enroot`` is the rehearsal's stand-in.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launcher.container.submit import submit_job
from launcher.core.process import CommandRunner
from launcher.run.kind import Submitted

SRUN_STAND_IN = r"""#!/usr/bin/env bash
# srun_stand_in: srun without pyxis, and without Slurm one task on this host. A container's working directory is the
# host's that is mounted there.
calls=@ROOT@/calls
mkdir -p "$calls"
call=$(mktemp "$calls/srun.XXXXXX")
printf '%s\0' "$@" >"$call"
env -0 | cut -z -d= -f1 >"$call.names"
mounts= workdir= options=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --container-mounts=*) mounts=${1#*=} ;;
    --container-workdir=*) workdir=${1#*=} ;;
    --container-* | --no-container-*) ;;
    *) options+=("$1") ;;
  esac
  shift
done
IFS=, read -ra pairs <<<"$mounts"
for pair in "${pairs[@]}"; do
  IFS=: read -r source target _ <<<"$pair"
  if [ -n "$workdir" ] && [ "${target%/}" = "${workdir%/}" ]; then cd "$source" || exit 1; fi
done
# As pyxis has it: what the image sets wins over what the step has.
[ ! -e @ROOT@/image-sets ] || . @ROOT@/image-sets
[ -z "${SLURM_CONF-}" ] || exec "$(PATH=${PATH#*:}; command -v srun)" "${options[@]}" "$@"
# As slurmd has it: a signal reaches every process of the step, and none of them outlives it.
setsid "$@" &
task=$!
trap 'kill -TERM -- "-$task"' TERM INT
until wait "$task"; code=$?; ! kill -0 "$task" 2>/dev/null; do :; done
kill -KILL -- "-$task" 2>/dev/null
exit "$code"
"""

DOCKER_STAND_IN = r"""#!/usr/bin/env bash
# docker_stand_in: a container is a session of this host, in containers/ID.
root=@ROOT@
mkdir -p "$root/calls" "$root/containers" "$root/images"
call=$(mktemp "$root/calls/docker.XXXXXX")
printf '%s\0' "$@" >"$call"
case $1 in
  pull)
    [ ! -e "$root/pull-hangs" ] || exec sleep 600
    [ ! -e "$root/pull-fails" ] || { echo "Error response from daemon: manifest unknown" >&2; exit 1; }
    touch "$root/images/known"
    ;;
  image)
    [ -e "$root/images/known" ] || { echo "Error: No such image" >&2; exit 1; }
    case "$*" in
      *RepoDigests*) [ -e "$root/no-digest" ] || printf 'other/x@sha256:0\ndocker.io/org/image@sha256:abc\n\n' ;;
      *) echo "sha256:id" ;;
    esac
    ;;
  run)
    shift
    name= label= mounts=() workdir= environment=("PATH=$PATH" "HOME=/root")
    while [[ ${1-} == -* ]]; do
      case $1 in
        --name=*) name=${1#*=} ;;
        --label=*) label+=${1#*=}$'\n' ;;
        --volume=*) mounts+=("${1#*=}") ;;
        --workdir=*) workdir=${1#*=} ;;
        --env) shift; [[ ! -v $1 ]] || environment+=("$1=${!1}") ;;
      esac
      shift
    done
    printf '%s' "$1" >"$root/ran"
    shift
    if grep -qsxF "$name" "$root"/containers/*/name; then
      echo "docker: Error response from daemon: Conflict. The container name is already in use" >&2
      exit 125
    fi
    container=$(mktemp -d "$root/containers/XXXXXX")
    printf '%s\n' "$name" >"$container/name"
    printf '%s' "$label" >"$container/label"
    for mount in "${mounts[@]}"; do
      IFS=: read -r source target _ <<<"$mount"
      [ "${target%/}" = "${workdir%/}" ] && cd "$source"
    done
    setsid env -i "${environment[@]}" bash "$@" &
    echo "$!" >"$container/pid"
    trap 'kill -TERM "$(<"$container/pid")"' TERM
    until wait "$!"; code=$?; ! kill -0 "$(<"$container/pid")" 2>/dev/null; do :; done
    rm -rf "$container"
    exit "$code"
    ;;
  ps)
    for label in "$root"/containers/*/label; do
      for word in "$@"; do
        [[ $word != --filter=label=* ]] || grep -qxF -- "${word#--filter=label=}" "$label" || continue 2
      done
      basename "$(dirname "$label")"
    done
    ;;
  kill) kill -KILL -- "-$(<"$root/containers/$2/pid")" ;;
  rm) rm -rf "$root/containers/$3" ;;
esac
"""


@dataclass
class StandIns:
    """The programs in a directory of their own, to be put first on PATH, and what they recorded."""

    root: Path

    def __post_init__(self) -> None:
        programs = self.root / "bin"
        programs.mkdir(parents=True)
        enroot = f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "launcher.rehearsal.enroot_stand_in"])} "$@"\n'
        for name, text in (("srun", SRUN_STAND_IN), ("docker", DOCKER_STAND_IN), ("enroot", enroot)):
            (programs / name).write_text(text.replace("@ROOT@", shlex.quote(str(self.root))))
            (programs / name).chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.root / 'bin'}:{os.environ['PATH']}"

    def calls(self, program: str) -> list[list[str]]:
        """The argvs with which a program was called."""
        paths = [p for p in (self.root / "calls").glob(f"{program}.*") if p.suffix != ".names"]
        return [_words(p) for p in sorted(paths, key=lambda p: p.stat().st_mtime_ns)]

    def names(self) -> set[str]:
        """The names of the variables that steps had."""
        return {name for path in (self.root / "calls").glob("*.names") for name in _words(path)}

    def containers(self) -> list[str]:
        """The names of the containers that run."""
        return [path.read_text().strip() for path in (self.root / "containers").glob("*/name")]


def _words(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\0")[:-1]


def submit_as_stand_in_run(
    token: str,
    scheduler: Any,
    start: CommandRunner,
    earlier: frozenset[str] = frozenset(),
    sleep: Callable[[float], None] = time.sleep,
) -> Submitted:
    """`submit_job` of ``sbatch`` by a stand-in of a run and of its kind, whose jobs have their directories in /r."""
    services = SimpleNamespace(scheduler=scheduler, environ={})
    run: Any = SimpleNamespace(id=token, plan=None, services=services, announced_sleep=lambda text, seconds: sleep)
    kind: Any = SimpleNamespace(
        output_directory=lambda plan, job_id: Path("/r", job_id),
        log_in=lambda output, job_id: output / "log",
        submits_held=lambda plan: True,
    )
    return submit_job(kind, run, ["sbatch"], {}, earlier, start)
