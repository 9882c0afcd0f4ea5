"""`launcher check`: find what is wrong with rows, recipes and runner files, before a job takes a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
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
from launcher.core.lines import Line, Terminal, count_of, wrap_words
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.project import Project
from launcher.srtctl.mirror import Commits


@dataclass(frozen=True)
class FindingLine:
    """A finding: its rule, severity and message, ``file:line``, and the number of rows that have it."""

    rule: str
    severity: str
    message: str
    where: str
    rows: int = 0


@dataclass(frozen=True)
class CheckAnswer:
    """The findings, worst first, and the numbers of rows and files that were checked. ``output`` takes the place of the
    findings: they in another format, or a page about a rule. ``note`` is a message about what was done."""

    findings: tuple[FindingLine, ...] = ()
    rows: int = 0
    recipes: int = 0
    runners: int = 0
    every: bool = False
    """Whether every finding was requested."""
    output: str | None = None
    note: str = ""


def _check(arguments: argparse.Namespace) -> CheckAnswer:
    if arguments.explain is not None:
        return CheckAnswer(output=_explain(arguments.explain))
    rules = {require_rule(rule, "--rule") for rule in arguments.rule}
    project = open_project(arguments)
    roots = Roots([*filter(None, (project.workspace, project.srt_slurm)), shipped("runners").parent, Path.cwd()])
    commits = functools.cache(lambda: Commits(project.caches))  # opened for the first row that needs it
    checked = dataclasses.replace(
        _gather(arguments, project),
        today=datetime.now(timezone.utc).date(),
        has_commit=lambda repository, sha: None if arguments.from_env else commits()(repository, sha),
    )
    findings = check_everything(checked)
    if arguments.write_baseline:
        accepted = [finding for finding in findings if not rules or finding.rule in rules]
        _write_baseline(arguments.write_baseline, baseline_text(accepted, roots, checked.today))
        note = f"{arguments.write_baseline}: accepts what is found today; give each entry its reason"
        return CheckAnswer(output="", note=note)
    if arguments.baseline:
        baseline = Baseline(Document.read(Path(arguments.baseline)))
        findings = baseline.apply(findings, roots, checked.today, whole=checked.whole)
    findings = [finding for finding in findings if not rules or finding.rule in rules]
    output = None
    if arguments.format == "sarif":
        output = report.sarif_log(findings, roots)
    elif arguments.format == "github":
        output = "\n".join(report.github_annotations(findings, roots))
    return CheckAnswer(
        tuple(FindingLine(f.rule, f.severity, f.text, f.where, f.rows) for f in findings),
        len(checked.rows),
        len(checked.recipes) + len(checked.broken_recipes),
        len(checked.files),
        bool(arguments.verbose or rules),
        output,
    )


_SHOWN = {"error": 1000, "warning": 3, "note": 1}
"""Findings of one rule that are shown, unless every finding is requested."""

_STYLES = {"error": "red", "warning": "yellow"}


def show(value: CheckAnswer, terminal: Terminal) -> Iterator[str]:
    """Findings by severity and rule, worst first. A rule with one finding has one line."""
    if value.output is not None:
        yield from (Line(line, raw=True, command=True) for line in value.output.splitlines())
        return
    short = Roots([Path.cwd()]).short if terminal.width is not None else str
    for (severity, rule), group in groupby(value.findings, key=lambda finding: (finding.severity, finding.rule)):
        findings, style = list(group), _STYLES.get(severity, "")
        texts = [f"{short(finding.where)} {' '.join(finding.message.split())}" for finding in findings]
        if value.every or len(findings) == 1:
            for text in texts:
                line = f"{rule} {severity} {text}"
                yield from (Line(part, style) for part in wrap_words(line, terminal.width, "    "))
            continue
        head = wrap_words(f"{rule} {severity} ({len(findings)}) {RULES[rule].title}", terminal.width, "    ")
        yield from (Line(line, style) for line in head)
        for text in texts[: _SHOWN[severity]]:
            yield from wrap_words(f"  {text}", terminal.width, "    ")
        if (more := len(findings) - _SHOWN[severity]) > 0:
            yield from wrap_words(
                f"  and {more} more: --verbose shows all, --rule {rule} these", terminal.width, "    "
            )


def stderr_lines(value: CheckAnswer) -> list[str]:
    if value.note or (value.output is not None and not value.findings and not value.rows):
        return [value.note] if value.note else []
    counts = {s: sum(finding.severity == s for finding in value.findings) for s in ("error", "warning", "note")}
    checked = {"row": value.rows, "recipe file": value.recipes, "runner file": value.runners}
    return [": ".join(", ".join(count_of(n, noun) for noun, n in numbers.items()) for numbers in (checked, counts))]


@partial(
    Command,
    CheckAnswer,
    show=show,
    stderr_lines=stderr_lines,
    exit_code=lambda value: int(any(finding.severity == "error" for finding in value.findings)),
    to_json=lambda value: value.findings,
    json_type=list[FindingLine],
)
def check(arguments: argparse.Namespace, log: Log) -> CheckAnswer:
    """Find what would fail or mismeasure."""
    # All documents live until the end, so garbage collection would find nothing, and take a quarter of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _check(arguments)
    finally:
        gc.freeze()  # also at the end of the process
        if collecting:
            gc.enable()


def _gather(arguments: argparse.Namespace, project: Project) -> CheckInput:
    """The input of the check: this job's benchmark, the selected rows, a runner with all its rows, or everything."""
    if arguments.from_env:
        plan = project.plan_from_environment()
        file = project.fleet.get(plan.runner)
        row = Row(plan.benchmark, plan.benchmark.source, file, plan)
        return CheckInput([row], files=[file], schemas=project.schemas, whole=False)
    names = ("key", "framework", "precision", "seq", "scenario", "conc", "topology", "evals", "recipe")
    if any(getattr(arguments, name) for name in names):
        broken: list[ConfigError] = []
        rows = selected_benchmarks(arguments, project, broken)
        selected = inputs.gather_selected(project, rows, arguments.runner, bool(arguments.conc))
        return dataclasses.replace(selected, broken_rows=broken)
    if arguments.runner:
        return inputs.gather_for_runner(project, arguments.runner, arguments.matrix)
    return inputs.gather_everything(project, arguments.matrix)


def _explain(rule: str) -> str:
    """A rule's page, or a line for each rule."""
    if rule:
        return (shipped("docs/rules") / f"{require_rule(rule, '--explain')}.md").read_text(encoding="utf-8")
    return "\n".join(f"{name} {RULES[name].severity} {RULES[name].title}" for name in sorted(RULES))


def _write_baseline(path: str, text: str) -> None:
    try:
        publish.write_text(Path(path), text)
    except OSError as error:
        raise ConfigError(f"the baseline cannot be written: {error.strerror}", where=path) from None
