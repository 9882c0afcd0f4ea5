"""The script of a job of one container a node, rendered from the plan: the facts, then the functions of `job.sh`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from launcher.container.engines import pyxis_options
from launcher.container.job_functions import READ_CARRIED, SET_CARRIED, SET_CARRIED_AT_LOGIN
from launcher.container.job_functions import functions as functions_of_all
from launcher.container.planned import LABEL, MultinodeJob, NodeContainer
from launcher.core.errors import ConfigError
from launcher.core.shell_words import command_lines, quote_word, variable_name
from launcher.plan import preflight
from launcher.plan.plan import Plan

GRACE, GRACE_HERE = 10, 4
"""Seconds that containers are waited for after they were told to end; and after a signal of the embedded scheduler,
which gives a job 5 in all."""

PATIENCE = 120
"""Seconds in which the memory of GPUs has to become free where the lane does not say."""


@cache
def functions() -> str:
    """The script's functions."""
    return Path(__file__).with_name("multinode_job.sh").read_text()


def render(plan: Plan, root: Path, workspace: str) -> str:
    """The script. ``root`` is the run's own directory, in which each job has one by its id; ``workspace`` is the
    directory that the job works in. Raises ConfigError."""
    job = MultinodeJob.of(plan)
    parts = [
        "\n".join(
            [
                "#!/usr/bin/env bash",
                *(f"#SBATCH {directive}" for directive in job.submit.directives),
                f"# Run {plan.run_key} on {plan.runner}: {' '.join(job.script.path.split())} in a container on each of "
                f"{job.job.nodes} nodes. Written by the launcher.",
                "# shellcheck disable=SC2016,SC2034,SC2154,SC2317  # srun and traps call the functions",
                "set -u -o pipefail",
                *_facts(plan, job, root, workspace),
            ]
        ),
        *map(functions_of_all, ("common", "carry", "pull")),
        preflight.shell_functions().strip(),
        "# Several nodes write down the same.\n"
        'fact() { [ "${SLURM_PROCID:-0}" -ne 0 ] || printf \'%s=%s\\n\' "$1" "$2" >>"$own/facts.txt"; }',
        functions().strip(),
        _looks(plan, job),
        *preflight.declare_local_locks(local=plan.locks_are_local(str(root))),
        _at_run_time(job),
        _settings(job),
        _step(job, workspace),
        'main "$@"',
    ]
    return "\n\n".join(parts) + "\n"


def _word(text: str, workspace: str) -> str:
    """A word of the plan, with the directory that the job works in."""
    return quote_word(text.replace("{workspace}", workspace))


def _facts(plan: Plan, job: MultinodeJob, root: Path, workspace: str) -> list[str]:
    asked, first, files = job.job, job.job.containers[0], job.files
    docker = first.engine == "docker"

    def array(name: str, texts: Iterable[str]) -> str:
        return f"{name}=({' '.join(_word(text, workspace) for text in texts)})"

    reference = first.image if docker else ""
    head, slash, name = reference.partition("@")[0].rpartition("/")
    runs = f"/workspace/{job.script.path}"
    if files.on_nodes is not None:  # not through a pipe, which what the script leaves behind would keep open
        log = f"/run_logs/{files.on_nodes.rpartition('/')[2]}/server_$(hostname).log"
        runs = f"{runs} > >(tee {log.replace('$JOB', '$SLURM_JOB_ID')}) 2>&1; code=$?; sleep 1; exit $code"
    return [
        f"key={quote_word(plan.run_key)}",
        f"script={quote_word(str(root / 'job.sh'))}",
        f"own={quote_word(f'{root}/$JOB')}",
        f"workspace={quote_word(workspace)}",
        f"logs={quote_word(f'{workspace}/{files.directory}')}",
        f"node_logs={quote_word(files.on_nodes or '')}",
        f"grace={GRACE}",
        f"hurried={GRACE if plan.scheduler.kind == 'slurm' else GRACE_HERE}",
        f"engine={first.engine}",
        f"nodes={asked.nodes}",
        f"coordinator={asked.coordinator}",
        f"drain={asked.drain}",
        f"program={quote_word(job.script.path)}",
        array("checks", asked.checks),
        f"rdma_check={quote_word(asked.rdma_check or '')}",
        f"host_libraries={'yes' if asked.host_libraries else ''}",
        f"label={LABEL}={quote_word(f'{plan.run_key}.$JOB')}",
        array("pulls", asked.pulls),
        array("beside", asked.beside),
        f"reference_of_image={quote_word(reference)}",
        f"repository={quote_word(f'{head}{slash}{name.partition(chr(58))[0]}')}",
        array("mounts", first.volumes("{workspace}") if docker else ()),
        array("flags", first.options.flags),
        f"workdir={quote_word(first.workdir or '')}",
        array("names", _names(job, first)),
        # In the container: the id is a variable there.
        f"in_container={_single_quoted(runs)}",
        f"reads={_single_quoted(READ_CARRIED)}",
        *(f"export {variable_name(name)}={_word(value, workspace)}" for name, value in _common(job).items()),
    ]


