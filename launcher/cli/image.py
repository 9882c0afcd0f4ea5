"""`launcher image …`: what lies in an image directory, having more of it, and removing what nobody needs."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cli.common import session
from launcher.core.errors import ConfigError, ImageError
from launcher.core.process import CommandRunner, run
from launcher.core.publish import dead_temporaries
from launcher.core.redact import redact
from launcher.image import inventory
from launcher.image.inventory import Check, Garbage, Image
from launcher.image.reference import Reference
from launcher.image.request import ImageRequest
from launcher.image.tag_check import Moved, compare
from launcher.plan import derive
from launcher.plan.plan import PlannedImage
from launcher.project import Session
from launcher.run.image_import import Importing, have_image, images_in_use, run_is_over
from launcher.runner.schema import Images


@dataclass(frozen=True)
class _Where:
    """Directories with images, and how images get there."""

    directories: tuple[Path, ...]
    temporary: Path
    rule: Images
    architecture: str | None
    how: Importing
    of: Session

    def planned(self, reference: str) -> PlannedImage:
        context = self.of.context("image")
        return derive.planned_image(reference, "image", self.rule, self.architecture, context)

    def images(self) -> list[Image]:
        users = images_in_use(self.of.runs)
        return [image for directory in self.directories for image in inventory.images(directory, users, run_is_over)]


def _where(arguments: argparse.Namespace) -> _Where:
    """What the flags name. Raises ConfigError when they name no directory."""
    of = session(arguments, look=True)
    if arguments.directory:
        directory = Path(arguments.directory).resolve()
        rule, how, architecture = Images(directory=str(directory)), Importing("system", "local", None, None), None
        directories = [str(directory)]
    elif arguments.runner:
        runner = of.fleet.get(arguments.runner).runner
        rule, architecture = runner.images, runner.node.arch
        s = runner.scheduler
        how = Importing(runner.tools, s.kind, s.partition, s.account)
        directories = [rule.directory, *(r.directory for r in rule.rules if r.directory)]
    else:
        raise ConfigError("which images?", hint="--runner NAME, or --directory DIR")
    context = of.context("image")
    found = dict.fromkeys(Path(derive.fill(d, context)) for d in directories)
    missing = [d for d in found if not d.is_dir()]
    if len(missing) == len(found) and how.tools != "rehearsal":
        raise ConfigError("no such directory on this host", where=str(missing[0]), hint="run this where it is mounted")
    temporary = Path(derive.fill(rule.temporary, context) if rule.temporary else tempfile.gettempdir())
    return _Where(tuple(d for d in found if d.is_dir()), temporary, rule, architecture, how, of)


def listing(arguments: argparse.Namespace) -> int:
    """One line for each image."""
    found = _where(arguments).images()
    if arguments.json:
        print(json.dumps([_plain(image) for image in found], indent=2))
        return 0
    from launcher.cli.render import table

    rows = [
        [
            image.squash.name,
            f"{image.size / 1e6:.1f}",
            (image.note.digest or "-")[:19] if image.note else "-",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(image.used)),
            " ".join(image.users) or "-",
            image.problem or (image.note.how if image.note else "no record"),
        ]
        for image in found
    ]
    table(["image", "MB", "digest", "last use", "live runs", ""], rows, sys.stdout)
    total = sum(image.size for image in found)
    print(f"{len(found)} images, {total / 1e9:.2f} GB, {sum(image.problem is not None for image in found)} not whole")
    return 0


def _plain(image: Image) -> dict[str, object]:
    note = image.note
    return {
        "squash": str(image.squash),
        "bytes": image.size,
        "problem": image.problem,
        "reference": note.reference if note else None,
        "digest": note.digest if note else None,
        "hash": note.hash if note else None,
        "how": note.how if note else None,
        "last_use": image.used,
        "live_runs": list(image.users),
    }


@dataclass(frozen=True)
class _Effects:
    """How an import by hand reaches the world."""

    environ: Mapping[str, str]
    tools: Mapping[str, str]
    run: CommandRunner = run

    @property
    def say(self) -> Callable[[str], None]:
        return lambda text: print(redact(text, self.environ), file=sys.stderr, flush=True)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def having(arguments: argparse.Namespace) -> int:
    """Have each image there."""
    where = _where(arguments)
    tools: Mapping[str, str] = {}
    if where.how.tools == "rehearsal":
        from launcher.run.stages import rehearsal_tools

        tools = rehearsal_tools(where.of.state, where.how.kind, os.environ)
    effects = _Effects(os.environ, tools)
    for reference in arguments.references:
        image = where.planned(reference)
        if arguments.moved_tag:
            image = replace(image, moved_tag=arguments.moved_tag)
        record = have_image(image, where.how, f"image-{secrets.token_hex(4)}", effects)
        print(record.squash)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check images; ImageError when one of them is damaged."""
    where = _where(arguments)
    names = {Path(name).name for name in arguments.images}
    found = [image for image in where.images() if not names or image.squash.name in names]
    if missing := names - {image.squash.name for image in found}:
        raise ConfigError(f"no such image: {', '.join(sorted(missing))}", where=str(where.directories[0]))
    damaged = []
    for image in found:
        verdict = inventory.verify(image, deep=arguments.deep)
        said = [*verdict.said, *([] if arguments.offline or where.how.tools == "rehearsal" else _tag(image, where))]
        print(f"{image.squash.name}: {verdict.check.value}")
        for line in said:
            print(f"  {line}")
        if verdict.check is Check.DAMAGED:
            damaged.append(image.squash.name)
    if damaged:
        raise ImageError(
            f"{len(damaged)} of {len(found)} are not whole: {', '.join(damaged)}",
            hint="an import replaces what shows in superblock or lists; remove others when no job maps them",
        )
    return 0


