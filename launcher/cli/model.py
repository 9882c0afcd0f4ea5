"""`launcher model`: list and check checkpoints, stage and verify them, and remove leftovers of killed stagings."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launcher.cli.command import Command, Log, Removals, removals, show_removals
from launcher.cli.common import open_project
from launcher.cli.progress import show_progress
from launcher.core.errors import ConfigError, ModelError
from launcher.core.leftovers import Leftover
from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.core.stop import stop_on_signals
from launcher.model.checkpoint import examine
from launcher.model.destination import leftovers, remove_leftovers
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, Manifest
from launcher.model.nodes import NodeResult
from launcher.model.serving import matching_sibling, nearest_sibling, sibling_hint
from launcher.runner.file import RunnerFile, describe_when


@dataclass(frozen=True)
class Checkpoint:
    """The report on a checkpoint (`launcher.model.checkpoint.CheckpointReport`), the ``rule`` of the runner's table
    that names it, the ``manifest`` that a staging left, and a hint at the declared checkpoint (``suggestion``)."""

    report: dict[str, Any]
    rule: str = ""
    manifest: dict[str, Any] | None = None
    state: str = ""
    suggestion: str | None = None

    @property
    def good(self) -> bool:
        return bool(self.report["whole"]) and self.report["identity"] != "mismatch"


def show_list(value: Sequence[Checkpoint], terminal: Terminal) -> Iterator[str]:
    rows = []
    for checkpoint in value:
        report, manifest, origin = checkpoint.report, checkpoint.manifest, "-"
        if manifest:
            origin = manifest["source"] + (f"@{manifest['revision'][:12]}" if manifest["revision"] else "")
        size = f"{report['bytes'] / 1e9:.1f} GB" if report["bytes"] else "-"
        rows.append([report["path"], size, report["quantisation"], origin, checkpoint.rule, checkpoint.state])
    if not rows:
        yield "no checkpoint is there"
    else:
        yield from table(["checkpoint", "size", "stored as", "staged from", "for", ""], rows, terminal.width)


@partial(
    Command,
    list[Checkpoint],
    show=show_list,
    to_json=lambda value: [{**checkpoint.report, "manifest": checkpoint.manifest} for checkpoint in value],
    json_type=list[dict[str, Any]],
)
def listing(arguments: argparse.Namespace, log: Log) -> list[Checkpoint]:
    """List the checkpoints of a runner's table, or those in directories."""
    checkpoints = []
    for path, rule in _paths(arguments, below=True):
        report, manifest = examine(path, precision=None), None
        with contextlib.suppress(ModelError):
            manifest = Manifest.read(path)
        state = "whole" if report.whole else "staging" if STAGING_NAME.fullmatch(path.name) else report.problems[0]
        summary = manifest.summary() if manifest else None
        checkpoints.append(Checkpoint(report.as_dict(), rule, summary, state))
    return checkpoints


def show_checked(value: Sequence[Checkpoint], terminal: Terminal) -> Iterator[str]:
    if not value:
        yield Line("no checkpoint was looked at: none of this runner's table can be seen from here", "red")
    for checkpoint in value:
        first, *more = _texts(checkpoint)
        for line in wrap_words(first, terminal.width, "  "):
            yield Line(line, "" if checkpoint.good else "red")
        for text in more:
            yield from wrap_words(f"  {text}", terminal.width, "    ")


@partial(
    Command,
    list[Checkpoint],
    show=show_checked,
    exit_code=lambda value: 0 if value and all(checkpoint.good for checkpoint in value) else ModelError.exit_code,
    to_json=lambda value: [checkpoint.report for checkpoint in value],
    json_type=list[dict[str, Any]],
)
def check(arguments: argparse.Namespace, log: Log) -> list[Checkpoint]:
    """Check whether checkpoints are whole and the declared ones."""
    checkpoints = []
    for path, rule in _paths(arguments, below=False):
        report, suggestion = examine(path, precision=arguments.precision, mounted=()), None
        if not report.whole or report.identity == "mismatch":
            suggestion = _suggestion(report.path, arguments.precision)
        checkpoints.append(Checkpoint(report.as_dict(), rule, suggestion=suggestion))
    return checkpoints


@dataclass(frozen=True)
class Staged:
    """The outcome of a staging: a line for people, or the outcome on each node."""

    text: str = ""
    nodes: tuple[NodeResult, ...] = ()

    @property
    def bad(self) -> list[str]:
        return [result.node for result in self.nodes if not result.ok]


def show_staged(value: Staged, terminal: Terminal) -> Iterator[str]:
    if value.text:
        yield value.text
    rows = [[r.node, "ok" if r.ok else "failed", r.how, f"{r.seconds:.1f} s", r.error or ""] for r in value.nodes]
    if rows:
        yield from table(["node", "", "how", "took", "why"], rows, terminal.width)


