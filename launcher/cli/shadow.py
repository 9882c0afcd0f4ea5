"""`launcher shadow`: what this launcher would do for a GitHub job, beside what the checkout's bash launcher does."""

from __future__ import annotations

import argparse

from launcher.cli.common import open_project
from launcher.cli.render import show_plans
from launcher.core.process import run
from launcher.plan.plan import SRTCTL
from launcher.rehearsal.shadow import NoNamespace, differences, record


def shadow(arguments: argparse.Namespace) -> int:
    """Plan from the environment, run the bash launcher where it can do nothing, and say where they differ.

    Exit 0 when they agree or when there is the plan alone, 1 when they differ, 2 when the row cannot be planned.
    """
    project = open_project(arguments)
    plan = project.plan_from_environment()
    prefix = plan.runner_name.partition("_")[0]
    show_plans([plan], project.kind)
    if plan.kind == SRTCTL:
        print("shadow: the plan alone: bash clones srt-slurm and has srtctl submit, which is compared by no stub")
        return 0
    script = project.workspace / "runners" / f"launch_{prefix}.sh"
    try:
        bash = record(script, plan, project.environ, run)
    except NoNamespace as error:
        print(f"shadow: the plan alone: {error.message}")
        return 0
    found = differences(plan, bash, project.environ)
    for line in found:
        print(f"shadow: differs: {line}")
    what = f"{len(bash.containers)} containers" if len(bash.containers) != 1 else "one container"
    print(f"shadow: {'agree' if not found else f'{len(found)} differences'}: {script.name} starts {what}")
    return 1 if found else 0