def _tag(image: Image, where: _Where) -> list[str]:
    """What the image's tag names now, by its registry."""
    from launcher.image.registry import Registry

    note = image.note
    if note is None:
        return []
    registry = Registry({**os.environ, **where.rule.environment})
    request = ImageRequest(note.reference, note.uri, image.squash, architecture=note.architecture or where.architecture)
    after = compare(request, note.digest, note.index, registry)
    if isinstance(after, Moved):
        return [f"tag: {after.what}"]
    digest = Reference.parse(note.uri).digest
    return [f"tag: {fact}" for fact in after] or [
        "tag: none, a digest" if digest else f"tag: names {note.digest} still"
    ]


def adopt(arguments: argparse.Namespace) -> int:
    """Record what a file is."""
    squash = Path(arguments.image).resolve()
    note = inventory.adopt(squash, arguments.reference, Reference.parse(arguments.reference).uri)
    print(f"{squash}: {note.reference}, {note.size / 1e6:.1f} MB, {note.hash}")
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """Say what nobody needs, and with --apply remove it."""
    where = _where(arguments)
    users = images_in_use(where.of.runs)
    gone: list[Garbage] = []
    for directory in where.directories:
        found = inventory.images(directory, users, run_is_over)
        gone += inventory.garbage(directory, found, grace=arguments.grace * 86400, over=run_is_over)
    if where.temporary.is_dir():
        gone += [inventory.leftover(path) for path in dead_temporaries(where.temporary)]
    freed, left = 0, "kept, it is in use or its lock is not to be had" if arguments.apply else "would remove"
    for item in gone:
        removed = arguments.apply and inventory.collect(item, run_is_over)
        freed += item.size if removed or not arguments.apply else 0
        print(f"{'removed' if removed else left}: {item.path} ({item.size / 1e6:.1f} MB): {item.why}")
    print(f"{'freed' if arguments.apply else 'would free'} {freed / 1e9:.3f} GB in {len(gone)} entries")
    if not arguments.apply and gone:
        print("this was a dry run; --apply removes them. Runs of bash launchers are not known here.")
    return 0
