"""Engines that run a script in a container: pyxis, enroot without pyxis, docker, podman.

An engine turns a `PlannedContainer` into commands of the job's script: their words, in lines. A word may hold ``$JOB``,
the job's id. No command holds the value of a variable: what the container gets is in the job's environment, and docker
and podman are told names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.container.job_functions import CARRIED, SET_CARRIED
from launcher.container.planned import LABEL, ContainerJob, PlannedContainer

Lines = tuple[tuple[str, ...], ...]

LABELS = LABEL, "launcher.user"
"""Of docker's and podman's containers: the run and its job, and whose it is, so that exactly our own are ended."""

STEP = (("srun", "--nodes=1", "--ntasks=1"),)


@dataclass(frozen=True)
class EngineCommands:
    """What an engine needs of the job's script.

    ``run`` runs the benchmark's script in the container, and ends with its exit code. ``before`` makes a container of
    the image, ``after`` takes away what that left. ``pulls`` is the program that pulls the image and knows its digest:
    then ``run`` ends with the image and the script, and the image's place is ``IMAGE``. ``own`` lists the ids of the
    own containers that still run.
    """

    run: Lines
    before: Lines = ()
    after: Lines = ()
    carries: tuple[str, ...] = ()
    pulls: str | None = None
    own: Lines = ()


def commands(job: ContainerJob, run_key: str, workspace: str) -> EngineCommands:
    """The commands of the plan's engine. ``workspace`` is the checkout that the container sees: that of the host, or
    its copy on the node."""
    container = job.container
    volumes = container.volumes(workspace)
    if container.engine == "pyxis":
        return _pyxis(job, workspace)
    if container.engine == "enroot":
        return _enroot(job, volumes, run_key)
    return _docker(job, volumes, run_key)


def _step(job: ContainerJob) -> Lines:
    """The step that runs the container, with the processors that the job was given.

    Since 22.05 srun does not take over ``--cpus-per-task`` of the job (srun(1)).
    """
    cpus = job.allocation.cpus_per_task if job.allocation is not None else None
    return (*STEP, (f"--cpus-per-task={cpus}",) if cpus else ())


def pyxis_options(container: PlannedContainer, workspace: str) -> Lines:
    """srun's options for a container of pyxis, but for its entrypoint."""
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
            *_script(job),
        ),
        # Of a variable that the image sets as well, pyxis would take the image's value (README of pyxis 0.24).
        carries=_named(job),
    )


def _enroot(job: ContainerJob, volumes: Sequence[str], run_key: str) -> EngineCommands:
    container, options = job.container, job.container.options
    name = f"launcher-{run_key}-$JOB"
    # enroot has no option for the working directory (enroot 4.1.2, doc/cmd/start.md).
    inside = (("env", f"--chdir={container.workdir}"), *_script(job))
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
            *inside,
        ),
        after=(("enroot", "remove", "--force", name),),
        # enroot starts with an empty environment, and keeps the first line of a value.
        carries=(*_named(job), *_OF_THE_STEP),
    )


def _fstab(volume: str) -> str:
    return f"{volume.removesuffix(':ro')}:none:x-create=auto,rbind{',ro' if volume.endswith(':ro') else ''}"


IMAGE = "{image}"
"""The place of a pulled image in `EngineCommands.run`: the script puts the reference with the digest there."""


_OURS = ("--rm", "--name", "--entrypoint", "--pull")
"""Options of ``run`` that are set here, whatever the runner file says: by them the container is ours, and found."""


def _docker(job: ContainerJob, volumes: Sequence[str], run_key: str) -> EngineCommands:
    container, program = job.container, job.container.engine
    job_and_user = f"{run_key}.$JOB", "$UID"
    return EngineCommands(
        run=(
            (program, "run", "--rm"),
            (f"--name=launcher-{run_key}-$JOB",),
            tuple(f"--label={name}={value}" for name, value in zip(LABELS, job_and_user, strict=True)),
            *((flag,) for flag in container.options.flags if not flag.startswith(_OURS)),
            *((f"--volume={volume}",) for volume in volumes),
            (f"--workdir={container.workdir}",),
            *(("--env", variable) for variable in _named(job)),
            ("--entrypoint=bash",),
            (IMAGE,),
            (job.script.path,),
        ),
        pulls=program,
        own=(tuple(own_containers(program, *job_and_user)),),
    )


def own_containers(program: str, job: str, user: str) -> list[str]:
    """The command that lists the ids of a job's containers: by both labels, whatever the names are."""
    filters = (f"--filter=label={name}={value}" for name, value in zip(LABELS, (job, user), strict=True))
    return [program, "ps", "--all", "--quiet", *filters]


_OF_THE_STEP = (
    *("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURMD_NODENAME"),
)
"""What Slurm tells a step: which GPUs are its own, and who it is."""


def _named(job: ContainerJob) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*job.container.environment, *job.container.passes]))


def _script(job: ContainerJob) -> Lines:
    return ("bash", "-c", SET_CARRIED), (job.script.path,)
