"""`launcher runner new` drafts a runner file from a live cluster; `launcher runner doctor` compares one with it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launcher.check.report import Roots
from launcher.cli.command import Command, Log
from launcher.cli.common import open_project
from launcher.core.errors import ConfigError, ErrorInfo
from launcher.core.lines import Line, Terminal, wrap_words
from launcher.core.process import CommandRunner
from launcher.core.publish import publish_new, temporary_name
from launcher.core.yaml_source import Document
from launcher.doctor import queries
from launcher.doctor.comparison import Claim, Fill, compare, notes
from launcher.doctor.draft import draft, todos
from launcher.doctor.facts import NO_SLURM, ClusterFacts, SlurmFacts, Unknown
from launcher.doctor.programs import clean_runner
from launcher.plan import derive
from launcher.project import Project
from launcher.runner.file import RunnerFile
from launcher.services import stand_in_programs


@dataclass(frozen=True)
class ToDo:
    """A line of a draft that a person must complete, and ``what`` to do there."""

    line: int
    what: str


@dataclass(frozen=True)
class Draft:
    """A first runner file: the ``file`` that was written, or else its ``text``; and what is left to do."""

    name: str
    file: str | None
    text: str | None
    to_do: tuple[ToDo, ...]


def show_draft(value: Draft, terminal: Terminal) -> Iterator[str]:
    if value.text is not None:
        yield from (Line(line, raw=True) for line in value.text.splitlines())
        return
    yield f"{value.file} is written. To do:"
    for task in value.to_do:
        yield from wrap_words(f"  {Path(value.file or '').name}:{task.line}: {task.what}", terminal.width, "    ")
    yield f"Next: launcher runner doctor {value.name}"


@partial(Command, Draft, show=show_draft)
def new(arguments: argparse.Namespace, log: Log) -> Draft:
    """Write a first runner file from the facts of this cluster."""
    project = open_project(arguments)
    name = arguments.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        hint = "small letters, digits, . and -; RUNNER_NAME is read up to its first underscore"
        raise ConfigError(f"{name!r} cannot be a runner's name", where="NAME", hint=hint)
    target = _target(arguments, project)
    if target is not None and target.exists():
        raise ConfigError("exists; use --output to write another file", where=str(target), hint="--output - prints it")
    directory = arguments.directory
    if directory is not None and not directory.startswith("/"):
        raise ConfigError(f"{directory!r} is not absolute", where="--directory")
    run = clean_runner(project.environ)
    slurm = queries.slurm_facts(run)
    # sinfo shows the name of the default partition with an asterisk.
    partition = slurm.partition(arguments.partition and arguments.partition.removesuffix("*"))
    if isinstance(partition, Unknown):
        hint = "run it on the cluster's login node, as the user of its GitHub runners; is SLURM_CONF right?"
        raise ConfigError(partition.why, where="--partition", hint=partition.hint or hint)
    default = slurm.default_account if isinstance(slurm.default_account, str) else None
    account = arguments.account or default or (slurm.accounts[0] if len(slurm.accounts) == 1 else None)
    fill = partial(derive.fill_path, context=project.context("doctor"))
    # The hosts are probed for the directories of a first draft, which is made without them.
    unprobed = ClusterFacts(slurm, partition_name=partition.name)
    first = RunnerFile(Document(f"{name}.yaml", draft(name, account, directory, fill, unprobed)))
    text = draft(name, account, directory, fill, _cluster_facts(arguments, first, slurm, fill, run, log))
    if target is not None:
        _publish(target, text)
    to_do = tuple(ToDo(line, task) for line, task in todos(text))
    return Draft(name, str(target) if target else None, None if target else text, to_do)


def _target(arguments: argparse.Namespace, project: Project) -> Path | None:
    """The file to write; None for standard output."""
    if arguments.output == "-":
        return None
    if arguments.output:
        return Path(arguments.output)
    directory = project.runners or project.workspace / "runners"
    if not directory.is_dir():
        hint = "--runners DIR, or --output FILE"
        raise ConfigError("there is no directory of runner files here", where=str(directory), hint=hint)
    return directory / f"{arguments.name}.yaml"


def _publish(target: Path, text: str) -> None:
    temporary = temporary_name(target)
    try:
        temporary.write_text(text, encoding="utf-8")
        published = publish_new(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(target)) from None
    if not published:
        raise ConfigError("exists; use --output to write another file", where=str(target))


@dataclass(frozen=True)
class Doctor:
    """A runner file compared with its cluster: each claim of the file, the number of claims by verdict, and notes about
    the cluster."""

    runner: str
    file: str
    agree: int
    differ: int
    unknown: int
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    wrong: tuple[ErrorInfo, ...] = ()


def _counts(claims: int, agree: int, differ: int, unknown: int) -> str:
    return f"{claims} claims: {agree} agree, {differ} differ, {unknown} unknown"


_STYLES = {"differ": "red", "unknown": "yellow"}


def show_doctor(value: Doctor, terminal: Terminal) -> Iterator[str]:
    here = Roots([Path.cwd()])
    width = max((len(f"{claim.key} {claim.says}") for claim in value.claims), default=0)
    for claim in value.claims:
        path, _, line = claim.where.rpartition(":")
        setting, where = f"{claim.verdict:7}  {claim.key} {claim.says}", f"{here.short(path)}:{line}"
        both = f"{setting:{min(width, 45) + 9}}  {where}"
        fits = terminal.width is None or len(both) <= terminal.width
        for text in [both] if fits else [*wrap_words(setting, terminal.width, " " * 11), f"{'':11}{where}"]:
            yield Line(text, _STYLES.get(claim.verdict, ""))
        for name, text in (("found", claim.found), ("why", claim.why), ("fix", claim.hint)):
            if text and (claim.verdict != "agree" or name != "found"):
                yield from wrap_words(f"{'':11}{name}: {text}", terminal.width, " " * 13)
    for text in value.notes:
        yield from wrap_words(f"note     {text}", terminal.width, " " * 9)
    if not value.differ:
        yield _counts(len(value.claims), value.agree, value.differ, value.unknown)


@partial(Command, Doctor, show=show_doctor)
def doctor(arguments: argparse.Namespace, log: Log) -> Doctor:
    """Compare a runner file with its cluster."""
    project = open_project(arguments)
    file = project.fleet.get(arguments.name)
    fill = partial(derive.fill_path, context=project.context("doctor"))
    run = clean_runner(project.environ)
    slurm = queries.slurm_facts(run) if file.runner.scheduler.kind == "slurm" else NO_SLURM
    facts = _cluster_facts(arguments, file, slurm, fill, run, log)
    facts = queries.with_locks_and_refs(file, facts, fill, run)
    # Stand-ins are the launcher's own programs, which do not depend on the cluster.
    facts = replace(facts, stand_ins=stand_in_programs(file.runner.tools))
    if not facts.stand_ins:
        facts = queries.with_import(file, facts, fill, run, wait=arguments.timeout)
    claims = compare(file, facts, fill)
    agree, differ, unknown = (sum(c.verdict == v for c in claims) for v in ("agree", "differ", "unknown"))
    wrong: tuple[ErrorInfo, ...] = ()
    if differ:
        problem = f"the runner file does not match the cluster: {_counts(len(claims), agree, differ, unknown)}"
        error = ConfigError(problem, where=file.path, hint="each line that differs says how to fix it")
        wrong = (ErrorInfo.from_error(error),)
    return Doctor(file.runner.name, file.path, agree, differ, unknown, tuple(claims), tuple(notes(facts)), wrong)


def _cluster_facts(
    arguments: argparse.Namespace, file: RunnerFile, slurm: SlurmFacts, fill: Fill, run: CommandRunner, log: Log
) -> ClusterFacts:
    node, wait = not arguments.no_node, arguments.timeout
    return queries.cluster_facts(file, slurm, fill, run, node=node, wait=wait, log=log)
