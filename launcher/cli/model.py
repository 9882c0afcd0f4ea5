"""`launcher model`: look at checkpoints, stage and verify them, and remove what dead stagings left."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launcher.cli.common import open_project, tell
from launcher.cli.render import progress_shown, show_removals, table
from launcher.core.errors import ConfigError, ModelError
from launcher.core.leftovers import Leftover
from launcher.core.stop import stop_on_signals
from launcher.core.terminal import say
from launcher.model.checkpoint import CheckpointReport, examine
from launcher.model.destination import leftovers, remove_leftovers
from launcher.model.manifest import MANIFEST_NAME, STAGING_NAME, Manifest
from launcher.model.serving import nearest_sibling, right_sibling, suggestion
from launcher.runner.file import RunnerFile, describe_when


def listing(arguments: argparse.Namespace) -> int:
    """Checkpoints of a runner's table, or below directories."""
    found = [_row(path, note) for path, note in _paths(arguments, below=True)]
    if arguments.json:
        print(json.dumps([row[1] for row in found], indent=2))
    else:
        table(["checkpoint", "state", "size", "stored as", "staged from", ""], [row[0] for row in found])
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Whether checkpoints are whole and the declared ones; exit code 4 when one is not."""
    good, reports = True, []
    for path, note in _paths(arguments, below=False):
        report = examine(path, precision=arguments.precision, mounted=())
        reports.append(report.as_dict())
        good = good and report.whole and report.identity != "mismatch"
        if not arguments.json:
            _show(report, note, arguments.precision)
    if arguments.json:
        print(json.dumps(reports, indent=2))
    return 0 if good else ModelError.exit_code


def stage(arguments: argparse.Namespace) -> int:
    """Bring a checkpoint to a path, whole; or write the manifest of the one that is there."""
    from launcher.model.nodes import path_on_this_node
    from launcher.model.source import source_of
    from launcher.model.stage import adopt, striping
    from launcher.model.stage import stage as stage_to

    if arguments.nodes or arguments.job or arguments.count or arguments.partition:
        return _stage_on_nodes(arguments)
    destination = Path(path_on_this_node(arguments.destination))
    with stop_on_signals() as stop, progress_shown(sys.stderr) as progress:
        if arguments.source is None:
            manifest = adopt(destination, progress=progress, stop=stop)
            tell(f"{destination}: {len(manifest.files)} files, {manifest.bytes / 1e9:.1f} GB; manifest {MANIFEST_NAME}")
            return 0
        done = stage_to(
            source_of(arguments.source, stop=stop),
            destination,
            workers=arguments.workers,
            progress=progress,
            log=tell,
            stop=stop,
            lay_out=striping(_layouts(arguments, destination), log=tell),
        )
    how = {"staged": "staged", "there": "is there already", "lost": "was staged by another process"}[done.how]
    rate = f", {done.copied / done.seconds / 1e9:.2f} GB/s" if done.copied else ""
    resumed = f", {done.resumed / 1e9:.1f} GB were there" if done.resumed else ""
    tell(f"{destination} {how}: {done.manifest.bytes / 1e9:.1f} GB in {done.seconds:.1f} s{rate}{resumed}")
    return 0


def _layouts(arguments: argparse.Namespace, destination: Path) -> list[tuple[int, int, str]] | None:
    """The runner's layouts for the storage of a destination, if it names any."""
    runner = open_project(arguments).fleet.get(arguments.runner) if arguments.runner else None
    storage = runner.storage_of(str(destination)) if runner else None
    if storage is None or storage.striping is None:
        return None
    return [(layout.at_least, layout.count, layout.size) for layout in storage.striping]


