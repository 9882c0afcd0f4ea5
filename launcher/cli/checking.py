"""`launcher check`: say what is wrong with rows, recipes and runner files, before a GPU is held."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path

from launcher.check import inputs, report
from launcher.check.inputs import CheckInput, Row
from launcher.check.report import RULES, Baseline, Roots, baseline_text, check_everything
from launcher.cli.command import Command, Log
from launcher.cli.common import open_project, require_rule, selected_benchmarks
from launcher.core import publish
from launcher.core.errors import ConfigError
from launcher.core.finding import Finding
from launcher.core.lines import Line, Terminal, count_of, wrap_words
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.srtctl.mirror import Commits


@dataclass(frozen=True)
class FindingLine:
    """A finding: its rule, how bad it is, what is wrong, ``file:line``, and of how many rows it is true."""

    rule: str
    severity: str
    message: str
    where: str
    rows: int = 0


@dataclass(frozen=True)
class Checked:
    """What was found, worst first; how many rows and files were looked at. ``output`` is it in another format, or a
    rule's page, in place of the findings; ``note`` what was done."""

    findings: tuple[FindingLine, ...] = ()
    rows: int = 0
    recipes: int = 0
    runners: int = 0
    every: bool = False
    """Whether a person asked for each finding."""
    output: str | None = None
    note: str = ""


def _check(arguments: argparse.Namespace) -> Checked:
    if arguments.explain is not None:
        return Checked(output=_explain(arguments.explain))
    wanted = {require_rule(rule, "--rule") for rule in arguments.rule}
    project = open_project(arguments)
    roots = Roots([*filter(None, (project.workspace, project.srt_slurm)), shipped("runners").parent, Path.cwd()])
    commits = functools.cache(lambda: Commits(project.caches))  # looked for once a row asks, and by no GitHub job
    given = dataclasses.replace(
        _gathered(arguments, project),
        today=datetime.now(timezone.utc).date(),
        has_commit=lambda repository, sha: None if arguments.from_env else commits()(repository, sha),
    )
    found = check_everything(given)
    if arguments.write_baseline:
        _write(arguments.write_baseline, [f for f in found if not wanted or f.rule in wanted], roots, given.today)
        note = f"{arguments.write_baseline}: accepts what is found today; give each entry its reason"
        return Checked(output="", note=note)
    if arguments.baseline:
        baseline = Baseline(Document.read(Path(arguments.baseline)))
        found = baseline.apply(found, roots, given.today, whole=given.whole)
    found = [one for one in found if not wanted or one.rule in wanted]
    output = None
    if arguments.format == "sarif":
        output = report.sarif_log(found, roots)
    elif arguments.format == "github":
        output = "\n".join(report.github_annotations(found, roots))
    return Checked(
        tuple(FindingLine(one.rule, one.severity, one.text, one.where, one.rows) for one in found),
        len(given.rows),
        len(given.recipes) + len(given.broken_recipes),
        len(given.files),
        bool(arguments.verbose or wanted),
        output,
    )


_SHOWN = {"error": 1000, "warning": 3, "note": 1}
"""Findings of one rule that are shown, where not all of them are asked for."""

_STYLES = {"error": "red", "warning": "yellow"}


def show(value: Checked, terminal: Terminal) -> Iterator[str]:
    """Findings by severity and rule, worst first. A rule that found one thing has one line, as in a list of all."""
    if value.output is not None:
        yield from (Line(line, raw=True, command=True) for line in value.output.splitlines())
        return
    short = Roots([Path.cwd()]).short if terminal.width is not None else str
    for (severity, rule), group in groupby(value.findings, key=lambda one: (one.severity, one.rule)):
        found = list(group)
        style = _STYLES.get(severity, "")
        if value.every or len(found) == 1:
            for one in found:
                text = f"{rule} {severity} {short(one.where)} {' '.join(one.message.split())}"
                yield from (Line(line, style) for line in wrap_words(text, terminal.width, "    "))
            continue
        head = wrap_words(f"{rule} {severity} ({len(found)}) {RULES[rule].title}", terminal.width, "    ")
        yield from (Line(line, style) for line in head)
        for one in found[: _SHOWN[severity]]:
            yield from wrap_words(f"  {short(one.where)} {' '.join(one.message.split())}", terminal.width, "    ")
        if (more := len(found) - _SHOWN[severity]) > 0:
            yield from wrap_words(
                f"  and {more} more: --verbose shows all, --rule {rule} these", terminal.width, "    "
            )


def aside(value: Checked) -> list[str]:
    if value.note or (value.output is not None and not value.findings and not value.rows):
        return [value.note] if value.note else []
    counts = {s: sum(one.severity == s for one in value.findings) for s in ("error", "warning", "note")}
    looked = {"row": value.rows, "recipe file": value.recipes, "runner file": value.runners}
    return [f"{_counted(looked)}: {_counted(counts)}"]


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(count_of(n, word) for word, n in numbers.items())


@partial(
    Command,
    Checked,
    show=show,
    stderr_lines=aside,
    exit_code=lambda value: int(any(one.severity == "error" for one in value.findings)),
    to_json=lambda value: value.findings,
    json_type=list[FindingLine],
)
def check(arguments: argparse.Namespace, log: Log) -> Checked:
    """What would fail or mismeasure."""
    # A quarter of the time would go into looking for garbage among documents that all stay until the end.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _check(arguments)
    finally:
        gc.freeze()  # nor does the end of the process look at them
        if collecting:
            gc.enable()


def _gathered(arguments: argparse.Namespace, project: Project) -> CheckInput:
    """What to look at: this job's benchmark, the selected rows, a runner with all its rows, or everything."""
    if arguments.from_env:
        plan = project.plan_from_environment()
        file = project.fleet.get(plan.runner)
        row = Row(plan.benchmark, plan.benchmark.source, file, plan)
        return CheckInput([row], files=[file], schemas=project.schemas, whole=False)
    names = ("key", "framework", "precision", "seq", "scenario", "conc", "topology", "evals", "recipe")
    if any(getattr(arguments, name) for name in names):
        broken: list[ConfigError] = []
        rows = selected_benchmarks(arguments, project, broken)
        given = inputs.gather_selected(project, rows, arguments.runner, bool(arguments.conc))
        return dataclasses.replace(given, broken_rows=broken)
    if arguments.runner:
        return inputs.gather_for_runner(project, arguments.runner, arguments.matrix)
    return inputs.gather_everything(project, arguments.matrix)


def _explain(rule: str) -> str:
    """A rule's page, or a line for each rule."""
    if rule:
        return (shipped("docs/rules") / f"{require_rule(rule, '--explain')}.md").read_text(encoding="utf-8")
    return "\n".join(f"{one.id} {one.severity} {one.title}" for one in sorted(RULES.values(), key=lambda one: one.id))


def _write(path: str, found: list[Finding], roots: Roots, today: date) -> None:
    try:
        publish.write_text(Path(path), baseline_text(found, roots, today))
    except OSError as error:
        raise ConfigError(f"the baseline cannot be written: {error.strerror}", where=path) from None
