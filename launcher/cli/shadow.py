"""`launcher shadow`: what this launcher would do for a GitHub job, beside what the checkout's bash launcher does.

Exit 0 when they agree or when there is the plan alone, 1 when they differ, 2 when the row cannot be planned.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.cli.command import Command, Tell
from launcher.cli.common import open_project
from launcher.cli.plans import PlanView, plan_lines, view_of
from launcher.core.lines import Terminal, folded
from launcher.core.process import run
from launcher.plan.plan import SRTCTL
from launcher.rehearsal.shadow import NoNamespace, differences, record


@dataclass(frozen=True)
class Shadow:
    """A plan, and in what the bash launcher differs from it; ``alone`` is why that was not run, ``containers`` how many
    it would start."""

    plan: PlanView
    alone: str | None = None
    script: str = ""
    containers: int = 0
    differences: tuple[str, ...] = ()


def compared(arguments: argparse.Namespace, tell: Tell) -> Shadow:
    """Plan from the environment, and run the bash launcher where it can do nothing."""
    project = open_project(arguments)
    plan = project.plan_from_environment()
    prefix = plan.runner_name.partition("_")[0]
    view = view_of(plan, project.kind)
    if plan.kind == SRTCTL:
        return Shadow(view, "bash clones srt-slurm and has srtctl submit, which is compared by no stub")
    script = project.workspace / "runners" / f"launch_{prefix}.sh"
    try:
        bash = record(script, plan, project.environ, run)
    except NoNamespace as error:
        return Shadow(view, error.message)
    return Shadow(view, None, script.name, len(bash.containers), tuple(differences(plan, bash, project.environ)))


def show(value: Shadow, terminal: Terminal) -> Iterator[str]:
    yield from plan_lines([value.plan], terminal.width)
    if value.alone is not None:
        yield from folded(f"shadow: the plan alone: {value.alone}", terminal.width, "  ")
        return
    for line in value.differences:
        yield from folded(f"shadow: differs: {line}", terminal.width, "  ")
    what = f"{value.containers} containers" if value.containers != 1 else "one container"
    found = f"{len(value.differences)} differences" if value.differences else "agree"
    yield f"shadow: {found}: {value.script} starts {what}"


shadow = Command(Shadow, compared, show, code=lambda value: int(bool(value.differences)))
