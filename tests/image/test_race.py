"""Several importers of one image, killed and stopped ones among them: readers of the final name see nothing, or all.

The small form of the race that was measured for the bash launchers: with `rm -f; enroot import FINAL` every trial shows
a torn file. `LAUNCHER_RACE_TRIALS` makes it as large as wished.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.core.publish import TEMPORARY_SUFFIX
from launcher.image.squash import DamagedImage, Listing, MissingImage, inspect, listing_ok
from launcher.image.store import ImageStore, stale_parts
from launcher.rehearsal.enroot_stand_in import FAULTS
from tests.image.support import ENROOT, NAME, EagerLock, request, until

IMPORTERS = 4
TRIALS = int(os.environ.get("LAUNCHER_RACE_TRIALS", "1"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def importer(place: Path, *options: str, faults: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.image.importer", str(place), *options],
        cwd=ROOT,
        env={**os.environ, FAULTS: faults},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def watch(final: Path, children: list[subprocess.Popen[str]]) -> tuple[int, int]:
    """(looks, torn ones) at the final name until all children have ended."""
    looks = torn = 0
    while any(child.poll() is None for child in children):
        looks += 1
        try:
            inspect(final)
        except MissingImage:
            pass
        except DamagedImage:
            torn += 1
        time.sleep(0.001)
    return looks, torn


def leftovers(place: Path) -> list[str]:
    return [str(path) for path in place.rglob("*") if path.name.endswith((TEMPORARY_SUFFIX, ".owner"))]


@pytest.mark.parametrize("lock", ["lock", "no-lock"])
def test_readers_see_nothing_or_the_whole_file_and_nobody_fails(place: Path, lock: str) -> None:
    final = place / "images" / NAME
    for _ in range(TRIALS):
        children = [importer(place, lock, faults="slow=0.15,size=200000") for _ in range(IMPORTERS)]
        looks, torn = watch(final, children)
        said = [child.communicate() for child in children]
        assert [child.returncode for child in children] == [0] * IMPORTERS, said
        assert looks > 50
        assert torn == 0
        assert listing_ok(final) is not Listing.DAMAGED
        how = sorted(out.strip() for out, _ in said)
        if lock == "lock":
            assert how == ["hit", "hit", "hit", "imported"], "one does the work"
        else:
            assert how.count("imported") == 1, "one is published, the others are dropped"
        assert leftovers(place) == []
        for path in place.glob("images/*"):
            path.unlink()


def test_the_watcher_sees_what_an_import_in_place_shows(place: Path) -> None:
    """The control of the test above: what the bash launchers do is seen to be torn."""
    final = place / "images" / NAME
    command = [*ENROOT, "import", "-o", str(final), "docker://x"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, FAULTS: "slow=0.3"}, stderr=subprocess.DEVNULL
    ) as child:
        _, torn = watch(final, [child])  # type: ignore[list-item]
    assert torn > 20


def writing(place: Path, child: subprocess.Popen[str]) -> Path:
    """The temporary that the child's enroot is writing to, once it is."""
    pattern = f".{NAME}.*.{child.pid}.*{TEMPORARY_SUFFIX}"
    found: Path = until(lambda: next((p for p in place.glob(f"images/{pattern}") if p.stat().st_size > 96), None))
    return found


def end_enroot_of(child: subprocess.Popen[str]) -> None:
    """End the enroot that the child started in a session of its own."""
    for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        os.killpg(int(pid), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child of a child in /proc")
@pytest.mark.parametrize("lock", ["lock", "no-lock"])
def test_a_killed_importer_costs_the_next_one_nothing(place: Path, lock: str) -> None:
    first = importer(place, lock, faults="slow=30")
    part = writing(place, first)
    os.kill(first.pid, signal.SIGSTOP)  # so that killing its enroot first does not let it clean up
    end_enroot_of(first)
    first.kill()
    first.communicate()
    assert part.exists()

    began = time.monotonic()
    second = importer(place, lock)
    _, torn = watch(place / "images" / NAME, [second])
    assert (second.communicate(), second.returncode) == (("imported\n", ""), 0)
    assert time.monotonic() - began < 5
    assert torn == 0
    assert part in stale_parts(place / "images")
    assert stale_parts(place / "tmp"), "enroot's own temporaries, too"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the child of a child in /proc")
def test_an_importer_stopped_past_its_lease_goes_on_and_harms_nothing(place: Path) -> None:
    class Impatient(EagerLock):
        def __init__(self, path: Path, **options: object) -> None:
            super().__init__(path, lease=0.5, **options)

    first = importer(place, faults="slow=1.0")
    writing(place, first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        record = ImageStore(enroot=ENROOT, lock=Impatient).ensure(request(place))
        assert record.how == "imported"
        assert any("no heartbeat" in fact for fact in record.facts)
        published = (place / "images" / NAME).stat()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    out, err = first.communicate(timeout=20)
    assert (first.returncode, out) == (0, "hit\n"), err
    now = (place / "images" / NAME).stat()
    assert (now.st_ino, now.st_mtime_ns) == (published.st_ino, published.st_mtime_ns), "a whole file is not replaced"
    assert leftovers(place) == []
