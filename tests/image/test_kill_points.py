"""SIGKILL at any system call of an import: the final name is never torn, and the next import succeeds.

strace sends the signal at the n-th call of a kind. A few points are taken; ``LAUNCHER_KILL_POINTS=all`` takes
every one (some 170, for each of two states of the final name before).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launcher.image.squash import DamagedImage, MissingImage, inspect
from launcher.image.store import stale_parts
from launcher.publish import TEMPORARY_SUFFIX
from tests.image.support import NAME

ROOT = Path(__file__).resolve().parents[2]
CALLS = (
    "openat,write,rename,renameat,renameat2,link,linkat,unlink,unlinkat,fsync,chmod,fchmod,fchmodat,utimensat,mkdir,"
    "mkdirat,rmdir,close,newfstatat,lseek,exit_group"
)
SAMPLE = 2

IMPORT = """
import getpass, json, os, sys, tenacity
from pathlib import Path
from launcher.image.store import ImageStore
from launcher.process import Completed
from launcher.rehearsal.squashfs import squashfs
from tests.image.support import request

image = squashfs("etc", {"rc": b"x" * 20000}, created=1_700_000_000)

def runner(argv, *, timeout, cwd=None, env=None, input=None):
    if "import" in argv:
        with open(argv[argv.index("-o") + 1], "wb") as file:
            file.write(bytes(96) + image[96:])
            file.seek(0)
            file.write(image[:96])
    return Completed(tuple(argv), 0, "4.1.2", "", 0.0)

os.access("/begin", os.F_OK)
print(ImageStore(runner).ensure(request(Path(sys.argv[1]), lock_wait=5.0)).how)
"""


def attempt(place: Path, *inject: str) -> subprocess.CompletedProcess[str]:
    trace = ["strace", "-f", "-o", str(place / "trace"), "-e", f"trace=access,{CALLS}", *inject] if inject else []
    command = [*trace, sys.executable, "-c", IMPORT, str(place)]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def fresh(place: Path, before: bytes | None) -> None:
    for name in ("images", "tmp"):
        shutil.rmtree(place / name, ignore_errors=True)
    (place / "images").mkdir()
    if before is not None:
        (place / "images" / NAME).write_bytes(before)


def points(place: Path) -> list[tuple[str, int]]:
    """Every system call between the beginning of the import and the end of the process: (name, how many-th)."""
    done = attempt(place, "-e", "inject=acct:signal=KILL:when=1")
    assert done.stdout == "imported\n", done.stderr
    calls = re.findall(r"^(\d+) +(\w+)\((.*)", (place / "trace").read_text(), re.MULTILINE)
    own = [(name, rest) for pid, name, rest in calls if pid == calls[0][0]]
    begin = next(at for at, (_, rest) in enumerate(own) if rest.startswith('"/begin"'))
    count = Counter(name for name, _ in own[:begin])
    found = []
    for name, _ in own[begin + 1 :]:
        count[name] += 1
        found.append((name, count[name]))
    return [(name, number) for name, number in found if name != "access"]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("before", [None, bytes(5000)], ids=["nothing there", "a damaged file there"])
def test_a_kill_at_any_system_call_leaves_what_the_next_import_can_use(tmp_path: Path, before: bytes | None) -> None:
    final = tmp_path / "images" / NAME
    fresh(tmp_path, before)
    todo = points(tmp_path)
    assert len(todo) > 100
    if os.environ.get("LAUNCHER_KILL_POINTS") != "all":
        todo = todo[3 :: len(todo) // SAMPLE]
    seen: Counter[str] = Counter()
    for name, number in todo:
        fresh(tmp_path, before)
        killed = attempt(tmp_path, "-e", f"inject={name}:signal=KILL:when={number}")
        assert killed.returncode != 0, (name, number)
        try:
            inspect(final)
            state = "whole"
        except MissingImage:
            state = "missing"
        except DamagedImage:
            state = "damaged"
            assert final.read_bytes() == before, (name, number)
        again = attempt(tmp_path)
        assert again.stdout in ("imported\n", "adopted\n", "hit\n"), (name, number, again.stderr)
        assert inspect(final).size > 20000
        for directory in (tmp_path / "images", tmp_path / "tmp"):
            left = sorted(directory.glob(f"*{TEMPORARY_SUFFIX}")) if directory.exists() else []
            assert sorted(stale_parts(directory) if directory.exists() else ()) == left, (name, number)
        seen[f"{state}, then {again.stdout.strip()}"] += 1
    print(len(todo), dict(seen))
