"""`launcher image import`, and the image directories that the flags of all commands about images select.

An import of an image that exists has to be quick, so this module loads nothing that only other commands need.
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
class ImageDirectories:
    """Directories with images that exist here, and how images are imported into them: by ``policy``, with the
    ``settings`` of a runner file and with enroot's ``environment``."""

    directories: tuple[Path, ...]
    settings: Images
    architecture: str | None
    policy: ImportPolicy
    environment: Mapping[str, str]
    project: Project


def selected_directories(arguments: argparse.Namespace) -> ImageDirectories:
    """The directories that the flags select. Raises ConfigError when they select none."""
    project = open_project(arguments, look=True)
    if arguments.directory:
        settings = Images(directory=str(Path(arguments.directory).resolve()))
        architecture, scheduler, tools_name = None, Scheduler(kind="local"), "system"
    elif arguments.runner:
        runner = project.fleet.get(arguments.runner).runner
        settings, architecture, scheduler, tools_name = runner.images, runner.node.arch, runner.scheduler, runner.tools
    else:
        raise ConfigError("which images?", hint="--runner NAME, or --directory DIR")
    tools = open_tools(tools_name, scheduler.kind, project.state, os.environ)
    job = (scheduler.kind, scheduler.partition, scheduler.account, "launcher", f"image-{os.urandom(4).hex()}")
    policy = ImportPolicy(*job, tools.registries, make_directory=tools.stand_ins)
    context = project.context("image")
    templates = [settings.directory, *(rule.directory for rule in settings.rules if rule.directory)]
    directories = list(dict.fromkeys(derive.fill_path(template, context) for template in templates))
    existing = tuple(path for path in map(Path, directories) if path.is_dir())
    if not existing and not policy.make_directory and not getattr(arguments, "on_node", None):
        raise ConfigError("no such directory on this host", where=directories[0], hint="run this where it is mounted")
    environment = {**clean_environment(os.environ), **tools.environment}
    return ImageDirectories(existing, settings, architecture, policy, environment, project)


@dataclass(frozen=True)
class Imported:
    """A whole image, and its node where each node has images of its own."""

    reference: str
    squash: str
    node: str = ""


def show_imported(value: Imported, terminal: Terminal) -> Iterator[str]:
    yield f"{value.node}:{value.squash}" if value.node else value.squash


@partial(Command, Imported, show=show_imported)
def import_images(arguments: argparse.Namespace, log: Log) -> Iterator[Imported]:
    """Import each image that is missing."""
    selected = selected_directories(arguments)
    if selected.settings.shared is bool(arguments.on_node):
        if selected.settings.shared:
            problem, hint = "are shared by all nodes", "leave --on-node out"
        else:
            problem, hint = "are each node's own", "--on-node NODE says where; a job imports its image itself"
        where = selected.settings.directory
        raise ConfigError(f"the image directories of this runner {problem}", where=where, hint=hint)
    with stop_on_signals() as stop:
        run = stoppable(stop.requested)
        for reference in arguments.references:
            context = selected.project.context("image")
            image = derive.planned_image(reference, "image", selected.settings, selected.architecture, context)
            if arguments.moved_tag:
                image = replace(image, moved_tag=arguments.moved_tag)
            try:
                if arguments.on_node:
                    yield from _import_on_nodes(image, arguments.on_node, selected, run, log)
                else:
                    record = ensure_image(
                        image, selected.policy, selected.environment, run=run, log=log, sleep=stop.sleep
                    )
                    yield Imported(reference, str(record.squash))
            except Cancelled as cancelled:
                cancelled.message = f"{cancelled.message.partition(' while ')[0]} while importing {reference}"
                raise


def _import_on_nodes(
    image: PlannedImage, nodes: list[str], selected: ImageDirectories, run: CommandRunner, log: Log
) -> Iterator[Imported]:
    """Import the image on each node. Raises ImageError for the first node that fails."""
    from launcher.container.job_script import import_on_node

    options = [f"--job-name={selected.policy.job_name}", *selected.settings.import_options]
    partition = selected.settings.import_partition or selected.policy.partition
    options += [f"--partition={partition}"] if partition else []
    options += [f"--account={selected.policy.account}"] if selected.policy.account else []
    for node in nodes:
        log(import_on_node(image, node, options, run, selected.environment))
        yield Imported(image.reference, str(image.squash), node)