def _single_quoted(text: str) -> str:
    """A bash program as one word: nothing of it is filled in here."""
    return "'" + text.replace("'", "'\\''") + "'"


def _names(job: MultinodeJob, container: NodeContainer) -> list[str]:
    names = [*container.environment, *container.passes, *job.job.at_run_time, "SLURM_JOB_ID"]
    return list(dict.fromkeys(map(variable_name, names)))


def _common(job: MultinodeJob) -> dict[str, str]:
    """The variables that all containers have alike."""
    first, *others = (container.environment for container in job.job.containers)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _looks(plan: Plan, job: MultinodeJob) -> str:
    gpus, patience = job.allocation.gpus, job.job.gpu_patience if "gpu-clean" in job.job.checks else PATIENCE
    lines = [
        *preflight.node_checks(gpus, alone=True, patience=patience, directories=["/tmp"]),
        *preflight.image_checks(plan),
        *(preflight.model_checks(plan.model) if "model" in job.job.checks else []),
    ]
    return "\n".join(["look_closely() {", *(f"  {line}" for line in lines or [":"]), "}"])


_WHAT = re.compile(r"(?P<what>rank|names|addresses)|(?P<of>name|address) (?P<rank>\d{1,4})")


def _at_run_time(job: MultinodeJob) -> str:
    """A function that sets, for the container of a rank, what only the job's nodes decide."""
    lines = []
    for name, text in job.job.at_run_time.items():
        found = _WHAT.fullmatch(text)
        if found is None or int(found["rank"] or 0) >= job.job.nodes:
            raise ConfigError(f"at-run-time: {name} is {text!r}, which no node of this job has")
        if found["of"]:
            value = f'"${{{"names_of_nodes" if found["of"] == "name" else "addresses"}[{found["rank"]}]}}"'
        elif found["what"] == "rank":
            value = '"$1"'
        else:
            value = f'"$(joined "${{{"names_of_nodes" if found["what"] == "names" else "addresses"}[@]}}")"'
        lines += [f"  {variable_name(name)}={value}", f"  export {name}"]
    return "\n".join(["at_run_time() {", *(lines or ["  :"]), "}"])


def _settings(job: MultinodeJob) -> str:
    """A function that writes the file of settings, where there is one."""
    if job.files.settings_name is None:
        return "write_settings() { :; }"
    lines = [f"{variable_name(name)}={value}" for name, value in job.files.settings.items()]
    text = " ".join(map(quote_word, lines))
    return f"write_settings() {{\n  printf '%s\\n' {text} >\"$logs\"/{quote_word(job.files.settings_name)}\n}}"


def _step(job: MultinodeJob, workspace: str) -> str:
    """A function that runs the container of a rank in a step on its node: the process becomes srun's."""
    on_node = [("exec", "srun", "--nodes=1", "--ntasks=1", "--export=ALL")]
    if job.job.containers[0].engine == "docker":
        words = command_lines([*on_node, ("--kill-on-bad-exit=0",)])
        body = [f'  {words} --nodelist="${{names_of_nodes[$1]}}" \\', '    bash "$script" node "$1" "${images[0]}"']
        return "\n".join(["step() {", *body, "}"])
    cases = []
    for rank, container in enumerate(job.job.containers):
        own = [
            f"      export {variable_name(name)}={_word(value, workspace)}"
            for name, value in container.environment.items()
            if _common(job).get(name) != value
        ]
        carry = " ".join(_names(job, container))
        # Where the lane leaves the entrypoint to pyxis's settings, as the bash launchers did, nothing is said of it.
        entrypoint = [] if container.options.entrypoint else [("--no-container-entrypoint",)]
        call = command_lines([*on_node, *pyxis_options(container, workspace), *entrypoint], "        ")
        runs = SET_CARRIED_AT_LOGIN if job.job.login_shell else SET_CARRIED
        role = container.role or "node"
        cases += [
            f"    {rank if container.role else '*'})",
            *own,
            f"      carry {carry}",
            f"      {call} \\",
            '        --nodelist="${names_of_nodes[$1]}" \\',
            f"        bash -c {_single_quoted(runs)} {quote_word(f'/workspace/{job.script.path}')} \\",
            f'        > >(tee "$own/logs/{role}_$1_${{names_of_nodes[$1]}}.log") 2>&1',
            "      ;;",
        ]
    return "\n".join(["step() {", "  case $1 in", *cases, "  esac", "}"])
