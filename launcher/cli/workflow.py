"""`launcher ci --check-environment` and `--print-workflow`: before a launch step, and what such steps look like."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TextIO, cast

from launcher import __version__
from launcher.benchmark.environment import wrong_variables
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.github import GitHub
from launcher.core.redact import redact
from launcher.core.terminal import StandardOutput, say
from launcher.doctor import step
from launcher.plan.plan import Plan
from launcher.plan.secrets import refuse_secrets
from launcher.services import stand_in_programs


def workflow_text(name: str) -> str:
    """The workflow that calls this version: ``multi-node``, ``single-node``, ``profile``, ``speedbench``."""
    text = Path(__file__).with_name(f"workflow-{name}.yml").read_text(encoding="utf-8")
    return text.replace("{version}", __version__)


def print_workflow(arguments: argparse.Namespace) -> int:
    """Print a workflow, for a file below .github/workflows."""
    sys.stdout.write(workflow_text(arguments.print_workflow))
    return 0


def check_environment(arguments: argparse.Namespace) -> int:
    """Say everything that this step lacks; exit 2 when it lacks something. Nothing is held, and nothing is left."""
    project = open_project(arguments, look=True)
    variables = list(wrong_variables(os.environ))
    wrong: list[LauncherError] = [*step.of_github(os.environ, __version__), *variables]
    plan = None
    try:
        if runner := os.environ.get("RUNNER_NAME"):
            cluster = project.fleet.for_runner_name(runner).runner
            wrong += step.of_host(cluster.scheduler.kind, os.environ, project.state)
        if not variables:
            plan = project.plan_from_environment()
            refuse_secrets(plan)
            wrong += _findings(plan, arguments.accept)
            wrong += step.of_plan(plan, os.environ, stand_in_programs(plan.tools))
    except ConfigError as refused:
        wrong.append(refused)
    with GitHub(os.environ, cast(TextIO, StandardOutput())) as github:
        for error in wrong:
            print(f"lacks: {redact(str(error), os.environ)}", file=sys.stderr)
            github.error(str(error), title="launcher: environment")
    if wrong:
        print(f"launcher: {len(wrong)} things are missing or wrong; nothing was begun", file=sys.stderr)
        return ConfigError.exit_code
    assert plan is not None
    say(f"nothing is missing: {plan.benchmark.title} on {plan.runner}, by launcher {__version__}")
    return 0


def _findings(plan: Plan, accepted: Collection[str]) -> Iterator[ConfigError]:
    """The findings for which `launcher ci` would refuse the plan."""
    for found in plan.errors:
        if found.rule not in accepted:
            yield ConfigError(f"{found.message} [{found.rule}]", where=found.where, hint=f"or --accept {found.rule}")
