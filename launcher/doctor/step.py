"""What a step of a GitHub workflow lacks, all of it at once and before anything is held: what GitHub gives a step, the
plan's programs, places to write to. Nothing is started, and nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from launcher.core.errors import ConfigError
from launcher.core.publish import require_writable
from launcher.core.rights import next_step
from launcher.plan.plan import SRTCTL, Plan

SLURM_PROGRAMS = ("sbatch", "scancel", "scontrol", "squeue")
LEAST_FREE = 256 * 1024 * 1024
"""Bytes that a run's record, logs and evidence may want (launcher/result/logs.py keeps as many)."""

_GIVEN = ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB", "GITHUB_WORKSPACE")
_FILES = ("GITHUB_ENV", "GITHUB_OUTPUT")
HOST = "the runner's host"
_PATH_HINT = "a line in the runner's .path file has it found (its PATH is none of a login shell's); restart the runner"


def of_github(environ: Mapping[str, str], version: str) -> Iterator[ConfigError]:
    """What is missing of what GitHub's runner gives every step, and of the version that the workflow is written for."""
    where = "environment"
    if missing := [name for name in _GIVEN if not environ.get(name)]:
        hint = "GitHub's runner sets them: run this in a step of the job, not in another container or by sudo"
        yield ConfigError(f"{', '.join(missing)} not set", where=where, hint=hint)
    for name in _FILES:
        path = environ.get(name)
        if not path or not os.access(path, os.W_OK):
            said = f"{path} cannot be written" if path else "not set"
            yield ConfigError(f"{name}: {said}", where=where, hint="later steps find run and results by it")
    if workspace := environ.get("GITHUB_WORKSPACE"):
        yield from _writable(Path(workspace), "the checkout (GITHUB_WORKSPACE)", make=False)
    wanted = environ.get("LAUNCHER_VERSION", "")
    if wanted and not serves(version, wanted):
        hint = "install that version and switch PATH to it, or take the steps of `launcher ci --print-workflow`"
        message = f"the workflow is written for launcher {wanted}, and this one is {version}"
        yield ConfigError(message, where="LAUNCHER_VERSION", hint=hint)


def serves(version: str, wanted: str) -> bool:
    """Whether a version has what was promised for another one: of the same major version (before 1.0 of the same minor
    version), and no older (docs/reference/versions.md)."""
    try:
        ours, theirs = ([int(part) for part in text.split(".")[:3]] for text in (version, wanted))
    except ValueError:
        return version == wanted
    same = 1 if ours[0] else 2
    return ours[:same] == theirs[:same] and ours >= theirs


def of_host(scheduler: str, environ: Mapping[str, str], state: Path) -> Iterator[ConfigError]:
    """What the runner's host lacks for any job of a cluster whose scheduler is of this kind."""
    if scheduler == "slurm":
        yield from _programs(dict.fromkeys(SLURM_PROGRAMS, "Slurm is asked by it"), environ)
        configured = environ.get("SLURM_CONF")
        if configured and not os.access(configured, os.R_OK):
            message = f"SLURM_CONF is {configured}, which cannot be read"
            yield ConfigError(message, where=HOST, hint="the runner's .env file says where it is")
    yield from _writable(state, "records (LAUNCHER_STATE)", free=LEAST_FREE)


def of_plan(plan: Plan, environ: Mapping[str, str], stand_ins: Collection[str]) -> Iterator[ConfigError]:
    """What it lacks for this plan beside that. ``stand_ins`` are the programs that need not be there."""
    here = [image for image in plan.images if image.shared and image.import_on == "login"]
    needed = {"enroot": "images are imported here"} if here else {}
    if plan.kind == SRTCTL:
        needed["git"] = "srt-slurm is checked out"
        setup = plan.as_details()["srt_slurm"]["setup"]
        needed |= {argv[0]: "it sets srt-slurm up" for argv in setup if "/" not in argv[0]}
    engine = plan.as_details().get("container", {}).get("engine")
    if engine in ("docker", "podman") and plan.scheduler.kind == "local":
        needed[engine] = "it runs the container"
    yield from _programs({program: why for program, why in needed.items() if program not in stand_ins}, environ)
    for directory in sorted({Path(image.squash).parent for image in here}):
        yield from _writable(directory, "images (`images.directory` of the runner file)")
    if plan.model.path is not None and plan.model.path.startswith("hf:") and not environ.get("HF_TOKEN"):
        message = f"HF_TOKEN is empty, and {plan.model.path} is downloaded"
        yield ConfigError(message, where="environment", hint="a called workflow is given it by `secrets:`")


def _programs(needed: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """The programs that are not on PATH; ``needed`` has by their names what they are for."""
    for program, why in sorted(needed.items()):
        if shutil.which(program, path=environ.get("PATH", os.defpath)) is None:
            yield ConfigError(f"{program} is not on PATH: {why}", where=HOST, hint=_PATH_HINT)


def _writable(directory: Path, what: str, *, make: bool = True, free: int = 0) -> Iterator[ConfigError]:
    """Why nothing can be written to a directory; with ``make`` it may be one that has yet to be made."""
    there = directory
    while make and not there.exists() and there != there.parent:
        there = there.parent
    try:
        require_writable(there)
        status = os.statvfs(there)
    except OSError as error:
        yield ConfigError(f"{what}: {error.strerror}", where=str(there), hint=next_step(error, there))
        return
    if (left := status.f_bavail * status.f_frsize) < free:
        message = f"{what}: {left >> 20} MiB are free, and {free >> 20} may be wanted"
        yield ConfigError(message, where=str(there), hint="free space there, or name another place")
