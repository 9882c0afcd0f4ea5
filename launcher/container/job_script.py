"""The script of a job that runs a benchmark's script in a container, rendered from the plan.

It is sound by itself: the container's exit code is the job's, it ends with 143, 130 or 129 after TERM, INT or HUP, and
whatever its end it ends its own container and removes its own copies, and nothing of others. `job_functions` has the
functions that it is made of.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.container.engines import IMAGE, EngineCommands, Lines, commands
from launcher.container.job_functions import functions
from launcher.container.planned import ContainerJob, PlannedStaging
from launcher.core.errors import ImageError
from launcher.core.process import CommandRunner
from launcher.core.shell_words import command_lines, quote_glob, quote_number, quote_word, variable_name
from launcher.image.reference import PlannedImage
from launcher.plan import preflight
from launcher.plan.plan import Plan

BACK = "back.tar.gz"
"""What a job on a copy of the checkout brings back, in its own directory."""

CHECKOUT = "checkout.tar.gz"
"""The checkout, beside the script, for a job that runs on a copy."""

_GRACE, _GRACE_HERE = 10, 2
"""Seconds that the container's client is waited for after TERM: on a node of Slurm; and on this host, where the
embedded scheduler gives a job 5 in all."""

PATIENCE = 120
"""Seconds in which the memory of the GPUs has to become free: that of an earlier job takes a while."""

SLACK = 600
"""Seconds that a job of an import by hand may wait for its node, beside those of lock and import."""

_DIRECTORIES = ("_PATH", "_DIR", "_HOME", "TMPDIR")
"""Names of variables of enroot that hold a directory end so."""


def render(plan: Plan, root: Path) -> str:
    """The script. ``root`` is the run's own directory, in which each job has one by its id. Raises ConfigError."""
    job = ContainerJob.of(plan)
    staging = job.staging
    engine = commands(job, plan.run_key, staging.to if staging is not None else job.workspace_of(plan))
    head = [
        "#!/usr/bin/env bash",
        f"# Run {_comment(plan.run_key)} on {_comment(plan.runner)}: {_comment(job.script.path)} in a container "
        f"({job.container.engine}). Written by the launcher.",
        "set -u -o pipefail",
        f"own={quote_word(f'{root}/$JOB')}",
        f"grace={_GRACE if job.allocation is not None else _GRACE_HERE}",
        f"engine={engine.pulls or ''}",
        "copied=",
        *(
            [f"copy={quote_word(staging.to)}", f"archive={quote_word(f'{root}/{CHECKOUT}')}"]
            if staging is not None
            else []
        ),
    ]
    parts = [
        "\n".join(head),
        functions("common"),
        *([_list_back(staging), functions("stage")] if staging is not None else []),
        _function("own_containers", engine.own),
        _function("take_away", engine.after),
        functions("end"),
        'mkdir -p -- "$own" || exit 5\nsay "job $SLURM_JOB_ID on $(uname -n)"',
        *_looks(plan, job, root),
        *_image(plan, job, engine),
        *(["stage_in"] if staging is not None else []),
        *_cache(plan),
        *_exports(job),
        *_carry(engine),
        *(
            [f"{_step(engine.before)} ||\n  fail 3 'the container cannot be made of the image'"]
            if engine.before
            else []
        ),
        f"say {quote_word(f'{job.script.path} begins')}",
        # The last command: with its exit code the script ends.
        _step(engine.run).replace(quote_word(IMAGE), '"$image"'),
    ]
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    """Text of a comment: one line of it."""
    return " ".join(text.split())


def _step(lines: Lines) -> str:
    return f"run_step \\\n  {command_lines(lines)}"


def _function(name: str, lines: Lines) -> str:
    """A function of one command, which does nothing where there is none."""
    return f"{name}() {{ {command_lines(lines, '    ') or ':'}; }}"


def _looks(plan: Plan, job: ContainerJob, root: Path) -> list[str]:
    """The look from this node, also at a checkpoint that the login node has looked at: the job reads it from here."""
    allocation, cache = job.allocation, plan.model.cache
    gpus = allocation.gpus if allocation is not None else plan.benchmark.gpus
    alone = allocation is None or allocation.exclusive
    looks = [
        *preflight.node_checks(
            gpus, alone=alone, patience=PATIENCE, directories=["/tmp", *([cache.host] if cache else [])]
        ),
        *preflight.image_checks(plan),
    ]
    functions_of_it = [preflight.shell_functions().strip()]
    looks += preflight.model_checks(plan.model)
    if "login" not in plan.model.seen_by and preflight.model_checks(plan.model):
        # What takes more than a look at config.json the launcher judges (`launcher.container.checkpoint`).
        looks.append(f"keep_checkpoint {'headers' if 'weights' in plan.model.fingerprint else 'configs'}")
        functions_of_it.append(functions("keep"))
    if allocation is not None:
        looks = preflight.with_login_checks('"$own"', looks, local=plan.locks_are_local(str(root)))
    return [*functions_of_it, "\n".join(looks)]


