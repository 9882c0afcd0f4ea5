"""`launcher image`: what lies in an image directory, and removing what nobody needs.

Also `launcher doctor locks`: whether the locks that importers take hold in such a directory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from launcher.cli.importing import Where, where_of
from launcher.cli.render import show_removals, table
from launcher.core.errors import ConfigError, ImageError
from launcher.core.terminal import say
from launcher.image import inventory
from launcher.image.inventory import Image, ImageDirectory
from launcher.image.probe import between_nodes, between_processes, file_system
from launcher.image.reference import Reference
from launcher.plan import derive
from launcher.run.image_usage import images_in_use, is_run_over


def _contents(where: Where, grace: float = inventory.GRACE) -> list[ImageDirectory]:
    users = images_in_use(where.project.runs, where.directories)
    return [ImageDirectory(path, users, is_run_over, grace) for path in where.directories]


def _images(where: Where) -> list[Image]:
    return [image for directory in _contents(where) for image in directory.images()]


def list_images(arguments: argparse.Namespace) -> int:
    """One line for each image."""
    found = _images(where_of(arguments))
    if arguments.json:
        values = [
            {
                "squash": str(image.squash),
                "bytes": image.size,
                "problem": image.problem,
                **{name: getattr(image.sidecar, name, None) for name in ("reference", "digest", "hash", "how")},
                "last_use": image.used,
                "live_runs": list(image.users),
            }
            for image in found
        ]
        print(json.dumps(values, indent=2))
        return 0
    rows = []
    for image in found:
        digest, how = (image.sidecar.digest or "-", image.sidecar.how) if image.sidecar else ("-", "no record")
        last_use = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.used))
        users = " ".join(image.users) or "-"
        rows.append([image.squash.name, f"{image.size / 1e6:.1f}", digest[:19], last_use, users, image.problem or how])
    table(["image", "MB", "digest", "last use", "live runs", ""], rows)
    total = sum(image.size for image in found)
    say(f"{len(found)} images, {total / 1e9:.2f} GB, {sum(image.problem is not None for image in found)} not whole")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check images; ImageError when one of them is damaged."""
    where = where_of(arguments)
    names = {Path(name).name for name in arguments.images}
    found = [image for image in _images(where) if not names or image.squash.name in names]
    if missing := names - {image.squash.name for image in found}:
        raise ConfigError(f"no such image: {', '.join(sorted(missing))}", where=", ".join(map(str, where.directories)))
    damaged = []
    for image in found:
        verdict, said = inventory.verify(image, deep=arguments.deep)
        tag = [] if arguments.offline else _tag(image, where)
        say(f"{image.squash.name}: {verdict}")
        for line in (*said, *tag):
            say(f"  {line}")
        if verdict == "damaged":
            damaged.append(image.squash.name)
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(found)} are not whole: {', '.join(damaged)}",
            hint="an import replaces what shows in superblock or lists; remove others when no job maps them",
        )
    return 0


def _tag(image: Image, where: Where) -> list[str]:
    """What the image's tag names now, by its registry, if that may be asked."""
    from launcher.image.registry import Registry

    note = image.sidecar
    if note is None or not where.policy.may_ask(note.uri):
        return []
    reference, environment = Reference.parse(note.uri), {**os.environ, **where.rule.environment}
    if reference.digest:
        return ["tag: none, a digest"]
    registry = Registry(reference, environment, note.architecture or where.architecture)
    fact, _ = registry.check_tag(image.squash, note)
    return [f"tag: {fact or f'names {note.digest} still'}"]


def adopt(arguments: argparse.Namespace) -> int:
    """Record what a file is."""
    squash = Path(arguments.image).resolve()
    note = inventory.adopt(squash, arguments.reference, Reference.parse(arguments.reference).uri)
    say(f"{squash}: {note.reference}, {note.size / 1e6:.1f} MB, {note.hash}")
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """Say what nobody needs, and with --apply remove it."""
    where = where_of(arguments)
    contents = _contents(where, arguments.grace * 86400)
    gone = [(item, directory) for directory in contents for item in directory.garbage()]
    temporary = Path(derive.fill(where.rule.temporary or tempfile.gettempdir(), where.project.context("image")))
    if os.access(temporary, os.R_OK):
        directory = ImageDirectory(temporary)
        gone += [(item, directory) for item in directory.dead_temporaries()]
    found = [replace(item, keep=directory.remove(item)) if arguments.apply else item for item, directory in gone]
    show_removals(found, applied=arguments.apply)
    if not arguments.apply and gone:
        say("Runs of bash launchers are not known here.")
    return 0


def locks(arguments: argparse.Namespace) -> int:
    """Print what was found between two processes of this host, and between two nodes where there is Slurm."""
    directory = Path(arguments.directory).resolve()
    found, said = [between_processes(directory)], []
    options = [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(arguments, name))]
    try:
        found += [] if arguments.no_nodes else [between_nodes(directory, options)]
    except ImageError as error:
        said.append(f"between nodes: {error.message}")
    if arguments.json:
        value = {"directory": str(directory), "file_system": file_system(directory), "notes": said}
        print(json.dumps({**value, "probes": [asdict(probed) for probed in found]}, indent=2))
        return 0
    say(f"{directory}: {file_system(directory)}")
    for probed in found:
        beat = "never" if probed.heartbeat is None else f"after {probed.heartbeat:g} s"
        twice = "may be done twice at once; what is published is whole all the same"
        say(f"{probed.where}: imports {'are done one at a time' if probed.one_at_a_time else twice}")
        say(f"  flock {probed.flock}; lockf {probed.lockf}; owner file {probed.owner_file}")
        say(f"  heartbeat seen: {beat}; clocks differ by {probed.clocks:g} s")
    for line in said:
        say(line)
    return 0
