"""`launcher image`: what lies in an image directory, having more of it, and removing what nobody needs.

Also `launcher doctor locks`: whether the locks that importers take hold in such a directory.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.cli.common import open_project, tell
from launcher.cli.render import show_removals, table
from launcher.core.errors import Cancelled, ConfigError, ImageError
from launcher.core.process import CommandRunner, clean_environment, stoppable
from launcher.core.stop import stop_on_signals
from launcher.core.terminal import say
from launcher.image import inventory
from launcher.image.enroot import ImportPolicy
from launcher.image.inventory import Image, ImageDirectory
from launcher.image.probe import between_nodes, between_processes, file_system
from launcher.image.reference import PlannedImage, Reference
from launcher.image.store import ensure_image
from launcher.plan import derive
from launcher.project import Project
from launcher.run.image_usage import images_in_use, is_run_over
from launcher.runner.cluster_schema import Scheduler
from launcher.runner.schema import Images
from launcher.services import open_tools


@dataclass(frozen=True)
class _Where:
    """Directories with images, and how images get there: in jobs by ``policy``, as ``rule`` and ``environment`` say."""

    directories: tuple[Path, ...]
    rule: Images
    architecture: str | None
    policy: ImportPolicy
    environment: Mapping[str, str]
    project: Project

    def contents(self, grace: float = inventory.GRACE) -> list[ImageDirectory]:
        users = images_in_use(self.project.runs, self.directories)
        return [ImageDirectory(path, users, is_run_over, grace) for path in self.directories]

    def images(self) -> list[Image]:
        return [image for directory in self.contents() for image in directory.images()]


def _where(arguments: argparse.Namespace) -> _Where:
    """What the flags name. Raises ConfigError when they name no directory."""
    project = open_project(arguments, look=True)
    if arguments.directory:
        rule = Images(directory=str(Path(arguments.directory).resolve()))
        architecture, scheduler, tools_name = None, Scheduler(kind="local"), "system"
    elif arguments.runner:
        runner = project.fleet.get(arguments.runner).runner
        rule, architecture, scheduler, tools_name = runner.images, runner.node.arch, runner.scheduler, runner.tools
    else:
        raise ConfigError("which images?", hint="--runner NAME, or --directory DIR")
    tools = open_tools(tools_name, scheduler.kind, project.state, os.environ)
    job = (scheduler.kind, scheduler.partition, scheduler.account, "launcher", f"image-{secrets.token_hex(4)}")
    policy = ImportPolicy(*job, tools.registries, make_directory=tools.stand_ins)
    context = project.context("image")
    said = [rule.directory, *(each.directory for each in rule.rules if each.directory)]
    directories = list(dict.fromkeys(derive.fill(directory, context) for directory in said))
    there = tuple(path for path in map(Path, directories) if path.is_dir())
    if not there and not policy.make_directory and not getattr(arguments, "on_node", None):
        raise ConfigError("no such directory on this host", where=directories[0], hint="run this where it is mounted")
    environment = {**clean_environment(os.environ), **tools.environment}
    return _Where(there, rule, architecture, policy, environment, project)


def list_images(arguments: argparse.Namespace) -> int:
    """One line for each image."""
    found = _where(arguments).images()
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


def import_images(arguments: argparse.Namespace) -> int:
    """Have each image there."""
    where = _where(arguments)
    if where.rule.shared is bool(arguments.on_node):
        wrong = "are shared by all nodes" if where.rule.shared else "are each node's own"
        hint = (
            "leave --on-node out" if where.rule.shared else "--on-node NODE says where; a job imports its image itself"
        )
        raise ConfigError(f"the image directories of this runner {wrong}", where=where.rule.directory, hint=hint)
    with stop_on_signals() as stop:
        run = stoppable(stop.requested)
        for reference in arguments.references:
            context = where.project.context("image")
            image = derive.planned_image(reference, "image", where.rule, where.architecture, context)
            if arguments.moved_tag:
                image = replace(image, moved_tag=arguments.moved_tag)
            try:
                if arguments.on_node:
                    _import_on_nodes(image, arguments.on_node, where, run)
                else:
                    record = ensure_image(image, where.policy, where.environment, run=run, log=tell, sleep=stop.sleep)
                    say(record.squash)
            except Cancelled as why:
                why.message = f"{why.message.partition(' while ')[0]} while importing {reference}"
                raise
    return 0


def _import_on_nodes(image: PlannedImage, nodes: list[str], where: _Where, run: CommandRunner) -> None:
    """Have the image on each node. Raises ImageError for the first node that cannot have it."""
    from launcher.container.node_import import import_on_node

    options = [f"--job-name={where.policy.job_name}", *where.rule.import_options]
    partition = where.rule.import_partition or where.policy.partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={where.policy.account}"] if where.policy.account else []
    for node in nodes:
        tell(import_on_node(image, node, options, run, where.environment))
        say(f"{node}:{image.squash}")


def verify(arguments: argparse.Namespace) -> int:
    """Check images; ImageError when one of them is damaged."""
    where = _where(arguments)
    names = {Path(name).name for name in arguments.images}
    found = [image for image in where.images() if not names or image.squash.name in names]
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


def _tag(image: Image, where: _Where) -> list[str]:
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
    where = _where(arguments)
    gone = [(item, directory) for directory in where.contents(arguments.grace * 86400) for item in directory.garbage()]
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
