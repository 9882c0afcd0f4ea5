"""The tools of a rehearsal: programs in the place of enroot, srtctl, srun and docker, and inputs for them.

The programs are scripts that start a module of this room. The inputs are a checkpoint, which passes all checks, and a
git repository in the place of srt-slurm. Both have some kilobytes, and state that they are for rehearsals.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import launcher
from launcher.core.errors import ModelError, SubmissionError
from launcher.core.process import run
from launcher.core.publish import fsync, publishing, publishing_directory
from launcher.model.checkpoint import REHEARSAL_KEY, examine
from launcher.plan.plan import SRTCTL, Plan
from launcher.rehearsal.image_stand_in import PROGRAMS
from launcher.rehearsal.srtctl_contract import LOCAL_JOBS, stand_in_data
from launcher.run.kind import Tools
from launcher.srtctl.planned import SrtctlJob

STATE, IMAGE = "{state}", "{image}"
"""Placeholders in arguments: the directory for a program's state, and that of the programs of an image."""

TOOLS = {
    "srtctl": ("srtctl_stand_in",),
    "enroot": ("enroot_stand_in",),
    **{name: ("docker_stand_in", name, STATE, IMAGE) for name in ("docker", "podman")},
}
"""By program: the module of this room that it starts, with its first arguments."""

PROGRAMS_WITHOUT_SLURM = {"srun": ("srun_stand_in", IMAGE)}
"""Further programs, for hosts without Slurm and its srun."""

NODE_PROGRAMS = {
    "ip": "echo '1.1.1.1 dev lo src 127.0.0.1 uid 0'",
    "hostname": 'echo "${SLURMD_NODENAME:-$(uname -n)}"',
    "nvidia-smi": "for gpu in 0 1 2 3 4 5 6 7; do echo '0, 100000'; done",
    "sudo": "exit 1",
    "sync": ":",
}
"""Programs that a job runs on its nodes, in sh: nodes have an address and free GPUs; this host's caches are kept."""

REGISTRIES = frozenset({"127.0.0.1", "localhost"})
"""Registries that may be queried for the images of a rehearsal: those of tests. No other has stand-in images."""


class StandIns(Tools):
    """Stand-ins below the launcher's state directory, for a scheduler of this kind."""

    @classmethod
    def below(cls, state: Path, scheduler_kind: str, environ: Mapping[str, str]) -> StandIns:
        """Make the programs, and put them first on PATH."""
        return cls(stand_in_environment(state, scheduler_kind, environ), stand_ins=True, registries=REGISTRIES)

    def make_stand_in_inputs(self, plan: Plan) -> None:
        """Make the plan's checkpoint, and the repository in the place of srt-slurm. Raises LauncherError."""
        path = plan.model.path
        if path is not None and not path.startswith("hf:") and "login" in plan.model.seen_by:
            ensure_model(Path(path), plan.model.precision)
        if plan.kind == SRTCTL:
            ensure_repository(Path(SrtctlJob.of(plan).srt_slurm.repository).parent)


