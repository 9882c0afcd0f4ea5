"""Commands for maintainers of workflows: `launcher ci --check-environment` finds what a step lacks, `--print-workflow`
prints steps that call the launcher, `launcher shadow` compares a job's plan with the bash launcher of the checkout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO, cast

from launcher import __version__
from launcher.benchmark.environment import variable_errors
from launcher.cli.command import Command, Log
from launcher.cli.common import open_project
from launcher.cli.planning import PlanView, plan_lines, plan_view
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import GitHub
from launcher.core.lines import Terminal, count_of, wrap_words
from launcher.core.process import run
from launcher.core.redact import redact
from launcher.core.terminal import StandardOutput, print_line
from launcher.doctor import step
from launcher.plan.plan import SRTCTL
from launcher.plan.refusing import require_no_secrets
from launcher.rehearsal.shadow import NoNamespace, plan_differences, record_launcher
from launcher.services import stand_in_programs


def print_workflow(arguments: argparse.Namespace) -> int:
    """Print the workflow that calls this version, for a file below .github/workflows."""
    text = Path(__file__).with_name(f"workflow-{arguments.print_workflow}.yml").read_text(encoding="utf-8")
    sys.stdout.write(text.replace("{version}", __version__))
    return 0


def check_environment(arguments: argparse.Namespace) -> int:
    """Print everything that this step lacks; exit 2 when it lacks something. It starts no job, and leaves no file."""
    project = open_project(arguments, look=True)
    invalid_variables = list(variable_errors(os.environ))
    problems: list[LauncherError] = [*step.github_problems(os.environ, __version__), *invalid_variables]
    plan = None
    try:
        if runner := os.environ.get("RUNNER_NAME"):
            cluster = project.fleet.for_runner_name(runner).runner
            problems += step.host_problems(cluster.scheduler.kind, os.environ, project.state)
        if not invalid_variables:
            plan = project.plan_from_environment()
            require_no_secrets(plan)
            for finding in plan.errors:  # `launcher ci` refuses a plan with these
                if finding.rule not in arguments.accept:
                    text, hint = f"{finding.message} [{finding.rule}]", f"or --accept {finding.rule}"
                    problems.append(ConfigError(text, where=finding.where, hint=hint))
            problems += step.plan_problems(plan, os.environ, stand_in_programs(plan.tools))
    except ConfigError as error:
        problems.append(error)
    with GitHub(os.environ, cast(TextIO, StandardOutput())) as github:
        for problem in problems:
            print(f"lacks: {redact(str(problem), os.environ)}", file=sys.stderr)
            github.error(str(problem), title="launcher: environment")
    if problems:
        things = count_of(len(problems), "thing is", "things are")
        print(f"launcher: {things} missing or wrong; nothing was begun", file=sys.stderr)
        return ConfigError.exit_code
    assert plan is not None
    print_line(f"nothing is missing: {plan.benchmark.title} on {plan.runner}, by launcher {__version__}")
    return 0


@dataclass(frozen=True)
class Shadow:
    """A plan, and the ``differences`` of the bash launcher, which would start so many ``containers``; ``alone`` is why
    that launcher was not run."""

    plan: PlanView
    alone: str | None = None
    script: str = ""
    containers: int = 0
    differences: tuple[str, ...] = ()


def show(value: Shadow, terminal: Terminal) -> Iterator[str]:
    yield from plan_lines([value.plan], terminal.width)
    if value.alone is not None:
        yield from wrap_words(f"shadow: the plan alone: {value.alone}", terminal.width, "  ")
        return
    for line in value.differences:
        yield from wrap_words(f"shadow: differs: {line}", terminal.width, "  ")
    verdict = count_of(len(value.differences), "difference") if value.differences else "agree"
    yield f"shadow: {verdict}: {value.script} starts {count_of(value.containers, 'container')}"


@partial(Command, Shadow, show=show, exit_code=lambda value: int(bool(value.differences)))
def shadow(arguments: argparse.Namespace, log: Log) -> Shadow:
    """Plan from the environment, and run the bash launcher with stubs in place of the programs that it starts.

    Exit 0 when both agree or when the bash launcher was not run, 1 when they differ, 2 when the row cannot be planned.
    """
    project = open_project(arguments)
    plan = project.plan_from_environment()
    prefix = plan.runner_name.partition("_")[0]
    view = plan_view(plan, project.kind)
    if plan.kind == SRTCTL:
        return Shadow(view, "bash clones srt-slurm and has srtctl submit, which is compared by no stub")
    script = project.workspace / "runners" / f"launch_{prefix}.sh"
    try:
        bash = record_launcher(script, plan, project.environ, run)
    except NoNamespace as error:
        return Shadow(view, error.message)
    return Shadow(view, None, script.name, len(bash.containers), tuple(plan_differences(plan, bash, project.environ)))