@partial(
    Command,
    Staged,
    show=show_staged,
    stderr_lines=lambda value: [f"to go on without them: --exclude={','.join(value.bad)}"] if value.bad else [],
    exit_code=lambda value: ModelError.exit_code if value.bad else 0,
    to_json=lambda value: value.nodes or value,
    json_type=list[NodeResult] | Staged,
)
def stage(arguments: argparse.Namespace, log: Log) -> Staged:
    """Copy a checkpoint to a path, whole; or write the manifest of the one that lies there."""
    from launcher.model.nodes import path_on_this_node
    from launcher.model.source import source_of
    from launcher.model.stage import adopt, striping
    from launcher.model.stage import stage as stage_to

    if arguments.nodes or arguments.job or arguments.count or arguments.partition:
        return Staged(nodes=tuple(_stage_on_nodes(arguments, log)))
    destination = Path(path_on_this_node(arguments.destination))
    with stop_on_signals() as stop, show_progress(sys.stderr) as progress:
        if arguments.source is None:
            manifest = adopt(destination, progress=progress, stop=stop)
            size = f"{count_of(len(manifest.files), 'file')}, {manifest.bytes / 1e9:.1f} GB"
            return Staged(f"{destination}: {size}; manifest {MANIFEST_NAME}")
        outcome = stage_to(
            source_of(arguments.source, stop=stop),
            destination,
            workers=arguments.workers,
            progress=progress,
            log=log,
            stop=stop,
            set_layout=striping(_layouts(arguments, destination), log=log),
        )
    how = {"staged": "staged", "there": "is there already", "lost": "was staged by another process"}[outcome.how]
    size = f"{outcome.manifest.bytes / 1e9:.1f} GB in {outcome.seconds:.1f} s"
    rate = f", {outcome.copied / outcome.seconds / 1e9:.2f} GB/s" if outcome.copied else ""
    resumed = f", {outcome.resumed / 1e9:.1f} GB were there" if outcome.resumed else ""
    return Staged(f"{destination} {how}: {size}{rate}{resumed}")


def _layouts(arguments: argparse.Namespace, destination: Path) -> list[tuple[int, int, str]] | None:
    """The runner's Lustre layouts for the storage of a destination, None where it names none."""
    runner = open_project(arguments).fleet.get(arguments.runner) if arguments.runner else None
    storage = runner.storage_of(str(destination)) if runner else None
    if storage is None or storage.striping is None:
        return None
    return [(layout.at_least, layout.count, layout.size) for layout in storage.striping]


def _stage_on_nodes(arguments: argparse.Namespace, log: Log) -> Sequence[NodeResult]:
    from launcher.core.process import stoppable
    from launcher.model.nodes import Allocation, NodeTask, end_orphaned_jobs, stage_on_nodes
    from launcher.slurm.commands import SlurmCommands

    if arguments.source is None:
        raise ConfigError("staging on nodes needs a source", where="--from")
    if arguments.count and (arguments.nodes or arguments.job):
        raise ConfigError("expected either --count or the names of the nodes (--nodes, --job)", where="--count")
    names = ("job", "nodes", "partition", "account", "cpus", "minutes")
    allocation = Allocation(
        **{name: getattr(arguments, name) for name in names},
        exclude=tuple(name for name in arguments.exclude.split(",") if name),
        count=arguments.count or 0,
        python=arguments.python or sys.executable,
    )
    task = NodeTask(arguments.source, arguments.destination, arguments.workers)
    state = open_project(arguments).state
    with stop_on_signals() as stop:
        end_orphaned_jobs(state, SlurmCommands, log)
        run = stoppable(stop.requested)
        return stage_on_nodes(task, allocation, run=run, state=state, scheduler=SlurmCommands, log=log, stop=stop)


@dataclass(frozen=True)
class Compared:
    """A checkpoint compared with its manifest: ``how`` it was read, and a line for each file that differs."""

    path: str
    source: str
    files: int
    bytes: int
    how: str
    differences: tuple[str, ...]


def show_compared(value: Compared, terminal: Terminal) -> Iterator[str]:
    yield from value.differences
    if not value.differences:
        size = f"{count_of(value.files, 'file')}, {value.bytes / 1e9:.1f} GB"
        yield from wrap_words(f"{value.path}: {size} as staged from {value.source} ({value.how})", terminal.width, "  ")


def _difference_summary(value: Compared) -> list[str]:
    count = len(value.differences)
    return [f"launcher: model: {value.path}: {count} of {value.files} files differ from the manifest"] if count else []