def _image(plan: Plan, job: ContainerJob, engine: EngineCommands) -> list[str]:
    """The image: imported on this node where the node has its own directory, pulled where the engine keeps images."""
    if engine.pulls:
        reference = job.container.image.replace("#", "/")
        repository = reference.partition("@")[0]
        head, slash, name = repository.rpartition("/")
        repository = f"{head}{slash}{name.partition(':')[0]}"
        call = f"pull_image {quote_word(engine.pulls)} {quote_word(reference)} {quote_word(repository)}"
        return ["image=", functions("pull"), call]
    node_local = [image for image in plan.images if not image.shared and image.squash]
    return [functions("import"), functions("have"), *map(_import, node_local)] if node_local else []


def import_alone(image: PlannedImage) -> str:
    """A script that has an image on the node that it runs on, where the node has its own directory for it."""
    exports = [f"export {assignment}" for assignment in _assignments(image)]
    call = " ".join(["import_image", *map(quote_word, _import_arguments(image))])
    return "\n".join(["set -u -o pipefail", functions("import"), *exports, call]) + "\n"


def import_on_node(
    image: PlannedImage, node: str, options: Sequence[str], run: CommandRunner, environment: Mapping[str, str]
) -> str:
    """Have an image in a node's own directory, by a job there that asks for no GPU; what the job said.

    ``options`` are srun's. A whole image that is there is left alone. Raises ImageError.
    """
    argv = ["srun", f"--nodelist={node}", "--nodes=1", "--ntasks=1", "--gres=none", "--export=ALL", *options]
    limit = image.lock_wait + image.import_timeout + SLACK
    done = run([*argv, "bash", "-c", import_alone(image)], timeout=limit, env=environment)
    if not done.ok:
        said = done.tail(20, [line for line in (done.stdout + done.stderr).splitlines() if line.strip()])
        raise ImageError(
            f"{image.reference} was not imported on {node}: srun exited with {done.returncode}\n{said}",
            where=f"{node}:{image.squash}",
            hint="is the node up, and is its disk full? (sinfo -n NODE, df)",
        )
    return done.stdout.strip()


def _import_arguments(image: PlannedImage) -> list[str]:
    """The arguments of `import_image`; the last ones are directories that enroot needs.

    enroot's temporaries, which are larger than the image, lie where the runner file says, else beside the image.
    """
    digest = hashlib.sha256(image.squash.encode()).hexdigest()[:12]
    own, beside = f".launcher-import-{digest}", str(Path(image.squash).parent)
    temporary = image.environment.get("ENROOT_TEMP_PATH") or image.environment.get("TMPDIR") or beside
    directories = [value for name, value in image.environment.items() if name.endswith(_DIRECTORIES)]
    seconds = [str(image.lock_wait), str(image.import_timeout)]
    return [image.squash, image.uri, image.lock, *seconds, f"{beside}/{own}", f"{temporary}/{own}-temp", *directories]


def _import(image: PlannedImage) -> str:
    """The import of one image, where it is not there and whole already."""
    arguments = " \\\n  ".join(map(quote_word, _import_arguments(image)))
    environment = " ".join(_assignments(image))
    return f"image_environment=({environment})\nhave_image {quote_word(image.reference)} \\\n  {arguments}"


def _assignments(image: PlannedImage) -> list[str]:
    return [f"{variable_name(name)}={quote_word(value)}" for name, value in sorted(image.environment.items())]


def _carry(engine: EngineCommands) -> list[str]:
    """What the container's bash sets."""
    if not engine.carries:
        return []
    names = textwrap.wrap(" ".join(map(variable_name, engine.carries)), 100, break_long_words=False)
    return [functions("carry"), "carry \\\n  " + " \\\n  ".join(names)]


def _list_back(staging: PlannedStaging) -> str:
    """What is brought back, expanded where the script is then: in the copy."""
    return f"list_back() {{ back=({' '.join(quote_glob(f'./{glob}') for glob in staging.back)}); }}"


def _cache(plan: Plan) -> list[str]:
    """The Hugging Face cache, which has to be there to be mounted."""
    if plan.model.cache is None:
        return []
    host = quote_word(plan.model.cache.host)
    return [
        f"mkdir -p -- {host} || fail 5 {quote_word(f'the cache {plan.model.cache.host} cannot be made on the node')}"
    ]


def _exports(job: ContainerJob) -> list[str]:
    lines = [
        f"export {variable_name(name)}={quote_number(value) if name == 'PORT' else quote_word(value)}"
        for name, value in job.container.environment.items()
    ]
    return ["\n".join(lines)] if lines else []
