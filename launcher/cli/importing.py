"""`launcher image import`, and what the flags of all commands about images name.

An import is short of time beside what enroot takes: so nothing is loaded here that only other commands need.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launcher.cli.command import Command, Log
from launcher.cli.common import open_project
from launcher.core.errors import Cancelled, ConfigError
from launcher.core.lines import Terminal
from launcher.core.process import CommandRunner, clean_environment, stoppable
from launcher.core.stop import stop_on_signals
from launcher.image.enroot import ImportPolicy
from launcher.image.reference import PlannedImage
from launcher.image.store import ensure_image
from launcher.plan import derive
from launcher.project import Project
from launcher.runner.cluster_schema import Scheduler
from launcher.runner.schema import Images
from launcher.services import open_tools


@dataclass(frozen=True)
class Where:
    """Directories with images, and how images get there: in jobs by ``policy``, as ``rule`` and ``environment`` say."""

    directories: tuple[Path, ...]
    rule: Images
    architecture: str | None
    policy: ImportPolicy
    environment: Mapping[str, str]
    project: Project


def where_of(arguments: argparse.Namespace) -> Where:
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
    job = (scheduler.kind, scheduler.partition, scheduler.account, "launcher", f"image-{os.urandom(4).hex()}")
    policy = ImportPolicy(*job, tools.registries, make_directory=tools.stand_ins)
    context = project.context("image")
    said = [rule.directory, *(each.directory for each in rule.rules if each.directory)]
    directories = list(dict.fromkeys(derive.fill_path(directory, context) for directory in said))
    there = tuple(path for path in map(Path, directories) if path.is_dir())
    if not there and not policy.make_directory and not getattr(arguments, "on_node", None):
        raise ConfigError("no such directory on this host", where=directories[0], hint="run this where it is mounted")
    environment = {**clean_environment(os.environ), **tools.environment}
    return Where(there, rule, architecture, policy, environment, project)


@dataclass(frozen=True)
class Imported:
    """An image that is there, whole; on which node, where each has its own."""

    reference: str
    squash: str
    node: str = ""


def show_imported(value: Imported, terminal: Terminal) -> Iterator[str]:
    yield f"{value.node}:{value.squash}" if value.node else value.squash


@partial(Command, Imported, show=show_imported)
def import_images(arguments: argparse.Namespace, log: Log) -> Iterator[Imported]:
    """Have each image there."""
    where = where_of(arguments)
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
                    yield from _on_nodes(image, arguments.on_node, where, run, log)
                else:
                    record = ensure_image(image, where.policy, where.environment, run=run, log=log, sleep=stop.sleep)
                    yield Imported(reference, str(record.squash))
            except Cancelled as why:
                why.message = f"{why.message.partition(' while ')[0]} while importing {reference}"
                raise


def _on_nodes(image: PlannedImage, nodes: list[str], where: Where, run: CommandRunner, log: Log) -> Iterator[Imported]:
    """Have the image on each node. Raises ImageError for the first node that cannot have it."""
    from launcher.container.job_script import import_on_node

    options = [f"--job-name={where.policy.job_name}", *where.rule.import_options]
    partition = where.rule.import_partition or where.policy.partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={where.policy.account}"] if where.policy.account else []
    for node in nodes:
        log(import_on_node(image, node, options, run, where.environment))
        yield Imported(image.reference, str(image.squash), node)