def stand_in_environment(state: Path, scheduler_kind: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a run's programs find the stand-ins, and which configure these; ``state`` is the
    launcher's own directory.

    For the embedded scheduler (``scheduler_kind`` is ``local``) they also name the directory of its jobs.
    """
    root, path = state / "rehearsal", environ.get("PATH", os.defpath)
    path = f"{tools_directory(root / 'bin')}{os.pathsep}{path}"
    variables = {name: value for name, value in environ.items() if name.startswith("LAUNCHER_REHEARSAL_")}
    if scheduler_kind != "local":
        return {**variables, "PATH": path}
    nodes = tools_directory(root / "bin-without-slurm", PROGRAMS_WITHOUT_SLURM)
    for name, text in NODE_PROGRAMS.items():
        _make_program(nodes / name, f"#!/bin/sh\n# {name}_stand_in: of a rehearsal\n{text}\n")
    path = f"{nodes}{os.pathsep}{path}"
    return {**variables, "PATH": path, LOCAL_JOBS: str(state / "jobs")}


def tools_directory(directory: Path, tools: Mapping[str, Sequence[str]] = TOOLS) -> Path:
    """Make the programs in ``directory``, which is created if missing, and return its absolute path for PATH.

    The programs of images are made beside it. A program whose interpreter has changed is replaced atomically. Raises
    OSError.
    """
    directory = directory.absolute()
    image = directory.parent / "image"
    _make_programs(image, {name: ("image_stand_in", name) for name in PROGRAMS})
    commands = {}
    for name, arguments in tools.items():
        places = {STATE: str(directory.parent / "engines" / name), IMAGE: str(image)}
        commands[name] = [places.get(argument, argument) for argument in arguments]
    _make_programs(directory, commands)
    return directory


def _make_programs(directory: Path, programs: Mapping[str, Sequence[str]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    package = str(Path(launcher.__file__).parents[1])
    for name, (module, *arguments) in programs.items():
        program = directory / name
        # The workflow's PYTHONPYCACHEPREFIX would have every stand-in compile all that it imports.
        argv = [sys.executable, "-X", "pycache_prefix=", "-m", f"launcher.rehearsal.{module}", *arguments]
        text = (
            "#!/bin/sh\n"
            f"PYTHONPATH={shlex.quote(package)}${{PYTHONPATH:+:$PYTHONPATH}}\n"
            "export PYTHONPATH\n"
            f'exec {shlex.join(argv)} "$@"\n'
        )
        _make_program(program, text)


def _make_program(program: Path, text: str) -> None:
    if not program.is_file() or program.read_text() != text:
        with publishing(program) as temporary:
            temporary.write_text(text)
            temporary.chmod(0o755)


REPOSITORY_REF = "rehearsal-v1"
REPOSITORY_SHA = "49b19c200d5babc3a160fcf9098fe664c621b8b6"
"""The commit of the repository. It changes with every change of its files; runners/local.yaml pins it."""

REPOSITORY_NAME = f"srt-slurm-{REPOSITORY_SHA[:12]}"
"""The repository's name; it says the commit, so that another version of the launcher gets another repository."""

_AUTHOR = {"NAME": "launcher", "EMAIL": "launcher@localhost", "DATE": "2026-01-01T00:00:00+00:00"}


def ensure_repository(directory: Path) -> Path:
    """Have the repository below ``directory``, and return its path, which git can clone.

    Its one commit has a fixed author and date, so the sha is the same on every machine and can be pinned. Several
    processes may call this at once. Raises SubmissionError when git fails.
    """
    repository = directory / REPOSITORY_NAME
    if repository.is_dir():
        return repository
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with publishing_directory(repository) as temporary:
            _make_repository(temporary)
    except OSError as error:
        raise SubmissionError(f"the rehearsal's repository cannot be made: {error}", where=str(repository)) from None
    return repository


def _make_repository(directory: Path) -> None:
    fields = "".join(f"    {name}: {kind} | None = None\n" for name, kind in stand_in_data().cluster.items())
    schema = f'"""The keys of srtslurm.yaml."""\n\n\nclass ClusterConfig:\n{fields}'
    for name, text in {**stand_in_data().repository, "src/srtctl/core/schema.py": schema}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)
    # Neither the user's settings (signing, line ends, hooks) nor an enclosing repository may change the commit.
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _AUTHOR.items()},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    for words in (
        ["init", "--quiet", "--template=", "--object-format=sha1", "--initial-branch=main", "."],
        ["-c", "core.autocrlf=false", "-c", "core.fileMode=true", "add", "--all"],
        ["commit", "--quiet", "--no-gpg-sign", "--no-verify", "--message", "Stand-in for srt-slurm"],
        ["tag", REPOSITORY_REF],
    ):
        done = run(["git", *words], timeout=60, cwd=directory, env=environment)
        if not done.ok:
            raise SubmissionError(f"the rehearsal's repository cannot be made: {done}", where=str(directory))


def ensure_model(directory: Path, precision: str) -> Path:
    """Have a tiny whole checkpoint of ``precision`` (``bf16 fp8 fp4 int4``) at ``directory``, and return the directory.

    An existing one is used. Its config.json says that it is for rehearsals, so that other runs refuse it
    (`launcher.model.serving.require_servable`). Raises ModelError for an unknown precision, and when something else is
    at ``directory``, which is never touched.
    """
    known = stand_in_data().checkpoint["weights"]
    if precision not in known:
        raise ModelError(f"no rehearsal checkpoint of precision {precision!r}: there are {', '.join(known)}")

    def usable(path: Path) -> bool:
        verdict = examine(path, precision=precision)
        return verdict.whole and verdict.identity == "match" and verdict.rehearsal

    if usable(directory):
        return directory
    try:
        with publishing_directory(directory, whole=usable) as temporary:
            temporary.mkdir(parents=True)
            _write_model(temporary, precision)
    except OSError as error:
        raise ModelError(
            f"a rehearsal checkpoint cannot be put here: {error.strerror}",
            where=str(directory),
            hint="name a directory that does not exist yet",
        ) from None
    return directory


def _write_model(directory: Path, precision: str) -> None:
    facts = stand_in_data().checkpoint
    dtype, width = facts["weights"][precision]
    config = {REHEARSAL_KEY: True, **facts["documents"]["config.json"]}
    if facts["quantization"][precision]:
        config["quantization_config"] = facts["quantization"][precision]
    # By shard: its one tensor, with dtype, shape and bytes an element.
    shards = {
        "model-00001-of-00002.safetensors": ("model.embed_tokens.weight", "BF16", [config["vocab_size"], 16], 2),
        "model-00002-of-00002.safetensors": ("model.layers.0.mlp.down_proj.weight", dtype, [16, 32], width),
    }
    index = {
        "metadata": {"total_size": sum(math.prod(shape) * width for _, _, shape, width in shards.values())},
        "weight_map": {tensor: shard for shard, (tensor, *_) in shards.items()},
    }
    documents = {**facts["documents"], "config.json": config, "model.safetensors.index.json": index}
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name, (tensor, kind, shape, width) in shards.items():
        size = math.prod(shape) * width
        header = json.dumps({tensor: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        header += b" " * (-len(header) % 8)
        (directory / name).write_bytes(
            len(header).to_bytes(8, "little") + header + b"\1" * size
        )  # no zeros: some file systems keep those as holes
    for file in directory.iterdir():
        fsync(file)
    fsync(directory)
