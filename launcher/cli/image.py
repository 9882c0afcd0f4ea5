"""`launcher image`: what lies in an image directory, and removing what nobody needs.

Also `launcher doctor locks`: whether the locks that importers take hold in such a directory.
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
from launcher.cli.importing import Where, where_of
from launcher.core.errors import ConfigError, ImageError
from launcher.core.lines import Line, Terminal, count_of, table, wrap_words
from launcher.image import inventory
from launcher.image.inventory import Image, ImageDirectory
from launcher.image.probe import LockProbe, describe_file_system, probe_nodes, probe_processes
from launcher.image.reference import Reference
from launcher.plan import derive
from launcher.run.image_usage import images_in_use, is_run_over


def _contents(where: Where, grace: float = inventory.GRACE) -> list[ImageDirectory]:
    users = images_in_use(where.project.runs, where.directories)
    return [ImageDirectory(path, users, is_run_over, grace) for path in where.directories]


def _images(where: Where) -> list[Image]:
    return [image for directory in _contents(where) for image in directory.images()]


@dataclass(frozen=True)
class ImageLine:
    """An image: ``bytes``, ``problem`` (why it is not whole), what its record says (``how`` it got there), ``last_use``
    in seconds since the epoch by the file server's clock, and the runs that have it."""

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
        for image in _images(where_of(arguments))
    ]


@dataclass(frozen=True)
class Verified:
    """What a look at an image gave, and in lines what was seen."""

    squash: str
    verdict: str
    said: tuple[str, ...]


def show_verified(value: Verified, terminal: Terminal) -> Iterator[str]:
    yield Line(f"{Path(value.squash).name}: {value.verdict}", "red" if value.verdict == "damaged" else "")
    for line in value.said:
        yield from wrap_words(f"  {line}", terminal.width, "    ")


@partial(Command, Verified, show=show_verified)
def verify(arguments: argparse.Namespace, log: Log) -> Iterator[Verified]:
    """Check images, one after the other; raises ImageError at the end when one of them is damaged."""
    where = where_of(arguments)
    names = {Path(name).name for name in arguments.images}
    found = [image for image in _images(where) if not names or image.squash.name in names]
    if missing := names - {image.squash.name for image in found}:
        raise ConfigError(f"no such image: {', '.join(sorted(missing))}", where=", ".join(map(str, where.directories)))
    damaged = []
    for image in found:
        verdict, said = inventory.verify(image, deep=arguments.deep)
        tag = [] if arguments.offline else _tag(image, where)
        yield Verified(str(image.squash), verdict, (*said, *tag))
        if verdict == "damaged":
            damaged.append(image.squash.name)
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(found)} are not whole: {', '.join(damaged)}",
            hint="an import replaces what shows in superblock or lists; remove others when no job maps them",
        )


def _tag(image: Image, where: Where) -> list[str]:
    """What the image's tag names now, by its registry, if that may be asked."""
    from launcher.image.registry import Registry

    note = image.sidecar
    if note is None or not where.policy.may_query_registry(note.uri):
        return []
    reference, environment = Reference.parse(note.uri), {**os.environ, **where.rule.environment}
    if reference.digest:
        return ["tag: none, a digest"]
    registry = Registry(reference, environment, note.architecture or where.architecture)
    fact, _ = registry.check_tag(image.squash, note)
    return [f"tag: {fact or f'names {note.digest} still'}"]


@partial(Command, Message, show=show_message)
def adopt(arguments: argparse.Namespace, log: Log) -> Message:
    """Record what a file is."""
    squash = Path(arguments.image).resolve()
    note = inventory.adopt(squash, arguments.reference, Reference.parse(arguments.reference).uri)
    return Message(f"{squash}: {note.reference}, {note.size / 1e6:.1f} MB, {note.hash}")


@partial(Command, Removals, show=show_removals)
def gc(arguments: argparse.Namespace, log: Log) -> Removals:
    """Find what nobody needs, and with --apply remove it."""
    where = where_of(arguments)
    contents = _contents(where, arguments.grace * 86400)
    gone = [(item, directory) for directory in contents for item in directory.garbage()]
    temporary = Path(derive.fill_path(where.rule.temporary or tempfile.gettempdir(), where.project.context("image")))
    if os.access(temporary, os.R_OK):
        directory = ImageDirectory(temporary)
        gone += [(item, directory) for item in directory.dead_temporaries()]
    found = [replace(item, keep=directory.remove(item)) if arguments.apply else item for item, directory in gone]
    note = () if arguments.apply or not gone else ("Runs of bash launchers are not known here.",)
    return removals(found, applied=arguments.apply, notes=note)


@dataclass(frozen=True)
class Locks:
    """How locks of a directory hold, between processes and between nodes; what could not be tried (``notes``)."""

    directory: str
    file_system: str
    notes: tuple[str, ...]
    probes: tuple[LockProbe, ...]


def show_locks(value: Locks, terminal: Terminal) -> Iterator[str]:
    yield f"{value.directory}: {value.file_system}"
    for probed in value.probes:
        beat = "never" if probed.heartbeat is None else f"after {probed.heartbeat:g} s"
        twice = "may be done twice at once; what is published is whole all the same"
        yield f"{probed.where}: imports {'are done one at a time' if probed.one_at_a_time else twice}"
        yield f"  flock {probed.flock}; lockf {probed.lockf}; owner file {probed.owner_file}"
        yield f"  heartbeat seen: {beat}; clocks differ by {probed.clocks:g} s"
    yield from value.notes


@partial(Command, Locks, show=show_locks)
def locks(arguments: argparse.Namespace, log: Log) -> Locks:
    """What was found between two processes of this host, and between two nodes where there is Slurm."""
    directory = Path(arguments.directory).resolve()
    found, said = [probe_processes(directory)], []
    options = [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]
    try:
        found += [] if arguments.no_nodes else [probe_nodes(directory, options)]
    except ImageError as error:
        said.append(f"between nodes: {error.message}")
    return Locks(str(directory), describe_file_system(directory), tuple(said), tuple(found))
