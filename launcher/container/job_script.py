"""The script of a job that runs a benchmark's script in a container, rendered from the plan.

The script needs no launcher while it runs. Its exit code is the container's, or 143, 130, 129 after TERM, INT, HUP. At
its end it always ends its own container and removes its own copies, and nothing of others. Its functions are those of
`job_functions`.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.container.engines import IMAGE, CommandLines, EngineCommands, commands, repository_of
from launcher.container.job_functions import functions
from launcher.container.planned import ContainerJob
from launcher.core.errors import ImageError
from launcher.core.process import CommandRunner
from launcher.core.shell_words import command_lines, quote_glob, quote_number, quote_word, variable_name
from launcher.image.reference import PlannedImage
from launcher.plan import preflight
from launcher.plan.plan import Plan

BACK = "back.tar.gz"
"""The archive that a job on a copy of the checkout returns, in the job's own directory."""

CHECKOUT = "checkout.tar.gz"
"""The checkout, beside the script, for a job that runs on a copy."""

_GRACE, _GRACE_HERE = 10, 2
"""Seconds to wait for the container's client after TERM: on a node of Slurm; and on this host, where the embedded
scheduler kills a job after 5."""

PATIENCE = 120
"""Seconds to wait for free GPU memory, which an earlier job may release late."""

SLACK = 600
"""Seconds that the job of a manual import may wait for its node, beside those of lock and import."""

_DIRECTORY_ENDINGS = ("_PATH", "_DIR", "_HOME", "TMPDIR")
"""Endings of enroot's variables whose value is a directory."""


def render(plan: Plan, root: Path) -> str:
    """The script. ``root`` is the run's own directory, in which each job has one by its id. Raises ConfigError."""
    job = ContainerJob.of(plan)
    staging = job.staging
    engine = commands(job, plan.run_key, staging.to if staging is not None else job.workspace_of(plan))
    title = f"Run {plan.run_key} on {plan.runner}: {job.script.path} in a container ({job.container.engine})"
    head = [
        "#!/usr/bin/env bash",
        f"# {' '.join(title.split())}. Written by the launcher.",
        "set -u -o pipefail",
        f"own={quote_word(f'{root}/$JOB')}",
        f"grace={_GRACE if job.allocation is not None else _GRACE_HERE}",
        f"engine={engine.pulls or ''}",
        "copied=",
    ]
    if staging is not None:
        head += [f"copy={quote_word(staging.to)}", f"archive={quote_word(f'{root}/{CHECKOUT}')}"]
    parts = ["\n".join(head), functions("common")]
    if staging is not None:
        globs = " ".join(quote_glob(f"./{glob}") for glob in staging.back)  # expanded in the copy
        parts += [f"list_returned_files() {{ back=({globs}); }}", functions("stage")]
    parts += [
        _function("own_containers", engine.own),
        _function("remove_engine_container", engine.after),
        functions("end"),
        'mkdir -p -- "$own" || exit 5\nsay "job $SLURM_JOB_ID on $(uname -n)"',
        *_checks(plan, job, root),
        *_provide_image(plan, job, engine),
    ]
    if staging is not None:
        parts.append("unpack_checkout")
    if plan.model.cache is not None:  # it must exist to be mounted
        host = plan.model.cache.host
        message = quote_word(f"the cache {host} cannot be made on the node")
        parts.append(f"mkdir -p -- {quote_word(host)} || fail 5 {message}")
    exports = [
        f"export {variable_name(name)}={quote_number(value) if name == 'PORT' else quote_word(value)}"
        for name, value in job.container.environment.items()
    ]
    if exports:
        parts.append("\n".join(exports))
    if engine.carries:
        names = textwrap.wrap(" ".join(map(variable_name, engine.carries)), 100, break_long_words=False)
        parts += [functions("carry"), "carry \\\n  " + " \\\n  ".join(names)]
    if engine.before:
        parts.append(f"{_run_step(engine.before)} ||\n  fail 3 'the container cannot be made of the image'")
    parts += [
        f"say {quote_word(f'{job.script.path} begins')}",
        # The last command: its exit code is the script's.
        _run_step(engine.run).replace(quote_word(IMAGE), '"$image"'),
    ]
    return "\n\n".join(parts) + "\n"


def _run_step(lines: CommandLines) -> str:
    return f"run_step \\\n  {command_lines(lines)}"


def _function(name: str, lines: CommandLines) -> str:
    """A bash function of one command; it does nothing without a command."""
    return f"{name}() {{ {command_lines(lines, '    ') or ':'}; }}"


