"""What the tests of images share: small squash files, requests, and a lock that looks often.

pytest is not imported here: processes of these tests import this module, hundreds of them, and would spend most of
their CPU time on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.lease import Lock, LockPace
from launcher.core.process import CommandRunner, Completed, clean_environment, run
from launcher.core.publish import TEMPORARY_SUFFIX
from launcher.image.enroot import Enroot
from launcher.image.reference import PlannedImage, Reference
from launcher.image.registry import Registry
from launcher.image.squash import DamagedImage, MissingImage, PlacedImage, inspect
from launcher.image.store import Placement
from launcher.rehearsal.enroot_stand_in import squashfs

ENROOT = (sys.executable, "-m", "launcher.rehearsal.enroot_stand_in")
REFERENCE = "nvcr.io#nvidia/ai-dynamo/vllm-runtime:1.0.1"
NAME = "nvcr.io_nvidia_ai-dynamo_vllm-runtime_1.0.1.sqsh"


def no_log(message: str) -> None:
    """Say nothing. It is a function with a name so that a store can be given to another process."""


class EagerLock(Lock):
    """The real lock, looking fifty times a second, for tests that wait for it. It has to do without flock."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **{"pace": LockPace(poll=0.02), **options, "flock_path": None})


class EagerLockWithFlock(Lock):
    """The same with flock, as the bash launchers take it."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, pace=LockPace(poll=0.02), **options)


def request(directory: Path, *, reference: str = REFERENCE, name: str = NAME, **more: Any) -> PlannedImage:
    """An image as a plan has it, with everything below ``directory``."""
    environment = {
        "uri": Reference.parse(reference).uri,
        "squash": str(directory / "images" / name),
        "import_on": "login",
        "role": "image",
        "lock": str(directory / "bash.lock"),
        "lock_wait": 20,
        "import_timeout": 20,
        "temporary": str(directory / "tmp"),
    }
    return PlannedImage(reference, **{**environment, **more})


@dataclass(frozen=True)
class Store:
    """Has images in place with the stand-in enroot, in the environment of the test as it is then."""

    runner: CommandRunner = run
    command: tuple[str, ...] = ENROOT
    registry: Callable[[PlannedImage], Registry] | None = None
    log: Callable[[str], None] = no_log
    lock: type[Lock] = EagerLock
    sleep: Callable[[float], None] = time.sleep

    def ensure(self, image: PlannedImage) -> PlacedImage:
        enroot = Enroot(clean_environment(os.environ), self.runner, self.log, self.sleep, self.command)
        registry = self.registry(image) if self.registry else None
        return Placement(image, enroot, registry, lambda squash: None, self.lock).ensure()


def registry_for(environ: Mapping[str, str], **more: Any) -> Callable[[PlannedImage], Registry]:
    """A store's registry, which asks in this environment for what the image's nodes need."""
    return lambda image: Registry(Reference.parse(image.uri), environ, image.architecture, **more)


def small_image(path: Path, note: str = "") -> Path:
    """A small whole squash file."""
    path.write_bytes(squashfs("etc", {"rc": b"# " + note.encode()}, created=1_700_000_000))
    return path


def completed(argv: Sequence[str], returncode: int | None, stderr: str = "", stdout: str = "") -> Completed:
    return Completed(tuple(argv), returncode, stdout, stderr, 0.1)


def as_root(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root: ourselves, or by sudo that asks nothing."""
    command = list(argv) if os.geteuid() == 0 or not shutil.which("sudo") else ["sudo", "-n", *argv]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)


def until(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until ``what()`` is true, and give it; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.005)
    raise AssertionError(f"did not happen within {seconds} s")


@contextmanager
def process(*argv: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of our own, ended with the block."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, text=True, **options) as child:
        try:
            yield child
        finally:
            child.kill()


@dataclass
class Looks:
    """What a reader saw at a name: ``number`` looks, ``torn`` ones among them."""

    number: int = 0
    torn: int = 0


def look_while(is_running: Callable[[], bool], final: Path) -> Looks:
    """Look at the final name a thousand times a second, while somebody is running."""
    looks = Looks()
    while is_running():
        looks.number += 1
        try:
            inspect(final)
        except MissingImage:
            pass
        except DamagedImage:
            looks.torn += 1
        time.sleep(0.001)
    return looks


def leftovers(image_root: Path) -> list[str]:
    """Temporaries and lock files below a directory."""
    return [path.name for path in image_root.rglob("*") if path.name.endswith((TEMPORARY_SUFFIX, ".owner"))]
