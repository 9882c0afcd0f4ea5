"""`launcher ci`: the step of a GitHub workflow that runs what the environment of its job describes."""

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
from launcher.cli.planning import plan_lines, plan_view
from launcher.cli.running import drive, exit_code, print_run_starting
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
    """Run the benchmark of this GitHub job's environment; results go to the workspace, for the next steps."""
    project = open_project(arguments, look=True)
    arguments.annotated = True
    # GitHub reads both streams; with --json standard output has lines of JSON only.
    stream = unguarded(sys.stderr) if arguments.json else cast(TextIO, StandardOutput())
    with GitHub(os.environ, stream) as github:
        github.mask_secrets(os.environ)
        try:
            plan = project.plan_from_environment(arguments.run_id)
            if arguments.json:
                print_run_starting(plan)
            else:
                with github.group(f"Plan: {plan.benchmark.title} on {plan.runner}"):
                    print_lines(plan_lines([plan_view(plan, project.kind)], None), Terminal())
            _annotate_findings(github, plan, project)
            github.output("run-id", plan.run_key)
            _set_variables(github, plan)
            end_leftovers(project, plan, github, log_to_stderr if arguments.json else print_line)
            outcomes = drive(project, plan, arguments, github, orphans.github_job_identity(project.environ))
        except ConfigError as error:
            github.error(str(error), title="launcher: configuration")
            raise
        report_to_github(github, project.runs, outcomes)
    return exit_code(outcomes)


def _set_variables(github: GitHub, plan: Plan) -> None:
    """Set the run's id for the clean-up step, and the variables that name artifacts where the workflow has not."""
    github.variable(orphans.RUN_ID_VARIABLE, plan.run_key)
    variables = {"RESULT_FILENAME": plan.results.filename}
    if not plan.benchmark.multinode:
        variables["GPU_COUNT"] = str(plan.benchmark.gpus)
    for name, value in variables.items():
        if not os.environ.get(name):
            github.variable(name, value)


def _annotate_findings(github: GitHub, plan: Plan, project: Project) -> None:
    """Show the plan's findings as annotations, at their lines of the checkout."""
    for finding in plan.findings:
        annotate = github.error if finding.severity == "error" else github.warning
        inside = finding.line is not None and Path(finding.file).is_relative_to(project.workspace)
        file = str(Path(finding.file).relative_to(project.workspace)) if inside else None
        text = f"{finding.message} [{finding.rule}]" + ("" if inside else f" ({finding.where})")
        annotate(text, title=f"launcher: {finding.rule}", file=file, line=finding.line if inside else None)


def report_to_github(github: GitHub, runs: Path, outcomes: Sequence[Outcome]) -> None:
    """Report how runs ended: in the step's output, in an annotation for each that failed, and in the step summary."""
    for outcome in outcomes:
        github.output("state", outcome.state)
        if outcome.error is not None:
            github.error(f"{outcome.verdict}\n{outcome.error}", title=f"launcher: {outcome.error.layer}")
    from launcher.report.assemble import build_report
    from launcher.report.files import markdown
    from launcher.report.gather import gather

    try:
        gathered = gather([str(runs / outcome.run) for outcome in outcomes], runs.parent)
    except ConfigError as error:  # somebody removed a record, which does not make the results invalid
        github.warning(f"no step summary: {error}")
    else:
        title = ", ".join(outcome.run for outcome in outcomes)
        github.summary(markdown(build_report(gathered, title=title, made="")))
