"""How the stand-in for srtctl makes a job of a recipe: the batch script, the submission, the output directory."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from launcher.core import process
from launcher.core.errors import LauncherError
from launcher.core.slurm_notation import limit_seconds
from launcher.rehearsal.results import MARK
from launcher.srtctl import recipe
from launcher.srtctl.facts import facts as recipe_facts

LOCAL_JOBS = "LAUNCHER_LOCAL_JOBS"
"""This variable names the jobs directory of the embedded scheduler; without it jobs go to Slurm."""


@dataclass(frozen=True)
class Job:
    """A job to submit: ``resolved`` is the recipe with defaults and aliases, ``log`` a path with ``%j`` or None."""

    name: str
    resolved: Mapping[str, Any]
    cluster: Mapping[str, Any]
    root: Path
    output_base: Path
    config_name: str
    setup_script: str | None
    log: Path | None

    @property
    def directives(self) -> Mapping[str, Any]:
        return self.resolved.get("sbatch_directives") or {}

    @property
    def time_limit(self) -> str:
        return str((self.resolved.get("slurm") or {}).get("time_limit") or "01:00:00")


class SbatchFailed(Exception):
    """sbatch ended with an error. The script is left where it is, as srtctl does."""

    def __init__(self, script: str, stderr: str, returncode: int = 1) -> None:
        super().__init__(stderr)
        self.script, self.stderr, self.returncode = script, stderr, returncode


def batch_script(job: Job) -> str:
    """The script for sbatch: srt-slurm's directives in its order, and the stand-in for the engine as its body."""
    slurm, resources = job.resolved.get("slurm") or {}, job.resolved.get("resources") or {}
    nodes = recipe_facts(job.resolved).nodes or 1
    per_node = resources.get("gpus_per_node", 4)
    on = {name: job.cluster.get(name, default) for name, default in _SWITCHES.items()}
    directives = [
        f"job-name={job.name}",
        f"output={job.log or '/dev/null'}",
        f"nodes={nodes}",
        f"ntasks={nodes}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={per_node}"] if on["use_gpus_per_node_directive"] else []),
        *([f"segment={nodes}"] if on["use_segment_sbatch_directive"] else []),
        *(["exclusive"] if on["use_exclusive_sbatch_directive"] else []),
        f"account={slurm.get('account') or 'default'}",
        f"time={job.time_limit}",
        f"partition={slurm.get('partition') or 'default'}",
        *(f"{key}={value}" if value else key for key, value in job.directives.items()),
    ]
    package = shlex.quote(str(Path(launcher.__file__).parents[1]))
    engine = shlex.join([sys.executable, "-m", "launcher.rehearsal.engine_stand_in"])
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{directive}" for directive in directives),
            "",
            "exec 2>&1",
            f"cd {shlex.quote(str(job.root))}",
            f"export PYTHONPATH={package}${{PYTHONPATH:+:$PYTHONPATH}}",
            *([f"export SRTCTL_SETUP_SCRIPT={shlex.quote(job.setup_script)}"] if job.setup_script else []),
            f'exec {engine} {shlex.quote(str(job.output_base))}/"$SLURM_JOB_ID" {shlex.quote(job.config_name)}',
            "",
        ]
    )


_SWITCHES = {
    "use_gpus_per_node_directive": True,
    "use_segment_sbatch_directive": True,
    "use_exclusive_sbatch_directive": False,
}
"""Keys of srtslurm.yaml that switch a directive, with srtctl's defaults."""


def submit(job: Job, environ: Mapping[str, str]) -> str:
    """Submit, and return the job's id. Raises SbatchFailed, and OSError when there is no sbatch."""
    jobs = environ.get(LOCAL_JOBS)
    return _embedded(job, Path(jobs)) if jobs else _sbatch(job)


def _sbatch(job: Job) -> str:
    handle, script = tempfile.mkstemp(suffix=".slurm", prefix="srtctl_", text=True)
    with os.fdopen(handle, "w") as file:
        file.write(batch_script(job))
    done = process.run(["sbatch", script], timeout=300)
    if done.returncode == process.NOT_FOUND:
        Path(script).unlink()
        raise FileNotFoundError(2, "No such file or directory", "sbatch")
    if not done.ok:
        raise SbatchFailed(script, done.stderr, done.returncode or 1)
    Path(script).unlink()
    words = done.stdout.split()
    if not words:
        raise OSError("list index out of range")
    return words[-1]


def _embedded(job: Job, directory: Path) -> str:
    """Submit to the embedded scheduler. The recipe's comment, by which jobs are found in Slurm, is the job's token."""
    from launcher.rehearsal.engine_stand_in import run_embedded
    from launcher.slurm.local import submit as submit_embedded

    limit = limit_seconds(job.time_limit)
    if limit is None:
        raise SbatchFailed("(embedded)", "sbatch: error: Invalid --time specification")
    try:
        key = submit_embedded(
            directory,
            functools.partial(run_embedded, str(job.output_base), job.config_name),
            name=job.name,
            token=str(job.directives.get("comment") or ""),
            log=job.log or Path("/dev/null"),
            time_limit=limit,
        )
    except LauncherError as error:
        raise SbatchFailed("(embedded)", f"sbatch: error: {error.message}") from None
    return key.id


def write_output(
    job: Job, place: Path, job_id: str, source: Path, variant: recipe.Variant, tags: Sequence[str] | None
) -> None:
    """Fill ``outputs/<job>``: the recipe as it was given, the variant that runs, the script, the metadata."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "logs").mkdir(exist_ok=True)
    if variant.suffix:
        _whole(place / job.config_name, recipe.dump(variant.document))
    _whole(place / "config.yaml", source.read_text())
    (place / "sbatch_script.sh").write_text(batch_script(job))
    facts = recipe_facts(job.resolved)
    resources = job.resolved.get("resources") or {}
    sides = {"prefill": facts.prefill, "decode": facts.decode, "agg": facts.aggregated}
    metadata: dict[str, Any] = {
        "version": "2.0",
        "orchestrator": True,
        "job_id": job_id,
        "job_name": job.name,
        "generated_at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": {key: job.resolved["model"].get(key) for key in ("path", "container", "precision")},
        "resources": {
            "gpu_type": facts.gpu_type,
            "gpus_per_node": facts.gpus_per_node,
            **{f"{name}_nodes": resources.get(f"{name}_nodes") for name in sides},
            **{f"{name}_workers": resources.get(f"{name}_workers") or 0 for name in sides},
            **{f"gpus_per_{name}": side.gpus_per_worker if side else None for name, side in sides.items()},
        },
        "backend_type": facts.engine,
        "frontend_type": (job.resolved.get("frontend") or {}).get("type", "dynamo"),
        "benchmark": {"type": facts.benchmark_type, "isl": facts.isl, "osl": facts.osl},
        **({"tags": list(tags)} if tags else {}),
        **MARK,
    }
    (place / f"{job_id}.json").write_text(json.dumps(metadata, indent=2))


def _whole(path: Path, text: str) -> None:
    """Write a file that the job waits for: the job must not see it half-written."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    shutil.move(partial, path)
