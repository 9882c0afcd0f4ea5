"""Faults of staging: `scripts/faults models [--short | --faults N]`.

A forked process stages a small checkpoint under strace, which kills it at the n-th system call of a kind, or makes that
call fail. Counters of strace are each thread's own and begin when it attaches, so it attaches at three places: before
the staging, before the first byte is copied, and before the publication; every call of every thread is the n-th of its
kind after one of them. Afterwards, each time:

* the destination is absent, or whole with its manifest (never anything else), and a checkpoint that was there stays;
* `gc` leaves no byte but the destination;
* a second run succeeds, and the copy is the source's, byte by byte.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import LauncherError
from launcher.model import copy as copying
from launcher.model import stage as staging
from launcher.model.checkpoint import examine
from launcher.model.destination import remove_leftovers
from launcher.model.manifest import MANIFEST_NAME, Manifest
from launcher.model.source import DirectorySource
from tests.model.checkpoints import checkpoint

PHASES = ("start", "copy", "publish")
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EXDEV", "EACCES", "EROFS")
WRITES = ("write", "pwrite64", "copy_file_range", "ftruncate")
RENAMES = ("rename", "renameat", "renameat2")
SYNCS = ("fsync", "fdatasync")
MAKES = ("openat", "mkdir", "link", "linkat")
OTHERS = ("unlink", "unlinkat", "rmdir", "close", "preadv", "pread64", "preadv2", "getdents64", "newfstatat", "fstat")
CALLS = (*WRITES, *RENAMES, *SYNCS, *MAKES, *OTHERS, "lseek", "fadvise64", "fchmod", "statfs", "read")
PART = 256
SHORT = 80
PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Point:
    """One fault: where strace attaches, the call, which one of it, and the error, or a kill without one."""

    phase: str
    call: str
    number: int
    error: str | None = None

    @property
    def inject(self) -> str:
        what = f"error={self.error}" if self.error else "signal=KILL"
        return f"inject={self.call}:{what}:when={self.number}"

    def __str__(self) -> str:
        return f"{self.error or 'KILL'} at {self.call} {self.number} after {self.phase}"


class TracedStaging:
    """A source, a destination, and a process that stages from the one to the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = checkpoint(root / "archive" / "M")
        self.destination = root / "fast" / "M"
        self.wanted = contents(self.source)

    def fresh(self) -> None:
        shutil.rmtree(self.destination.parent, ignore_errors=True)
        self.destination.parent.mkdir()

    def attempt(self, phase: str, *expressions: str) -> int:
        """Stage in a forked process, traced from ``phase`` on; its exit code, negative for a signal."""
        ready, ready_in = os.pipe()
        go_out, go = os.pipe()
        child = os.fork()
        if child == 0:
            _child(self, phase, ready_in, go_out)
        for descriptor in (ready_in, go_out):
            os.close(descriptor)
        tracer = None
        try:
            if os.read(ready, 1):
                tracer = self._trace(child, expressions)
                with contextlib.suppress(BrokenPipeError):  # the read that it waits in can be its last
                    os.write(go, b"g")
            _, status = os.waitpid(child, 0)
        finally:
            for descriptor in (ready, go):
                os.close(descriptor)
            if tracer is not None:
                tracer.communicate(timeout=60)
        return os.waitstatus_to_exitcode(status)

    def _trace(self, pid: int, expressions: tuple[str, ...]) -> subprocess.Popen[bytes]:
        flags = [flag for expression in expressions for flag in ("-e", expression)]
        argv = ["strace", "-f", "-q", "-o", str(self.root / "trace"), "-e", f"trace={','.join(CALLS)}", *flags]
        argv += ["-p", str(pid)]
        said = ""
        for _ in range(3):
            tracer = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            deadline = time.monotonic() + 60
            while tracer.poll() is None and time.monotonic() < deadline:
                if _attached(pid):
                    return tracer
                time.sleep(0.001)
            if _attached(pid):
                return tracer
            tracer.kill()
            said = tracer.communicate()[1].decode(errors="replace")
        os.kill(pid, signal.SIGKILL)
        raise RuntimeError(f"strace cannot attach: {said}")

    def calls(self, phase: str) -> Counter[str]:
        """How often each call is made by the thread that makes it most often, from ``phase`` on."""
        self.fresh()
        if code := self.attempt(phase):
            raise RuntimeError(f"staging without a fault ends with {code}")
        by_thread: dict[str, Counter[str]] = {}
        for thread, call in re.findall(r"^(\d+) +(\w+)\(", (self.root / "trace").read_text(), re.MULTILINE):
            by_thread.setdefault(thread, Counter())[call] += 1
        most: Counter[str] = Counter()
        for counted in by_thread.values():
            most |= counted
        return most

    @staticmethod
    def ended(code: int) -> str:
        """How a process ended, for the counts."""
        return "killed" if code < 0 else "succeeded in spite of it" if code == 0 else "said what was wrong"

    def wrong(self, code: int, point: Point, *, before: bool, gc_first: bool) -> str | None:
        """What is wrong after the fault, in a few words."""
        if point.error and code not in (0, LauncherError.exit_code):
            return f"ended with {code} in place of an error that says what to do"
        if there := self._torn():
            return there
        if before and contents(self.destination) != self.wanted:
            return "what was there is not there any more"
        if gc_first and (left := self._collected()):
            return left
        try:
            done = staging.stage(DirectorySource(self.source), self.destination)
        except LauncherError as error:
            return f"the second run fails: {error}"
        if contents(self.destination) != self.wanted or done.manifest.deep_differences(self.destination):
            return "the second run's copy is not the source's"
        return self._collected()

    def _torn(self) -> str | None:
        """Whether something at the destination is neither absent nor whole with its manifest."""
        if not self.destination.exists():
            return None
        if Manifest.read(self.destination) is None:
            return "there without its manifest"
        return self._bytes() or (None if examine(self.destination, precision="bf16").whole else "not whole")

    def _bytes(self) -> str | None:
        return None if contents(self.destination) == self.wanted else "published without all of its bytes"

    def _collected(self) -> str | None:
        published = self.destination.exists()
        remove_leftovers(self.destination.parent, wait=0)
        left = [path.name for path in self.destination.parent.iterdir() if path != self.destination]
        if published and contents(self.destination, everything=True).keys() != {*self.wanted, MANIFEST_NAME}:
            left += ["something in the checkpoint"]
        return f"gc leaves {', '.join(left)}" if left else None


