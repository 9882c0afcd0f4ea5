"""`launcher ci`: a step of a workflow, for which its environment says everything, and GitHub shows what is printed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from launcher.cli.command import log_to_stderr
from launcher.cli.common import open_project
from launcher.cli.ending import end_leftovers
from launcher.cli.planning import plan_lines, view_of
from launcher.cli.running import drive, exit_code, print_planned
from launcher.cli.streaming import StreamingCommand
from launcher.core.errors import ConfigError
from launcher.core.github import GitHub
from launcher.core.lines import Terminal, print_lines
from launcher.core.terminal import StandardOutput, print_line, unguarded
from launcher.plan.plan import Plan
from launcher.project import Project
from launcher.run import orphans
from launcher.run.finish import Outcome


@StreamingCommand
def ci(arguments: argparse.Namespace) -> int:
    """Run what this GitHub job's environment asks for; results go where the workflow looks."""
    project = open_project(arguments, look=True)
    arguments.annotated = True
    # GitHub reads both streams; with --json one of them has lines of JSON alone.
    stream = unguarded(sys.stderr) if arguments.json else cast(TextIO, StandardOutput())
    with GitHub(os.environ, stream) as github:
        github.mask_secrets(os.environ)
        try:
            plan = project.plan_from_environment(arguments.run_id)
            if arguments.json:
                print_planned(plan)
            else:
                with github.group(f"Plan: {plan.benchmark.title} on {plan.runner}"):
                    print_lines(plan_lines([view_of(plan, project.kind)], None), Terminal())
            _announce(github, plan, project)
            github.output("run-id", plan.run_key)
            _for_later_steps(github, plan)
            end_leftovers(project, plan, github, log_to_stderr if arguments.json else print_line)
            outcomes = drive(project, plan, arguments, github, orphans.github_job_identity(project.environ))
        except ConfigError as error:
            github.error(str(error), title="launcher: configuration")
            raise
        report_to(github, project.runs, outcomes)
    return exit_code(outcomes)


def _for_later_steps(github: GitHub, plan: Plan) -> None:
    """Leave the run's id for the clean-up step, and what names artifacts where the workflow does not say it itself."""
    github.variable(orphans.RUN_ID_VARIABLE, plan.run_key)
    named = {"RESULT_FILENAME": plan.results.filename}
    if not plan.benchmark.multinode:
        named["GPU_COUNT"] = str(plan.benchmark.gpus)
    for name, value in named.items():
        if not os.environ.get(name):
            github.variable(name, value)


def _announce(github: GitHub, plan: Plan, project: Project) -> None:
    """The plan's findings as annotations at their lines of the checkout."""
    for finding in plan.findings:
        annotate = github.error if finding.severity == "error" else github.warning
        inside = finding.line is not None and Path(finding.file).is_relative_to(project.workspace)
        file = str(Path(finding.file).relative_to(project.workspace)) if inside else None
        text = f"{finding.message} [{finding.rule}]" + ("" if inside else f" ({finding.where})")
        annotate(text, title=f"launcher: {finding.rule}", file=file, line=finding.line if inside else None)


def report_to(github: GitHub, runs: Path, outcomes: Sequence[Outcome]) -> None:
    """How runs ended: the step's output, an annotation with the verdict of each that failed, and the report's Markdown
    in the step summary."""
    for outcome in outcomes:
        github.output("state", outcome.state)
        if outcome.error is not None:
            github.error(f"{outcome.verdict}\n{outcome.error}", title=f"launcher: {outcome.error.layer}")
    from launcher.report.assemble import build_report
    from launcher.report.files import markdown
    from launcher.report.gather import gather

    try:
        gathered = gather([str(runs / outcome.run) for outcome in outcomes], runs.parent)
    except ConfigError as error:  # somebody removed a record: what was measured stays good
        github.warning(f"no step summary: {error}")
    else:
        title = ", ".join(outcome.run for outcome in outcomes)
        github.summary(markdown(build_report(gathered, title=title, made="")))
