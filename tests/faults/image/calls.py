"""(1) SIGKILL at the n-th system call of an import and of writing its record; (2) an error from it.

strace does both. The import is the store's own, with an enroot that is a function: the calls counted are ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.image.inventory import ImageDirectory
from launcher.image.squash import DamagedImage, MissingImage, inspect
from launcher.rehearsal.enroot_stand_in import squashfs
from tests.faults.image import Count
from tests.image.support import NAME

ROOT = Path(__file__).resolve().parents[3]
KILLED = (
    "openat,write,rename,renameat,renameat2,link,linkat,unlink,unlinkat,fsync,chmod,fchmod,fchmodat,utimensat,mkdir,"
    "mkdirat,rmdir,close,newfstatat,lseek,exit_group"
)
FAILED = "write,fsync,rename,renameat,renameat2,link,linkat"
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EXDEV", "EACCES", "EROFS")
OLD = squashfs("etc", {"rc": b"an older one" * 900}, created=1_600_000_000)
BEFORE: dict[str, bytes | None] = {"nothing there": None, "a torn file there": bytes(5000), "a whole file there": OLD}

IMPORT = """
import getpass, json, os, sys, tenacity, xxhash
from pathlib import Path
from launcher.core.errors import ImageError
from launcher.core.process import Completed
from launcher.rehearsal.enroot_stand_in import squashfs
from tests.commands import ScriptedCommands
from tests.image.support import Store, request

image = squashfs("etc", {"rc": b"x" * 20000}, created=1_700_000_000)

def answer(argv):
    if "import" in argv:
        try:
            with open(argv[argv.index("-o") + 1], "wb") as file:
                file.write(bytes(96) + image[96:])
                file.seek(0)
                file.write(image[:96])
        except OSError as error:
            return 1, f"Write failed because {error.strerror}"
    return "4.1.2"

os.access("/begin", os.F_OK)
try:
    store = Store(ScriptedCommands(answer), command=("enroot",), sleep=lambda seconds: None)
    how = store.ensure(request(Path(sys.argv[1]), lock_wait=5)).how
except ImageError as error:
    os.access("/end", os.F_OK)
    print("refused", error.message.splitlines()[0])
else:
    os.access("/end", os.F_OK)
    print(how)