def _attached(pid: int) -> bool:
    """Whether it is traced, or was killed by its tracer already."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" not in status or "State:\tZ" in status


def contents(directory: Path, *, everything: bool = False) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    found = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    hidden = () if everything else [name for name in found if name.startswith(".")]
    return {name: value for name, value in found.items() if name not in hidden}


def _child(traced: TracedStaging, phase: str, ready: int, go: int) -> None:
    """The forked process; never returns."""
    code = 99
    try:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)

        def wait(at: str) -> None:
            if at == phase:
                os.write(ready, b"r")
                os.read(go, 1)

        class Hook:
            def begin(self, files: int, size: int) -> None:
                wait("copy")

            def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
                pass

        verify = staging._verify

        def verifying(manifest: Manifest, directory: Path) -> None:
            wait("publish")
            verify(manifest, directory)

        staging._verify = verifying
        wait("start")
        staging.stage(DirectorySource(traced.source), traced.destination, workers=2, progress=Hook())
        code = 0
    except LauncherError:
        code = LauncherError.exit_code  # whatever the layer: it was said
    finally:
        if code == 99:
            traceback.print_exc()
        os._exit(code)


def points(traced: TracedStaging, kinds: tuple[str, ...] = ("kill", *ERRORS)) -> Iterator[Point]:
    """Every fault: kills at all calls, errors at those that write, sync, rename and make."""
    for phase in PHASES:
        counted = traced.calls(phase)
        for call in CALLS:
            for number in range(1, counted[call] + 1):
                if "kill" in kinds:
                    yield Point(phase, call, number)
                if call in (*WRITES, *SYNCS, *RENAMES, *MAKES):
                    yield from (Point(phase, call, number, error) for error in ERRORS if error in kinds)


def trials(traced: TracedStaging, chosen: list[Point]) -> Iterator[tuple[Point, str, str, str | None]]:
    """Do each fault, in turns on nothing, on a whole checkpoint, and on what a killed process left."""
    before = ("nothing", "nothing", "half", "whole")
    for i, point in enumerate(chosen):
        state = before[i % len(before)]
        traced.fresh()
        if state == "half":
            traced.attempt("copy", "inject=fsync:signal=KILL:when=1")
        if state == "whole" and point.phase == "start":
            staging.stage(DirectorySource(traced.source), traced.destination)
        code = traced.attempt(point.phase, point.inject)
        whole = state == "whole" and point.phase == "start"
        yield point, state, traced.ended(code), traced.wrong(code, point, before=whole, gc_first=bool(i % 2))


@contextlib.contextmanager
def traced_staging(directory: str | None = None) -> Iterator[TracedStaging]:
    """A place, gone afterwards: on the disk, unless a directory is named."""
    before = vars(copying)["PART_SIZE"], staging.LOCK_WAIT
    vars(copying)["PART_SIZE"], staging.LOCK_WAIT = PART, 5.0
    try:
        with tempfile.TemporaryDirectory(prefix="launcher-faults-", dir=directory) as root:
            yield TracedStaging(Path(root))
    finally:
        vars(copying)["PART_SIZE"], staging.LOCK_WAIT = before


def sample(every: list[Point], count: int | None) -> list[Point]:
    """So many of all faults, the same ones each time, in their order."""
    if count is None or count >= len(every):
        return every
    return [every[i] for i in sorted(random.Random(count).sample(range(len(every)), count))]


def main(argv: list[str]) -> int:
    """Run the faults; the exit code is 1 when an outcome was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/faults models")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} faults, the same ones each time")
    parser.add_argument("--faults", type=int, metavar="N", help="N faults (default: all)")
    arguments = parser.parse_args(argv)
    began, seen, ends, bad = time.monotonic(), Counter[str](), Counter[str](), Counter[str]()
    with traced_staging() as traced:
        every = list(points(traced))
        for point, state, ended, wrong in trials(traced, sample(every, SHORT if arguments.short else arguments.faults)):
            kind = f"{point.error or 'KILL'}, {state} before"
            seen[kind] += 1
            ends[ended] += 1
            if wrong:
                bad[kind] += 1
                print(f"wrong: {point}, {state} before: {wrong}", file=sys.stderr)
    for kind in sorted(seen):
        print(f"{kind:24} {seen[kind]:5} faults, {bad[kind]} wrong")
    print("; ".join(f"{number} {how}" for how, number in sorted(ends.items())))
    print(f"{'all':24} {seen.total():5} of {len(every)} faults, {bad.total()} wrong, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0
