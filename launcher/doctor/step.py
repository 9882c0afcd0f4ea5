"""The problems of a step of a GitHub workflow, all found before it takes anything: missing variables of GitHub, missing
programs, directories that cannot be written. No process is started, and no file is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.publish import require_writable
from launcher.core.rights import os_error_hint
from launcher.plan.plan import SRTCTL, Plan

SLURM_PROGRAMS = ("sbatch", "scancel", "scontrol", "squeue")
LEAST_FREE = 256 * 1024 * 1024
"""Bytes that a run's record, logs and evidence may take (launcher/result/logs.py keeps as many)."""

_VARIABLES = ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB", "GITHUB_WORKSPACE")
_FILES = ("GITHUB_ENV", "GITHUB_OUTPUT")
HOST = "the runner's host"
_PATH_HINT = "add its directory to the runner's .path file (its PATH is not a login shell's), and restart the runner"


def github_problems(environ: Mapping[str, str], version: str) -> Iterator[ConfigError]:
    """What is missing of that which GitHub's runner gives every step; and a workflow written for another version."""
    where = "environment"
    if missing := [name for name in _VARIABLES if not environ.get(name)]:
        hint = "GitHub's runner sets them: run this in a step of the job, not in another container or by sudo"
        yield ConfigError(f"{', '.join(missing)} not set", where=where, hint=hint)
    for name in _FILES:
        path = environ.get(name)
        if not path or not os.access(path, os.W_OK):
            problem = f"{path} cannot be written" if path else "not set"
            yield ConfigError(f"{name}: {problem}", where=where, hint="later steps find run and results by it")
    if workspace := environ.get("GITHUB_WORKSPACE"):
        yield from _write_problems(Path(workspace), "the checkout (GITHUB_WORKSPACE)", make=False)
    required = environ.get("LAUNCHER_VERSION", "")
    if required and not is_compatible(version, required):
        hint = "install that version and switch PATH to it, or take the steps of `launcher ci --print-workflow`"
        message = f"the workflow is written for launcher {required}, and this one is {version}"
        yield ConfigError(message, where="LAUNCHER_VERSION", hint=hint)


def is_compatible(version: str, required: str) -> bool:
    """Whether ``version`` can take the place of ``required``: the same major version (before 1.0 the same minor
    version), and no older (docs/reference/versions.md)."""
    try:
        ours, theirs = ([int(part) for part in text.split(".")[:3]] for text in (version, required))
    except ValueError:
        return version == required
    same = 1 if ours[0] else 2
    return ours[:same] == theirs[:same] and ours >= theirs


def host_problems(scheduler: str, environ: Mapping[str, str], state: Path) -> Iterator[ConfigError]:
    """What the runner's host lacks for any job of a cluster with a scheduler of this kind."""
    if scheduler == "slurm":
        yield from _missing_programs(dict.fromkeys(SLURM_PROGRAMS, "Slurm is queried by it"), environ)
        configured = environ.get("SLURM_CONF")
        if configured and not os.access(configured, os.R_OK):
            message = f"SLURM_CONF is {configured}, which cannot be read"
            yield ConfigError(message, where=HOST, hint="the runner's .env file says where it is")
    yield from _write_problems(state, "records (LAUNCHER_STATE)", free=LEAST_FREE)


def plan_problems(plan: Plan, environ: Mapping[str, str], stand_ins: Collection[str]) -> Iterator[ConfigError]:
    """What the host lacks for this plan in particular. The programs ``stand_ins`` need not be there."""
    imported_here = [image for image in plan.images if image.shared and image.import_on == "login"]
    needed = {"enroot": "images are imported here"} if imported_here else {}
    if plan.kind == SRTCTL:
        needed["git"] = "srt-slurm is checked out"
        setup = plan.as_details()["srt_slurm"]["setup"]
        needed |= {argv[0]: "it sets srt-slurm up" for argv in setup if "/" not in argv[0]}
    engine = plan.as_details().get("container", {}).get("engine")
    if engine in ("docker", "podman") and plan.scheduler.kind == "local":
        needed[engine] = "it runs the container"
    real = {program: purpose for program, purpose in needed.items() if program not in stand_ins}
    yield from _missing_programs(real, environ)
    for directory in sorted({Path(image.squash).parent for image in imported_here}):
        yield from _write_problems(directory, "images (`images.directory` of the runner file)")
    if plan.model.path is not None and plan.model.path.startswith("hf:") and not environ.get("HF_TOKEN"):
        message = f"HF_TOKEN is empty, and {plan.model.path} is downloaded"
        yield ConfigError(message, where="environment", hint="a called workflow is given it by `secrets:`")


def _missing_programs(needed: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """An error for each program that is not on PATH; ``needed`` has their purposes by name."""
    for program, purpose in sorted(needed.items()):
        if shutil.which(program, path=environ.get("PATH", os.defpath)) is None:
            yield ConfigError(f"{program} is not on PATH: {purpose}", where=HOST, hint=_PATH_HINT)


def _write_problems(directory: Path, content: str, *, make: bool = True, free: int = 0) -> Iterator[ConfigError]:
    """Why ``content`` cannot be written to a directory, which with ``make`` need not exist yet."""
    existing = directory
    while make and not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        require_writable(existing)
        status = os.statvfs(existing)
    except OSError as error:
        yield ConfigError(f"{content}: {error.strerror}", where=str(existing), hint=os_error_hint(error, existing))
        return
    if (available := status.f_bavail * status.f_frsize) < free:
        message = f"{content}: {available >> 20} MiB are free, and {free >> 20} may be wanted"
        yield ConfigError(message, where=str(existing), hint="free space there, or name another place")
