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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.core.lease import Lock, LockPace
from launcher.core.process import CommandRunner, Completed, clean_environment, run
from launcher.image.enroot import Enroot
from launcher.image.reference import PlannedImage, Reference
from launcher.image.registry import Registry
from launcher.image.store import ImageStore, no_log
from launcher.rehearsal.enroot_stand_in import squashfs

ENROOT = (sys.executable, "-m", "launcher.rehearsal.enroot_stand_in")
REFERENCE = "nvcr.io#nvidia/ai-dynamo/vllm-runtime:1.0.1"
NAME = "nvcr.io_nvidia_ai-dynamo_vllm-runtime_1.0.1.sqsh"


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
    given = {
        "uri": Reference.parse(reference).uri,
        "squash": str(directory / "images" / name),
        "import_on": "login",
        "role": "image",
        "lock": str(directory / "bash.lock"),
        "lock_wait": 20,
        "import_timeout": 20,
        "temporary": str(directory / "tmp"),
    }
    return PlannedImage(reference, **{**given, **more})


def image_store(
    runner: CommandRunner = run,
    *,
    command: Sequence[str] = ENROOT,
    registry: Registry | None = None,
    log: Callable[[str], None] = no_log,
    lock: type[Lock] = EagerLock,
    sleep: Callable[[float], None] = time.sleep,
) -> ImageStore:
    """A store with the stand-in enroot, in the environment of the test as it is now."""
    enroot = Enroot(clean_environment(os.environ), runner, command, log=log, sleep=sleep)
    return ImageStore(enroot, runner, registry=registry, log=log, lock=lock, sleep=sleep)


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
        if found := what():
            return found
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