@partial(
    Command,
    Compared,
    show=show_compared,
    stderr_lines=_difference_summary,
    exit_code=lambda value: ModelError.exit_code if value.differences else 0,
)
def verify(arguments: argparse.Namespace, log: Log) -> Compared:
    """Compare a checkpoint with its manifest; ``--deep`` reads every byte."""
    path = Path(arguments.path)
    manifest = Manifest.read(path)
    if manifest is None:
        hint = sibling_hint(nearest_sibling(path), f"`launcher model stage {path}` reads it and writes one")
        raise ModelError(f"there is no {MANIFEST_NAME}", where=str(path), hint=hint)
    if not arguments.deep:
        how, differences = "names and sizes", manifest.differences(path)
    else:
        with stop_on_signals() as stop, show_progress(sys.stderr, "verifying") as progress:
            progress.begin(len(manifest.files), manifest.bytes)
            advance = progress.advance
            differences = manifest.deep_differences(path, workers=arguments.workers, advance=advance, stop=stop)
        how = "every byte"
    return Compared(str(path), manifest.source, len(manifest.files), manifest.bytes, how, tuple(differences))


@partial(Command, Removals, show=show_removals)
def gc(arguments: argparse.Namespace, log: Log) -> Removals:
    """Find leftovers of killed stagings; with ``--apply`` remove them."""
    if not arguments.paths and not arguments.runner:
        raise ConfigError("which directories?", hint="name those that hold checkpoints, or --runner NAME")
    directories = {Path(path) for path in arguments.paths}
    if arguments.runner:
        project = open_project(arguments)
        table = {path.parent for path, _ in _table_paths(project.fleet.get(arguments.runner), project.state)}
        directories |= {directory for directory in table if os.access(directory, os.R_OK)}
    items: list[Leftover] = []
    for directory in sorted(directories):
        items += remove_leftovers(directory, log=log) if arguments.apply else leftovers(directory)
    return removals(items, applied=arguments.apply)


def _paths(arguments: argparse.Namespace, *, below: bool) -> Iterator[tuple[Path, str]]:
    """The selected checkpoints, each with a note on its rule: the paths of the command line (with ``below`` also the
    checkpoints in such a directory), and all of a runner's table."""
    for path in map(Path, arguments.paths):
        entries = [path]
        if below and not os.path.lexists(path / "config.json"):
            with contextlib.suppress(OSError):  # what cannot be listed is examined itself
                entries = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != "."]
        yield from ((entry, "") for entry in sorted(entries))
    if arguments.runner:
        project = open_project(arguments)
        yield from _table_paths(project.fleet.get(arguments.runner), project.state)
    elif not arguments.paths:
        raise ConfigError("which checkpoints?", hint="PATH …, or --runner NAME for those of a runner's table")


def _table_paths(file: RunnerFile, state: Path) -> Iterator[tuple[Path, str]]:
    """The checkpoints of a runner's table, each with a note on its rule; for a path with `{model}` all that exist."""
    seen: set[str] = set()
    for rule in file.runner.models:
        for path in [rule.path] if isinstance(rule.path, str) else rule.path:
            escaped = path.replace("{state}", glob.escape(str(state)))
            pattern = re.sub(r"\{[^{}]*\}", "*", escaped)
            if path.startswith("hf:") or pattern in seen:
                continue
            seen.add(pattern)
            storage = file.storage_of(path)
            hidden = storage is not None and "login" not in storage.seen_by
            note = describe_when(rule.when) + (", seen by compute nodes only" if hidden else "")
            paths = [Path(path.replace("{state}", str(state)))]
            if pattern != escaped:
                paths = sorted(match for match in Path("/").glob(pattern.lstrip("/")) if match.is_dir())
            yield from ((match, note) for match in paths)


def _suggestion(path: Path, precision: str | None) -> str | None:
    """A hint at the directory beside ``path`` that is the declared checkpoint, or that has a similar name."""
    if match := matching_sibling(path, precision):
        return sibling_hint(match, "")
    if (near := nearest_sibling(path)) is None:
        return None
    report = examine(near, precision=precision)
    reason = report.problems[0] if report.problems else report.identity_reason
    return f"{near} has a similar name, but is not the declared one either: {reason}"


def _texts(checkpoint: Checkpoint) -> list[str]:
    """The verdict on a checkpoint in one text, and further texts with the reasons."""
    report = checkpoint.report
    parts = [f"whole, {report['shards']} shards, {report['bytes'] / 1e9:.1f} GB" if report["whole"] else "not whole"]
    parts += [report["quantisation"]] if report["quantisation"] != "not known" else []
    if report["whole"] or report["identity"] == "mismatch":
        verdicts = {"mismatch": "not the declared one: {}", "match": "the declared one"}
        unknown = "the declared one or not: not known ({})"
        parts.append(verdicts.get(report["identity"], unknown).format(report["identity_reason"]))
    parts += [f"agrees with {' and '.join(report['known_by'])}"] if report["known_by"] else []
    texts = [f"{report['path']}: {', '.join(parts)}  {checkpoint.rule}".rstrip(), *report["problems"]]
    texts += [f"doubt: {doubt}" for doubt in report["doubts"]]
    return [*texts, *([checkpoint.suggestion] if checkpoint.suggestion else [])]
