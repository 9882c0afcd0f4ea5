"""Importers that are killed or stopped, beside others: readers of the final name see nothing, or all.

Importers that race to the end are in tests/faults/image/races.py. With the bash launchers' `rm -f; enroot import FINAL`
every trial shows a torn file, as it does here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.lease import LockPace
from launcher.core.publish import TEMPORARY_SUFFIX, dead_temporaries
from launcher.rehearsal.enroot_stand_in import FAULTS
from tests.image.support import ENROOT, NAME, EagerLock, Store, leftovers, look_while, request, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def importer(image_root: Path, *options: str, faults: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.image.importer", str(image_root), *options],
        cwd=ROOT,
        env={**os.environ, FAULTS: faults},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_watcher_sees_what_an_import_in_place_shows(image_root: Path) -> None:
    """The control of the other tests: what the bash launchers do is seen to be torn."""
    final = image_root / "images" / NAME
    command = [*ENROOT, "import", "-o", str(final), "docker://x"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, FAULTS: "slow=2"}, stderr=subprocess.DEVNULL) as child:
        looks = look_while(lambda: child.poll() is None, final)
    assert looks.torn > 20


def writing(image_root: Path, child: subprocess.Popen[str]) -> Path:
    """The temporary that the child's enroot is writing to, once it is."""
    pattern = f".{NAME}.*.{child.pid}.*{TEMPORARY_SUFFIX}"

    def large() -> Path | None:
        for path in image_root.glob(f"images/{pattern}"):
            with contextlib.suppress(FileNotFoundError):  # the store tries the directory with a file of such a name
                if path.stat().st_size > 96:
                    return path
        return None

    found: Path = until(large)
    return found


def end_enroot_of(child: subprocess.Popen[str]) -> None:
    """End the enroot that the child started in a session of its own."""
    for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        os.killpg(int(pid), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child of a child in /proc")
@pytest.mark.parametrize("lock", ["lock", "no-lock"])
def test_a_killed_importer_costs_the_next_one_nothing(image_root: Path, lock: str) -> None:
    first = importer(image_root, lock, faults="slow=30")
    part = writing(image_root, first)
    os.kill(first.pid, signal.SIGSTOP)  # so that killing its enroot first does not let it clean up
    end_enroot_of(first)
    first.kill()
    first.communicate()
    assert part.exists()

    second = importer(image_root, lock)
    looks = look_while(lambda: second.poll() is None, image_root / "images" / NAME)
    out, facts = second.communicate()
    assert (out, second.returncode) == ("imported\n", 0), facts
    # It found the owner dead, and waited neither for the lease nor until it went on without the lock.
    broken = re.fullmatch(rf"broke the lock of pid {first.pid} on .*: its process is dead\n", facts)
    assert broken if lock == "lock" else facts == ""
    assert looks.torn == 0
    assert part in dead_temporaries(image_root / "images")
    assert dead_temporaries(image_root / "tmp"), "enroot's own temporaries, too"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child of a child in /proc")
def test_an_importer_stopped_past_its_lease_goes_on_and_harms_nothing(image_root: Path) -> None:
    class Impatient(EagerLock):
        def __init__(self, path: Path, **options: object) -> None:
            super().__init__(path, pace=LockPace(lease=0.5, poll=0.02), **options)

    first = importer(image_root, faults="slow=1.0")
    writing(image_root, first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        record = Store(lock=Impatient).ensure(request(image_root))
        assert record.how == "imported"
        assert any("no heartbeat" in fact for fact in record.notes)
        published = (image_root / "images" / NAME).stat()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, out) == (0, "hit\n"), err
    now = (image_root / "images" / NAME).stat()
    assert (now.st_ino, now.st_mtime_ns) == (published.st_ino, published.st_mtime_ns), "a whole file is not replaced"
    assert leftovers(image_root) == []
