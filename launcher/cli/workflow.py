"""What a workflow's maintainer asks: `launcher ci --check-environment` and `--print-workflow`, before a launch step and
what such steps look like; `launcher shadow`, a job's plan beside what the checkout's bash launcher does.
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
from launcher.cli.planning import PlanView, plan_lines, view_of
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
    """Say everything that this step lacks; exit 2 when it lacks something. Nothing is held, and nothing is left."""
    project = open_project(arguments, look=True)
    variables = list(variable_errors(os.environ))
    wrong: list[LauncherError] = [*step.github_problems(os.environ, __version__), *variables]
    plan = None
    try:
        if runner := os.environ.get("RUNNER_NAME"):
            cluster = project.fleet.for_runner_name(runner).runner
            wrong += step.host_problems(cluster.scheduler.kind, os.environ, project.state)
        if not variables:
            plan = project.plan_from_environment()
            require_no_secrets(plan)
            for found in plan.errors:  # for which `launcher ci` would refuse it
                if found.rule not in arguments.accept:
                    text, hint = f"{found.message} [{found.rule}]", f"or --accept {found.rule}"
                    wrong.append(ConfigError(text, where=found.where, hint=hint))
            wrong += step.plan_problems(plan, os.environ, stand_in_programs(plan.tools))
    except ConfigError as refused:
        wrong.append(refused)
    with GitHub(os.environ, cast(TextIO, StandardOutput())) as github:
        for error in wrong:
            print(f"lacks: {redact(str(error), os.environ)}", file=sys.stderr)
            github.error(str(error), title="launcher: environment")
    if wrong:
        things = count_of(len(wrong), "thing is", "things are")
        print(f"launcher: {things} missing or wrong; nothing was begun", file=sys.stderr)
        return ConfigError.exit_code
    assert plan is not None
    print_line(f"nothing is missing: {plan.benchmark.title} on {plan.runner}, by launcher {__version__}")
    return 0


@dataclass(frozen=True)
class Shadow:
    """A plan, and in what the bash launcher differs from it; ``alone`` is why that was not run, ``containers`` how many
    it would start."""

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
    what = count_of(value.containers, "container")
    found = count_of(len(value.differences), "difference") if value.differences else "agree"
    yield f"shadow: {found}: {value.script} starts {what}"


@partial(Command, Shadow, show=show, exit_code=lambda value: int(bool(value.differences)))
def shadow(arguments: argparse.Namespace, log: Log) -> Shadow:
    """Plan from the environment, and run the bash launcher where it can do nothing.

    Exit 0 when they agree or when there is the plan alone, 1 when they differ, 2 when the row cannot be planned.
    """
    project = open_project(arguments)
    plan = project.plan_from_environment()
    prefix = plan.runner_name.partition("_")[0]
    view = view_of(plan, project.kind)
    if plan.kind == SRTCTL:
        return Shadow(view, "bash clones srt-slurm and has srtctl submit, which is compared by no stub")
    script = project.workspace / "runners" / f"launch_{prefix}.sh"
    try:
        bash = record_launcher(script, plan, project.environ, run)
    except NoNamespace as error:
        return Shadow(view, error.message)
    return Shadow(view, None, script.name, len(bash.containers), tuple(plan_differences(plan, bash, project.environ)))