"""


def attempt(place: Path, calls: str, *inject: str) -> subprocess.CompletedProcess[str]:
    trace = ["strace", "-f", "-o", str(place / "trace"), "-e", f"trace=access,{calls}", *inject] if inject else []
    command = [*trace, sys.executable, "-c", IMPORT, str(place)]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def fresh(place: Path, before: bytes | None) -> None:
    for name in ("images", "tmp"):
        shutil.rmtree(place / name, ignore_errors=True)
    (place / "images").mkdir(parents=True)
    if before is not None:
        (place / "images" / NAME).write_bytes(before)


def points(place: Path, before: bytes | None, calls: str) -> list[tuple[str, int]]:
    """Every call of these kinds between the beginning of the import and its end: (name, how many-th)."""
    fresh(place, before)
    attempt(place, calls)  # the first one after a change writes bytecode, with calls that no later one makes
    fresh(place, before)
    done = attempt(place, calls, "-e", "inject=acct:signal=KILL:when=1")
    assert done.stdout in ("imported\n", "adopted\n"), done.stderr
    found = re.findall(r"^(\d+) +(\w+)\((.*)", (place / "trace").read_text(), re.MULTILINE)
    own = [(name, rest) for pid, name, rest in found if pid == found[0][0]]
    count: Counter[str] = Counter()
    inside, todo = False, []
    for name, rest in own:
        count[name] += 1
        if name == "access":
            inside = rest.startswith('"/begin"') or (inside and not rest.startswith('"/end"'))
        elif inside:
            todo.append((name, count[name]))
    return todo


def state(final: Path, before: bytes | None) -> tuple[str, str | None]:
    """How the final name is, and what is wrong with that."""
    try:
        inspect(final)
    except MissingImage:
        # A torn one is set aside before the whole one takes its name: between these two nothing is there.
        return "missing", "a whole file is gone" if before == OLD else None
    except DamagedImage:
        return "as before", None if final.read_bytes() == before else "torn"
    whole_before = before == OLD
    same = final.read_bytes() == before
    return ("old whole", None) if same else ("new whole", "a whole file was replaced" if whole_before else None)


def clean(place: Path) -> str | None:
    """What `image gc` leaves of a killed import; None for nothing."""
    directory = place / "images"
    contents = ImageDirectory(directory, temporary_grace=0.0)
    for item in contents.garbage():
        contents.remove(item)
    if (place / "tmp").is_dir():
        for item in (temporaries := ImageDirectory(place / "tmp")).dead_temporaries():
            temporaries.remove(item)
    left = {p.name for p in directory.iterdir()} - {NAME, f"{NAME}.json"}
    left |= {p.name for p in (place / "tmp").glob("*")}
    return f"gc leaves {', '.join(sorted(left))}" if left else None


def kills(place: Path, sample: int | None) -> list[Count]:
    """SIGKILL at every call, or at ``sample`` of them for each state of the final name before."""

    def one(place: Path, before: bytes | None, name: str, number: int) -> tuple[str, str | None]:
        fresh(place, before)
        killed = attempt(place, KILLED, "-e", f"inject={name}:signal=KILL:when={number}")
        if killed.returncode == 0:
            return "not killed", "the call did not come"
        outcome, wrong = state(place / "images" / NAME, before)
        again = attempt(place, KILLED)
        if again.stdout not in ("imported\n", "adopted\n", "hit\n"):
            return outcome, f"the next import failed: {again.stdout}{again.stderr[-300:]}"
        return outcome, wrong or clean(place)

    return _over_points(place, "SIGKILL", KILLED, sample, one, [""])


def errors(place: Path, sample: int | None) -> list[Count]:
    """Each error at every write, fsync, rename and link: an import, or an ImageError that says what to do."""

    def one(place: Path, before: bytes | None, name: str, number: int, error: str) -> tuple[str, str | None]:
        fresh(place, before)
        done = attempt(place, FAILED, "-e", f"inject={name}:error={error}:when={number}")
        how = done.stdout.split()[0] if done.stdout else "a crash"
        outcome, wrong = state(place / "images" / NAME, before)
        if done.returncode != 0 or how not in ("imported", "adopted", "hit", "refused"):
            return how, f"crashed: {done.stderr[-400:]}"
        if how == "refused" and before == OLD:
            return how, f"a whole image was refused: {done.stdout}"
        if how != "refused" and not outcome.endswith("whole"):
            return how, f"{how}, and the file is {outcome}"
        left = [p.name for p in (place / "images").iterdir() if p.name.endswith(".part")]
        again = attempt(place, FAILED)
        if again.stdout not in ("imported\n", "adopted\n", "hit\n"):
            return how, f"the next import failed: {again.stdout}{again.stderr[-300:]}"
        return how, wrong or (f"left {left}" if left else None)

    return _over_points(place, "error", FAILED, sample, one, list(ERRORS))


def _over_points(
    place: Path,
    what: str,
    calls: str,
    sample: int | None,
    one: Callable[..., tuple[str, str | None]],
    variants: Sequence[str],
) -> list[Count]:
    counts = []
    for title, before in BEFORE.items():
        todo = [(*point, v) for point in points(place / "points", before, calls) for v in variants]
        if sample is not None:
            step = max(1, len(todo) // sample)
            todo = todo[step // 2 :: step][:sample]
        count = Count(f"{what} at a call, {title}")

        def run(numbered: tuple[int, tuple[str, int, str]], before: bytes | None = before) -> tuple[str, str | None]:
            at, (name, number, variant) = numbered
            own = place / f"place-{at}"
            own.mkdir(parents=True)
            outcome, wrong = one(own, before, name, number, *([variant] if variant else []))
            shutil.rmtree(own, ignore_errors=True)
            return outcome, f"{name} {number} {variant}: {wrong}" if wrong else None

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for outcome, wrong in pool.map(run, enumerate(todo)):
                count.add(outcome, wrong)
        counts.append(count)
    return counts
