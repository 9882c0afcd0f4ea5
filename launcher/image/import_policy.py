"""Where and how an image is imported: on this host or in a job of its own, and which registries are asked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.core.process import CommandRunner
from launcher.image.enroot import Enroot, own_directories
from launcher.image.reference import PlannedImage, Reference
from launcher.image.store import ImageRecord, Placement

NODE_PATIENCE = 1800
"""Seconds that the job of an import may wait for a node. Slurm itself ends it then, whatever became of us."""

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_OWN = "LAUNCHER_ENROOT_DIRECTORY"
_PREFIX = "launcher-enroot-"
_ON_NODE = (
    *("sh", "-c"),
    f'cd "${{{_OWN}%/*}}" && find . -maxdepth 1 -user "$(id -un)" -name "{_PREFIX}*" -mtime +0 -exec rm -rf "{{}}" +\n'
    f'mkdir -p -- "${{{_OWN}:?}}/temp" && enroot version && "$@"\n'
    f'code=$?; rm -rf -- "${{{_OWN}:?}}"; exit "$code"',
    "sh",
)
"""On the node: enroot's layers are of no use there afterwards, and nobody else would remove them. srun ends a step by
SIGKILL, so what an ended one left is removed a day later, by the next import there; none lasts so long."""


@dataclass(frozen=True)
class ImportPolicy:
    """What decides where and how images are imported.

    ``scheduler`` is the kind of scheduler; with ``partition`` and ``account`` it gives jobs to imports on compute
    nodes, which are called ``job_name`` and carry ``token`` in their comment. ``registries`` are the hosts whose
    registries may be asked before an import, None for all. With ``make_directory`` the image directory is made if it is
    missing; it should be missing only where the directory is our own.
    """

    scheduler: Literal["slurm", "local"]
    partition: str | None
    account: str | None
    job_name: str
    token: str
    registries: frozenset[str] | None = None
    make_directory: bool = False

    def is_on_node(self, image: PlannedImage) -> bool:
        """Whether enroot runs on a compute node, in a job of its own."""
        return image.import_on == "compute" and self.scheduler == "slurm"

    def may_ask(self, uri: str) -> bool:
        """Whether the registry of an image may be asked."""
        return self.registries is None or Reference.parse(uri).registry.partition(":")[0] in self.registries

    def node_command(self, image: PlannedImage) -> tuple[str, ...]:
        """`enroot` as a job of one task without GPUs, on a node of the architecture that the image is for."""
        minutes = max(1, image.import_timeout // 60)
        options = {
            "partition": image.import_partition or self.partition,
            "account": self.account,
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": image.processors,
            "time": minutes,
            # In place of --immediate, which a Slurm with SchedulerParameters=defer always refuses.
            "deadline": f"now+{60 * minutes + NODE_PATIENCE}",
            "job-name": self.job_name,
            "comment": import_comment(self.token),
        }
        srun = ("srun", *(f"--{name}={value}" for name, value in options.items() if value), *image.import_options)
        return (sys.executable, "-S", "-E", str(_DIE_WITH_PARENT), str(os.getpid()), *srun, *_ON_NODE, "enroot")


def import_comment(token: str) -> str:
    """The comment of the job that imports an image for a run: not the run's own, whose job it is not."""
    return f"{token}-import"


def ensure_image(
    image: PlannedImage,
    policy: ImportPolicy,
    environment: Mapping[str, str],
    *,
    run: CommandRunner,
    log: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    mark: Callable[[Path], None] = lambda squash: None,
) -> ImageRecord:
    """Have the image as a whole squash file.

    ``run`` starts programs, in ``environment``. ``log`` gets one line at a time. ``sleep`` may raise to end a wait.
    ``mark`` is told of each squash file before it is looked for. Raises ImageError, with the line that names the image.
    """
    if policy.make_directory:
        image.squash_path.parent.mkdir(parents=True, exist_ok=True)
    enroot = Enroot(environment, run, log, sleep)
    if policy.is_on_node(image):
        own = f"{image.temporary or '/tmp'}/{_PREFIX}{policy.token}"
        environment = {**environment, _OWN: own, **own_directories(own)}  # enroot makes all, but the first two
        enroot = Enroot(environment, run, log, sleep, policy.node_command(image), NODE_PATIENCE)
    registry = None
    if policy.may_ask(image.uri):
        from launcher.image.registry import Registry  # urllib is for those who import

        reference, asked_in = Reference.parse(image.uri), {**environment, **image.environment}
        registry = Registry(reference, asked_in, image.architecture, log=log, sleep=sleep)
    record = Placement(image, enroot, registry, mark).ensure()
    known = record.sidecar
    digest = f", {known.digest}" if known.digest else ""
    log(f"image {image.reference}: {record.how} in {record.seconds:.3f} s ({known.size / 1e6:.1f} MB{digest})")
    return record
