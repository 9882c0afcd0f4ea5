"""Renders the script of a job with one container per node: variables from the plan, then multinode_job.sh."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from launcher.container.engines import pyxis_options, repository_of
from launcher.container.job_functions import READ_CARRIED, SET_CARRIED, SET_CARRIED_AT_LOGIN
from launcher.container.job_functions import functions as common_functions
from launcher.container.planned import LABEL, MultinodeJob, NodeContainer
from launcher.core.errors import ConfigError
from launcher.core.shell_words import command_lines, quote_word, variable_name
from launcher.plan import preflight
from launcher.plan.plan import Plan

GRACE, GRACE_HERE = 10, 4
"""Seconds to wait for containers that are to end; and after a signal of the embedded scheduler, which kills a job after
5."""

PATIENCE = 120
"""Seconds to wait for free GPU memory if the lane sets no value."""


def render(plan: Plan, root: Path, workspace: str) -> str:
    """The script. ``root`` is the run's own directory, in which each job has one by its id; ``workspace`` is the
    directory that the job works in. Raises ConfigError."""
    job = MultinodeJob.of(plan)
    title = f"Run {plan.run_key} on {plan.runner}: {job.script.path} in a container on each of {job.job.nodes} nodes"
    head = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {directive}" for directive in job.submit.directives),
        f"# {' '.join(title.split())}. Written by the launcher.",
        "# shellcheck disable=SC2016,SC2034,SC2154,SC2317  # srun and traps call the functions",
        "set -u -o pipefail",
        *_assignments(plan, job, root, workspace),
    ]
    parts = [
        "\n".join(head),
        *map(common_functions, ("common", "carry", "pull")),
        preflight.shell_functions().strip(),
        "# Only the first node writes a fact.\n"
        'fact() { [ "${SLURM_PROCID:-0}" -ne 0 ] || printf \'%s=%s\\n\' "$1" "$2" >>"$own/facts.txt"; }',
        Path(__file__).with_name("multinode_job.sh").read_text().strip(),
        _node_checks(plan, job),
        *preflight.declare_local_locks(local=plan.locks_are_local(str(root))),
        _run_time_function(job),
        _settings_function(job),
        _step_function(job, workspace),
        'main "$@"',
    ]
    return "\n\n".join(parts) + "\n"


def _word(text: str, workspace: str) -> str:
    """A quoted word of the plan, with the job's workspace filled in."""
    return quote_word(text.replace("{workspace}", workspace))


def _assignments(plan: Plan, job: MultinodeJob, root: Path, workspace: str) -> list[str]:
    settings, first, files = job.job, job.job.containers[0], job.files
    docker = first.engine == "docker"

    def array(name: str, texts: Iterable[str]) -> str:
        return f"{name}=({' '.join(_word(text, workspace) for text in texts)})"

    reference = first.image if docker else ""
    runs = f"/workspace/{job.script.path}"
    if files.on_nodes is not None:  # not through a pipe, which processes left by the script would keep open
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
        f"grace_after_signal={GRACE if plan.scheduler.kind == 'slurm' else GRACE_HERE}",
        f"engine={first.engine}",
        f"nodes={settings.nodes}",
        f"coordinator={settings.coordinator}",
        f"drain={settings.drain}",
        f"program={quote_word(job.script.path)}",
        array("checks", settings.checks),
        f"rdma_check={quote_word(settings.rdma_check or '')}",
        f"host_libraries={'yes' if settings.host_libraries else ''}",
        f"label={LABEL}={quote_word(f'{plan.run_key}.$JOB')}",
        array("pulls", settings.pulls),
        array("beside", settings.beside),
        f"image_reference={quote_word(reference)}",
        f"repository={quote_word(repository_of(reference))}",
        array("mounts", first.volumes("{workspace}") if docker else ()),
        array("flags", first.options.flags),
        f"workdir={quote_word(first.workdir or '')}",
        array("names", _variable_names(job, first)),
        # This program runs in the container, where SLURM_JOB_ID is set.
        f"in_container={_single_quoted(runs)}",
        f"carried_reader={_single_quoted(READ_CARRIED)}",
        *(f"export {variable_name(name)}={_word(value, workspace)}" for name, value in _common_variables(job).items()),
    ]


def _single_quoted(text: str) -> str:
    """A bash program as one word, in which this bash expands nothing."""
    return "'" + text.replace("'", "'\\''") + "'"


def _variable_names(job: MultinodeJob, container: NodeContainer) -> list[str]:
    names = [*container.environment, *container.passes, *job.job.at_run_time, "SLURM_JOB_ID"]
    return list(dict.fromkeys(map(variable_name, names)))


def _common_variables(job: MultinodeJob) -> dict[str, str]:
    """The variables that have the same value in all containers."""
    first, *others = (container.environment for container in job.job.containers)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _node_checks(plan: Plan, job: MultinodeJob) -> str:
    gpus, patience = job.allocation.gpus, job.job.gpu_patience if "gpu-clean" in job.job.checks else PATIENCE
    checks = [
        *preflight.node_checks(gpus, alone=True, patience=patience, directories=["/tmp"]),
        *preflight.image_checks(plan),
        *(preflight.model_checks(plan.model) if "model" in job.job.checks else []),
    ]
    return "\n".join(["check_node_closely() {", *(f"  {line}" for line in checks or [":"]), "}"])


_RUN_TIME_VALUE = re.compile(r"rank|(?P<list>names|addresses)|(?P<of_rank>name|address) (?P<rank>\d{1,4})")


def _run_time_function(job: MultinodeJob) -> str:
    """The bash function that sets, for the container of a rank, variables that depend on the job's nodes."""
    lines = []
    for name, text in job.job.at_run_time.items():
        match = _RUN_TIME_VALUE.fullmatch(text)
        if match is None or int(match["rank"] or 0) >= job.job.nodes:
            raise ConfigError(f"at-run-time: {name} is {text!r}, which no node of this job has")
        if match["of_rank"]:
            value = f'"${{{"names_of_nodes" if match["of_rank"] == "name" else "addresses"}[{match["rank"]}]}}"'
        elif match["list"] is None:
            value = '"$1"'
        else:
            value = f'"$(join_by_commas "${{{"names_of_nodes" if match["list"] == "names" else "addresses"}[@]}}")"'
        lines += [f"  {variable_name(name)}={value}", f"  export {name}"]
    return "\n".join(["at_run_time() {", *(lines or ["  :"]), "}"])


def _settings_function(job: MultinodeJob) -> str:
    """The bash function that writes the file of settings, if the plan has one."""
    if job.files.settings_name is None:
        return "write_settings() { :; }"
    lines = [f"{variable_name(name)}={value}" for name, value in job.files.settings.items()]
    text = " ".join(map(quote_word, lines))
    return f"write_settings() {{\n  printf '%s\\n' {text} >\"$logs\"/{quote_word(job.files.settings_name)}\n}}"


def _step_function(job: MultinodeJob, workspace: str) -> str:
    """The bash function that runs the container of a rank in a step on its node; its process becomes srun."""
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
            if _common_variables(job).get(name) != value
        ]
        carry = " ".join(_variable_names(job, container))
        # With `entrypoint` pyxis's own settings decide, as with the bash launchers.
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