def _checks(plan: Plan, job: ContainerJob, root: Path) -> list[str]:
    """The checks on this node, also of a checkpoint that the login node has checked: the job reads it from here."""
    allocation, cache = job.allocation, plan.model.cache
    gpus = allocation.gpus if allocation is not None else plan.benchmark.gpus
    alone = allocation is None or allocation.exclusive
    checks = [
        *preflight.node_checks(
            gpus, alone=alone, patience=PATIENCE, directories=["/tmp", *([cache.host] if cache else [])]
        ),
        *preflight.image_checks(plan),
    ]
    needed_functions = [preflight.shell_functions().strip()]
    model_checks = preflight.model_checks(plan.model)
    checks += model_checks
    if "login" not in plan.model.seen_by and model_checks:
        # The launcher checks what needs more than config.json (`launcher.container.checkpoint`).
        checks.append(f"keep_checkpoint {'headers' if 'weights' in plan.model.fingerprint else 'configs'}")
        needed_functions.append(functions("keep"))
    if allocation is not None:
        checks = preflight.with_login_checks('"$own"', checks, local=plan.locks_are_local(str(root)))
    return [*needed_functions, "\n".join(checks)]


def _provide_image(plan: Plan, job: ContainerJob, engine: EngineCommands) -> list[str]:
    """The image: pulled by an engine that stores images, or imported on this node into the node's own directory."""
    if engine.pulls:
        reference = job.container.image.replace("#", "/")
        call = f"pull_image {quote_word(engine.pulls)} {quote_word(reference)} {quote_word(repository_of(reference))}"
        return ["image=", functions("pull"), call]
    node_local = [image for image in plan.images if not image.shared and image.squash]
    return [functions("import"), functions("have"), *map(_import, node_local)] if node_local else []


def import_alone(image: PlannedImage) -> str:
    """A script that imports an image into the own directory of the node that it runs on."""
    exports = [f"export {assignment}" for assignment in _assignments(image)]
    call = " ".join(["import_image", *map(quote_word, _import_arguments(image))])
    return "\n".join(["set -u -o pipefail", functions("import"), *exports, call]) + "\n"


def import_on_node(
    image: PlannedImage, node: str, options: Sequence[str], run: CommandRunner, environment: Mapping[str, str]
) -> str:
    """Import an image into a node's own directory, by a job there without GPUs; return the job's output.

    ``options`` are srun's. A complete image is left alone. Raises ImageError.
    """
    argv = ["srun", f"--nodelist={node}", "--nodes=1", "--ntasks=1", "--gres=none", "--export=ALL", *options]
    limit = image.lock_wait + image.import_timeout + SLACK
    done = run([*argv, "bash", "-c", import_alone(image)], timeout=limit, env=environment)
    if not done.ok:
        output = done.tail(20, [line for line in (done.stdout + done.stderr).splitlines() if line.strip()])
        raise ImageError(
            f"{image.reference} was not imported on {node}: srun exited with {done.returncode}\n{output}",
            where=f"{node}:{image.squash}",
            hint="is the node up, and is its disk full? (sinfo -n NODE, df)",
        )
    return done.stdout.strip()


def _import_arguments(image: PlannedImage) -> list[str]:
    """The arguments of `import_image`; the last ones are directories that enroot needs.

    enroot's temporary files, which are larger than the image, are where the runner file says, else beside the image.
    """
    name = f".launcher-import-{hashlib.sha256(image.squash.encode()).hexdigest()[:12]}"
    beside = str(Path(image.squash).parent)
    temporary = image.environment.get("ENROOT_TEMP_PATH") or image.environment.get("TMPDIR") or beside
    directories = [value for name, value in image.environment.items() if name.endswith(_DIRECTORY_ENDINGS)]
    seconds = [str(image.lock_wait), str(image.import_timeout)]
    return [image.squash, image.uri, image.lock, *seconds, f"{beside}/{name}", f"{temporary}/{name}-temp", *directories]


def _import(image: PlannedImage) -> str:
    """The import of one image, if the node does not have it complete."""
    arguments = " \\\n  ".join(map(quote_word, _import_arguments(image)))
    environment = f"image_environment=({' '.join(_assignments(image))})"
    return f"{environment}\nensure_image {quote_word(image.reference)} \\\n  {arguments}"


def _assignments(image: PlannedImage) -> list[str]:
    return [f"{variable_name(name)}={quote_word(value)}" for name, value in sorted(image.environment.items())]
