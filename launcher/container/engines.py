"""Engines that run a script in a container: pyxis, enroot without pyxis, docker, podman.

An engine turns a `PlannedContainer` into commands of the job's script: words, grouped in lines. ``$JOB`` in a word is
the job's id. No command contains the value of a variable: the values are in the job's environment, and docker and
podman are given the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.container.job_functions import CARRIED, SET_CARRIED
from launcher.container.planned import LABEL, ContainerJob, PlannedContainer

CommandLines = tuple[tuple[str, ...], ...]

LABELS = LABEL, "launcher.user"
"""Labels of docker's and podman's containers: run and job, and the user, so that exactly our own are ended."""

STEP = (("srun", "--nodes=1", "--ntasks=1"),)


@dataclass(frozen=True)
class EngineCommands:
    """An engine's commands in the job's script.

    ``run`` runs the benchmark's script in the container, and exits with its code. ``before`` creates a container from
    the image, ``after`` removes it. ``carries`` are variables that the container's bash sets. ``pulls`` is the program
    that pulls the image and knows its digest; then ``run`` has ``IMAGE`` in place of the image. ``own`` lists the ids
    of the job's containers that still run.
    """

    run: CommandLines
    before: CommandLines = ()
    after: CommandLines = ()
    carries: tuple[str, ...] = ()
    pulls: str | None = None
    own: CommandLines = ()


def commands(job: ContainerJob, run_key: str, workspace: str) -> EngineCommands:
    """The commands of the plan's engine. ``workspace`` is the mounted checkout: the host's, or its copy on the node."""
    container = job.container
    volumes = container.volumes(workspace)
    match container.engine:  # without a default, so that mypy reports an engine that has no branch
        case "pyxis":
            return _pyxis(job, workspace)
        case "enroot":
            return _enroot(job, volumes, run_key)
        case "docker" | "podman":
            return _docker(job, volumes, run_key)


def _step(job: ContainerJob) -> CommandLines:
    """The step that runs the container, with the processors of the job.

    Since 22.05 srun does not inherit the job's ``--cpus-per-task`` (srun(1)).
    """
    cpus = job.allocation.cpus_per_task if job.allocation is not None else None
    return (*STEP, (f"--cpus-per-task={cpus}",) if cpus else ())


def pyxis_options(container: PlannedContainer, workspace: str) -> CommandLines:
    """srun's options for a container of pyxis, without the entrypoint."""
    options = container.options
    return (
        (f"--container-image={container.image}",),
        *([(f"--container-name={options.name}",)] if options.name else []),
        (f"--container-mounts={','.join(container.volumes(workspace))}",),
        *([(f"--container-workdir={container.workdir}",)] if container.workdir else []),
        ("--container-mount-home" if options.home else "--no-container-mount-home",),
        *([("--container-remap-root",)] if options.remap_root else []),
        *([("--container-writable",)] if options.writable else []),
    )


def _pyxis(job: ContainerJob, workspace: str) -> EngineCommands:
    options = job.container.options
    return EngineCommands(
        run=(
            *_step(job),
            ("--export=ALL",),
            *([(f"--mpi={options.mpi}",)] if options.mpi else []),
            *pyxis_options(job.container, workspace),
            ("--container-entrypoint" if options.entrypoint else "--no-container-entrypoint",),
            *_script_words(job),
        ),
        # If the image sets a variable too, pyxis would use the image's value (README of pyxis 0.24).
        carries=_variable_names(job),
    )


def _enroot(job: ContainerJob, volumes: Sequence[str], run_key: str) -> EngineCommands:
    container, options = job.container, job.container.options
    name = f"launcher-{run_key}-$JOB"
    return EngineCommands(
        before=(("enroot", "create"), ("--name", name), (container.image,)),
        run=(
            *_step(job),
            ("--export=ALL",),
            ("enroot", "start"),
            *([("--root",)] if options.remap_root else []),
            *([("--rw",)] if options.writable else []),
            *([("--mount", "$HOME:$HOME")] if options.home else []),
            *(("--mount", _fstab(volume)) for volume in volumes),
            ("--env", CARRIED),
            (name,),
            ("env", f"--chdir={container.workdir}"),  # enroot has no option for it (enroot 4.1.2, doc/cmd/start.md)
            *_script_words(job),
        ),
        after=(("enroot", "remove", "--force", name),),
        # enroot starts with an empty environment, and keeps only the first line of a value.
        carries=(*_variable_names(job), *_STEP_VARIABLES),
    )


def _fstab(volume: str) -> str:
    return f"{volume.removesuffix(':ro')}:none:x-create=auto,rbind{',ro' if volume.endswith(':ro') else ''}"


IMAGE = "{image}"
"""The placeholder of a pulled image in `EngineCommands.run`: the script replaces it by the image's id or digest."""


_RESERVED_OPTIONS = ("--rm", "--name", "--entrypoint", "--pull")
"""Options of ``run`` that are always set here, and not by the runner file, so that our container can be found."""


def _docker(job: ContainerJob, volumes: Sequence[str], run_key: str) -> EngineCommands:
    container, program = job.container, job.container.engine
    job_and_user = f"{run_key}.$JOB", "$UID"
    return EngineCommands(
        run=(
            (program, "run", "--rm"),
            (f"--name=launcher-{run_key}-$JOB",),
            tuple(f"--label={name}={value}" for name, value in zip(LABELS, job_and_user, strict=True)),
            *((flag,) for flag in container.options.flags if not flag.startswith(_RESERVED_OPTIONS)),
            *((f"--volume={volume}",) for volume in volumes),
            (f"--workdir={container.workdir}",),
            *(("--env", variable) for variable in _variable_names(job)),
            ("--entrypoint=bash",),
            (IMAGE,),
            (job.script.path,),
        ),
        pulls=program,
        own=(tuple(list_containers_command(program, *job_and_user)),),
    )


def repository_of(reference: str) -> str:
    """An image reference without tag and digest."""
    head, slash, name = reference.partition("@")[0].rpartition("/")
    return f"{head}{slash}{name.partition(':')[0]}"


def list_containers_command(program: str, job: str, user: str) -> list[str]:
    """The command that lists the ids of a job's containers, by both labels."""
    filters = (f"--filter=label={name}={value}" for name, value in zip(LABELS, (job, user), strict=True))
    return [program, "ps", "--all", "--quiet", *filters]


_STEP_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURMD_NODENAME"),
)
"""Variables that Slurm sets for a step: its GPUs, job and node."""


def _variable_names(job: ContainerJob) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*job.container.environment, *job.container.passes]))


def _script_words(job: ContainerJob) -> CommandLines:
    return ("bash", "-c", SET_CARRIED), (job.script.path,)
