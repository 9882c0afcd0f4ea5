"""`launcher image`: list, verify and adopt the images of a directory, and remove unused ones.

Also `launcher doctor locks`, which tests the locks that importers take in such a directory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launcher.cli.command import Command, Log, Message, Removals, removals, show_message, show_removals
from launcher.cli.importing import ImageDirectories, selected_directories
from launcher.core.errors import ConfigError, ImageError
from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.image import inventory
from launcher.image.inventory import Image, ImageDirectory
from launcher.image.probe import LockProbe, describe_file_system, probe_nodes, probe_processes
from launcher.image.reference import Reference
from launcher.plan import derive
from launcher.run.image_usage import images_in_use, is_run_over


def _directories(selected: ImageDirectories, grace: float = inventory.GRACE) -> list[ImageDirectory]:
    users = images_in_use(selected.project.runs, selected.directories)
    return [ImageDirectory(path, users, is_run_over, grace) for path in selected.directories]


def _images(selected: ImageDirectories) -> list[Image]:
    return [image for directory in _directories(selected) for image in directory.images()]


@dataclass(frozen=True)
class ImageLine:
    """An image: its size in ``bytes``, why it is not whole (``problem``), fields of its record (``how`` it was made),
    ``last_use`` in seconds since the epoch by the file server's clock, and the unfinished runs that use it."""

    squash: str
    bytes: int
    problem: str | None
    reference: str | None
    digest: str | None
    hash: str | None
    how: str | None
    last_use: float
    live_runs: tuple[str, ...]


def show_images(value: Sequence[ImageLine], terminal: Terminal) -> Iterator[str]:
    rows = []
    for image in value:
        last_use = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.last_use))
        size, users = f"{image.bytes / 1e6:.1f}", " ".join(image.live_runs) or "-"
        digest, state = image.digest or "-", image.problem or image.how or "no record"
        rows.append([Path(image.squash).name, size, last_use, digest, users, state])
    if rows:
        yield from table(["image", "MB", "last use", "digest", "live runs", ""], rows, terminal.width)
    total = sum(image.bytes for image in value)
    damaged = sum(image.problem is not None for image in value)
    yield f"{count_of(len(value), 'image')}, {total / 1e9:.2f} GB, {damaged} not whole"


@partial(Command, list[ImageLine], show=show_images)
def list_images(arguments: argparse.Namespace, log: Log) -> list[ImageLine]:
    """All images of the directories."""
    names = ("reference", "digest", "hash", "how")
    return [
        ImageLine(
            squash=str(image.squash),
            bytes=image.size,
            problem=image.problem,
            **{name: getattr(image.sidecar, name, None) for name in names},
            last_use=image.used,
            live_runs=tuple(image.users),
        )
        for image in _images(selected_directories(arguments))
    ]


@dataclass(frozen=True)
class Verified:
    """The verdict on an image, and lines (``said``) about what was checked."""

    squash: str
    verdict: str
    said: tuple[str, ...]


def show_verified(value: Verified, terminal: Terminal) -> Iterator[str]:
    yield Line(f"{Path(value.squash).name}: {value.verdict}", "red" if value.verdict == "damaged" else "")
    for line in value.said:
        yield from wrap_words(f"  {line}", terminal.width, "    ")


@partial(Command, Verified, show=show_verified)
def verify(arguments: argparse.Namespace, log: Log) -> Iterator[Verified]:
    """Check images, one after the other. Raises ImageError at the end when one of them is damaged."""
    selected = selected_directories(arguments)
    names = {Path(name).name for name in arguments.images}
    images = [image for image in _images(selected) if not names or image.squash.name in names]
    if missing := names - {image.squash.name for image in images}:
        where = ", ".join(map(str, selected.directories))
        raise ConfigError(f"no such image: {', '.join(sorted(missing))}", where=where)
    damaged = []
    for image in images:
        verdict, lines = inventory.verify(image, deep=arguments.deep)
        tag = [] if arguments.offline else _tag_lines(image, selected)
        yield Verified(str(image.squash), verdict, (*lines, *tag))
        if verdict == "damaged":
            damaged.append(image.squash.name)
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(images)} are not whole: {', '.join(damaged)}",
            hint="an import replaces what shows in superblock or lists; remove others when no job maps them",
        )


def _tag_lines(image: Image, selected: ImageDirectories) -> list[str]:
    """Which image the tag names now, by its registry; no line where the registry may not be queried."""
    from launcher.image.registry import Registry

    record = image.sidecar
    if record is None or not selected.policy.may_query_registry(record.uri):
        return []
    reference, environment = Reference.parse(record.uri), {**os.environ, **selected.settings.environment}
    if reference.digest:
        return ["tag: none, a digest"]
    registry = Registry(reference, environment, record.architecture or selected.architecture)
    difference, _ = registry.check_tag(image.squash, record)
    return [f"tag: {difference or f'names {record.digest} still'}"]


@partial(Command, Message, show=show_message)
def adopt(arguments: argparse.Namespace, log: Log) -> Message:
    """Write the record of an image that was made without the launcher."""
    squash = Path(arguments.image).resolve()
    record = inventory.adopt(squash, arguments.reference, Reference.parse(arguments.reference).uri)
    return Message(f"{squash}: {record.reference}, {record.size / 1e6:.1f} MB, {record.hash}")


@partial(Command, Removals, show=show_removals)
def gc(arguments: argparse.Namespace, log: Log) -> Removals:
    """Find unused images and leftovers, and with --apply remove them."""
    selected = selected_directories(arguments)
    directories = _directories(selected, arguments.grace * 86400)
    garbage = [(item, directory) for directory in directories for item in directory.garbage()]
    template = selected.settings.temporary or tempfile.gettempdir()
    temporary = Path(derive.fill_path(template, selected.project.context("image")))
    if os.access(temporary, os.R_OK):
        directory = ImageDirectory(temporary)
        garbage += [(item, directory) for item in directory.dead_temporaries()]
    items = [replace(item, keep=directory.remove(item)) if arguments.apply else item for item, directory in garbage]
    note = () if arguments.apply or not garbage else ("Runs of bash launchers are not known here.",)
    return removals(items, applied=arguments.apply, notes=note)


@dataclass(frozen=True)
class Locks:
    """How locks of a directory hold, between processes and between nodes; ``notes`` says what could not be tried."""

    directory: str
    file_system: str
    notes: tuple[str, ...]
    probes: tuple[LockProbe, ...]


def show_locks(value: Locks, terminal: Terminal) -> Iterator[str]:
    yield f"{value.directory}: {value.file_system}"
    for probe in value.probes:
        heartbeat = "never" if probe.heartbeat is None else f"after {probe.heartbeat:g} s"
        twice = "may be done twice at once; what is published is whole all the same"
        yield f"{probe.where}: imports {'are done one at a time' if probe.one_at_a_time else twice}"
        yield f"  flock {probe.flock}; lockf {probe.lockf}; owner file {probe.owner_file}"
        yield f"  heartbeat seen: {heartbeat}; clocks differ by {probe.clocks:g} s"
    yield from value.notes


@partial(Command, Locks, show=show_locks)
def locks(arguments: argparse.Namespace, log: Log) -> Locks:
    """Test locks between two processes of this host, and between two nodes where there is Slurm."""
    directory = Path(arguments.directory).resolve()
    probes, notes = [probe_processes(directory)], []
    options = [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]
    try:
        probes += [] if arguments.no_nodes else [probe_nodes(directory, options)]
    except ImageError as error:
        notes.append(f"between nodes: {error.message}")
    return Locks(str(directory), describe_file_system(directory), tuple(notes), tuple(probes))