def _stage_on_nodes(arguments: argparse.Namespace) -> int:
    from launcher.core.process import stoppable
    from launcher.model.node_job import reap, stage_on_nodes
    from launcher.model.nodes import Allocation, NodeTask
    from launcher.slurm.backends import open_scheduler

    if arguments.source is None:
        raise ConfigError("staging on nodes needs a source", where="--from")
    if arguments.count and (arguments.nodes or arguments.job):
        raise ConfigError("expected either --count or the names of the nodes (--nodes, --job)", where="--count")
    where = Allocation(
        arguments.job,
        arguments.nodes,
        arguments.partition,
        arguments.account,
        exclude=tuple(name for name in arguments.exclude.split(",") if name),
        count=arguments.count,
        cpus=arguments.cpus,
        minutes=arguments.minutes,
        python=arguments.python or sys.executable,
    )
    task = NodeTask(arguments.source, arguments.destination, arguments.workers)
    state = open_project(arguments).state
    scheduler = partial(open_scheduler, "slurm", backend="commands")
    with stop_on_signals() as stop:
        reap(state, scheduler, tell)
        run = stoppable(stop.requested)
        results = stage_on_nodes(task, where, run=run, state=state, scheduler=scheduler, log=tell, stop=stop)
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        rows = [[r.node, "ok" if r.ok else "failed", r.how, f"{r.seconds:.1f} s", r.error or ""] for r in results]
        table(["node", "", "how", "took", "why"], rows)
    if bad := [result.node for result in results if not result.ok]:
        tell(f"to go on without them: --exclude={','.join(bad)}")
        return ModelError.exit_code
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Compare a checkpoint with its manifest; ``--deep`` reads every byte."""
    path = Path(arguments.path)
    manifest = Manifest.read(path)
    if manifest is None:
        hint = suggestion(nearest_sibling(path), f"`launcher model stage {path}` reads it and writes one")
        raise ModelError(f"there is no {MANIFEST_NAME}", where=str(path), hint=hint)
    if not arguments.deep:
        found = manifest.differences(path)
    else:
        with stop_on_signals() as stop, progress_shown(sys.stderr, "verifying") as progress:
            progress.begin(len(manifest.files), manifest.bytes)
            found = manifest.deep_differences(path, workers=arguments.workers, advance=progress.advance, stop=stop)
    for line in found:
        say(line)
    if found:
        raise ModelError(f"{len(found)} of {len(manifest.files)} files differ from the manifest", where=str(path))
    how = "every byte" if arguments.deep else "names and sizes"
    print(
        f"{path}: {len(manifest.files)} files, {manifest.bytes / 1e9:.1f} GB as staged from {manifest.source} ({how})"
    )
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """Show what dead stagings left; with ``--apply`` remove it."""
    if not arguments.paths and not arguments.runner:
        raise ConfigError("which directories?", hint="name those that hold checkpoints, or --runner NAME")
    directories = {Path(path) for path in arguments.paths}
    if arguments.runner:
        of_table = {path.parent for path, _ in _paths_of_runner(open_project(arguments).fleet.get(arguments.runner))}
        directories |= {directory for directory in of_table if os.access(directory, os.R_OK)}
    found: list[Leftover] = []
    for directory in sorted(directories):
        found += remove_leftovers(directory, log=tell) if arguments.apply else leftovers(directory)
    show_removals(found, applied=arguments.apply)
    return 0


def _paths(arguments: argparse.Namespace, *, below: bool) -> Iterator[tuple[Path, str]]:
    """Paths to look at, each with a note on its rule: given ones (or, with ``below``, checkpoints in such a directory),
    and all of a runner's table."""
    for given in arguments.paths:
        path = Path(given)
        entries = [path]
        if below and not os.path.lexists(path / "config.json"):
            with contextlib.suppress(OSError):  # no directory, or a closed one: then it is itself looked at
                entries = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != "."]
        yield from ((entry, "") for entry in sorted(entries))
    if arguments.runner:
        yield from _paths_of_runner(open_project(arguments).fleet.get(arguments.runner))
    elif not arguments.paths:
        raise ConfigError("which checkpoints?", hint="PATH …, or --runner NAME for those of a runner's table")


def _paths_of_runner(file: RunnerFile) -> Iterator[tuple[Path, str]]:
    seen = set()
    for rule in file.runner.models:
        for path in [rule.path] if isinstance(rule.path, str) else rule.path:
            if "{" not in path and not path.startswith("hf:") and path not in seen:
                seen.add(path)
                storage = file.storage_of(path)
                hidden = storage is not None and "login" not in storage.seen_by
                yield Path(path), describe_when(rule.when) + (", seen by compute nodes only" if hidden else "")


def _row(path: Path, note: str) -> tuple[list[str], dict[str, object]]:
    report = examine(path, precision=None)
    manifest = None
    with contextlib.suppress(ModelError):
        manifest = Manifest.read(path)
    state = "whole" if report.whole else "staging" if STAGING_NAME.fullmatch(path.name) else report.problems[0]
    origin = f"{manifest.source}{'@' + manifest.revision[:12] if manifest.revision else ''}" if manifest else "-"
    size = f"{report.bytes / 1e9:.1f} GB" if report.bytes else "-"
    row = [str(path), state, size, report.quantisation, origin, note]
    return row, {**report.as_dict(), "manifest": manifest.summary() if manifest else None}


def _show(report: CheckpointReport, note: str, precision: str | None) -> None:
    parts = [f"whole, {report.shards} shards, {report.bytes / 1e9:.1f} GB" if report.whole else "not whole"]
    parts += [report.quantisation] if report.quantisation != "not known" else []
    if report.whole or report.identity == "mismatch":
        words = {"mismatch": "not the declared one: {}", "match": "the declared one"}
        unknown = "the declared one or not: not known ({})"
        parts.append(words.get(report.identity, unknown).format(report.identity_reason))
    parts += [f"agrees with {' and '.join(report.known_by)}"] if report.known_by else []
    say(f"{report.path}: {', '.join(parts)}  {note}".rstrip())
    for line in (*report.problems, *(f"doubt: {doubt}" for doubt in report.doubts)):
        say(f"  {line}")
    if report.whole and report.identity != "mismatch":
        return
    if right := right_sibling(report.path, precision):
        say(f"  {suggestion(right, '')}")
    elif near := nearest_sibling(report.path):
        other = examine(near, precision=precision)
        why = other.problems[0] if other.problems else other.identity_reason
        say(f"  {near} has a similar name, but is not the declared one either: {why}")
