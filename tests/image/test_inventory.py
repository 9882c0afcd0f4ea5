"""What lies in an image directory, what of it is whole, and what may go."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.errors import ImageError
from launcher.core.lease import Lock
from launcher.core.leftovers import Leftover
from launcher.image.inventory import ImageDirectory, adopt, verify
from launcher.image.squash import Sidecar, file_hash, sidecar_path
from tests.image.squashfs_tools import mksquashfs, needs_squashfs_tools
from tests.image.support import REFERENCE, Store, process, request, small_image

DAY = 86400.0
DEAD = 2**22 + 1
URI = "docker://registry-1.docker.io#a/b:1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


def old(path: Path, days: float = 40) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def names(found: list[Leftover]) -> list[str]:
    return sorted(item.path.name for item in found)


def test_images_are_listed_with_what_is_known_of_them(tmp_path: Path, directory: Path) -> None:
    record = Store().ensure(request(tmp_path))
    small_image(directory / "bash.sqsh")
    (directory / "torn.sqsh").write_bytes(bytes(5000))
    (directory / "notes.txt").touch()
    bash, mine, torn = ImageDirectory(directory, {str(record.squash): ["run-1"]}).images()
    assert (mine.squash, mine.users, mine.problem) == (record.squash, ("run-1",), None)
    assert mine.sidecar is not None and mine.sidecar.reference == REFERENCE
    assert (bash.sidecar, bash.problem) == (None, None)
    assert "begins with zeros" in (torn.problem or "")


def test_a_link_to_itself_is_an_image_that_cannot_be_read(directory: Path) -> None:
    (directory / "loop.sqsh").symlink_to("loop.sqsh")
    (loop,) = ImageDirectory(directory, {str(directory / "loop.sqsh"): ["run-1"]}).images()
    assert (loop.problem or "").startswith("cannot be read: ") and loop.users == ("run-1",)


def test_a_look_is_no_use(directory: Path) -> None:
    image = old(small_image(directory / "x.sqsh"))
    for _ in range(2):
        (found,) = ImageDirectory(directory).images()
        assert time.time() - found.used > 39 * DAY
    assert time.time() - image.stat().st_atime > 39 * DAY


def test_a_hit_is_a_use(tmp_path: Path, directory: Path) -> None:
    record = Store().ensure(request(tmp_path))
    old(record.squash), old(sidecar_path(record.squash))
    note = Sidecar.read(record.squash)
    assert note is not None
    dataclasses.replace(note, mtime_ns=record.squash.stat().st_mtime_ns).write(record.squash)
    old(sidecar_path(record.squash))
    assert names(ImageDirectory(directory).garbage()) == [record.squash.name]
    assert Store().ensure(request(tmp_path)).how == "hit"
    assert ImageDirectory(directory).garbage() == []


def test_what_a_live_run_has_stays_and_what_is_young_stays(directory: Path) -> None:
    used, unused = (old(small_image(directory / name)) for name in ("used.sqsh", "unused.sqsh"))
    small_image(directory / "young.sqsh")
    garbage = ImageDirectory(directory, {str(used): ["run-1"]}).garbage()
    assert names(garbage) == [unused.name]
    assert garbage[0].why == "unused for 40.0 days"


def test_an_image_goes_with_its_record_unless_it_came_into_use(directory: Path) -> None:
    image = old(small_image(directory / "x.sqsh"))
    adopt(image, "a/b:1", URI)
    old(sidecar_path(image)), old(image)
    (item,) = ImageDirectory(directory).garbage()
    with Lock(directory / ".x.sqsh.owner", what="an import", wait=0):
        assert ImageDirectory(directory).remove(item) is not None, "somebody imports it"
    assert image.exists()
    assert ImageDirectory(directory).remove(item) is None
    assert list(directory.iterdir()) == []


def test_what_dead_processes_left_goes_and_what_may_live_stays(directory: Path) -> None:
    host = os.uname().nodename[:32]
    dead = directory / f".x.sqsh.{host}.{DEAD}.0123abcd.part"
    dead.mkdir()
    (dead / "layer").write_bytes(bytes(1000))
    for name in (f".x.sqsh.{host}.{os.getpid()}.0123abcd.part", ".x.sqsh.login-2.7.0123abcd.part", "x.sqsh"):
        (directory / name).write_bytes(bytes(10))
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    lock = directory / ".y.sqsh.owner"
    with process(
        sys.executable,
        "-c",
        "import sys, os; from pathlib import Path; from launcher.core.lease import Lock\n"
        "Lock(Path(sys.argv[1]), what='x', wait=1).__enter__(); os._exit(0)",
        str(lock),
    ) as owner:
        assert owner.wait() == 0
    orphan = directory / "gone.sqsh.json"
    orphan.touch()
    old(orphan)
    garbage = ImageDirectory(directory).garbage()
    assert names(garbage) == sorted([dead.name, lock.name, orphan.name])
    assert next(item.size for item in garbage if item.path == dead) >= 1000
    assert all(ImageDirectory(directory).remove(item) is None for item in garbage)
    assert len(list(directory.iterdir())) == 3
    assert names(ImageDirectory(directory, temporary_grace=-1.0).garbage()) == sorted(
        p.name for p in directory.iterdir()
    )


def test_a_lock_that_a_live_process_took_meanwhile_stays(directory: Path) -> None:
    lock = directory / ".y.sqsh.owner"
    lock.write_bytes(b"torn")
    old(lock)
    (item,) = ImageDirectory(directory).garbage()
    lock.unlink()
    with Lock(lock, what="an import", wait=0) as held:
        assert held.acquired
        assert ImageDirectory(directory).remove(item) is not None
        assert lock.exists()


def test_another_hosts_clock_removes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are by the file server: a host whose clock is a year ahead sees the same."""
    small_image(directory / "x.sqsh")
    now = time.time() + 365 * DAY
    monkeypatch.setattr(time, "time", lambda: now)
    assert ImageDirectory(directory).garbage() == []


@needs_squashfs_tools
def test_each_level_of_a_check_says_what_it_found(directory: Path) -> None:
    image = mksquashfs(directory / "x.sqsh")
    (found,) = ImageDirectory(directory).images()
    assert verify(found, deep=True) == (
        "whole",
        ["lists: whole", "content: readable; no hash was recorded (`launcher image adopt` records one)"],
    )
    adopt(image, "a/b:1", URI)
    assert verify(ImageDirectory(directory).images()[0], deep=True) == (
        "whole",
        ["lists: whole", "content: as recorded"],
    )
    before = image.stat()
    with image.open("r+b") as file:  # a data block, whose damage neither superblock nor lists show
        file.seek(5000)
        file.write(b"\xff" * 16)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    (found,) = ImageDirectory(directory).images()
    assert verify(found)[0] == "whole"
    verdict, lines = verify(found, deep=True)
    assert verdict == "damaged"
    assert "was recorded" in lines[-1]


def test_adopting_twice_keeps_the_record_and_another_image_is_refused(directory: Path) -> None:
    image = small_image(directory / "x.sqsh")
    first = adopt(image, "a/b:1", URI)
    assert first.hash == file_hash(image)
    assert adopt(image, "a/b:1", URI) == first
    with pytest.raises(ImageError, match="it is recorded as a/b:1"):
        adopt(image, "c/d:1", "docker://registry-1.docker.io#c/d:1")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runner", "local", "--state", str(tmp_path / "state")]
    assert main(["image", "import", "nginx:1.27.4", *where]) == 0
    squash = Path(capsys.readouterr().out.strip())
    assert main(["image", "list", "--json", *where]) == 0
    (output,) = json.loads(capsys.readouterr().out)
    assert (output["squash"], output["reference"], output["live_runs"]) == (str(squash), "nginx:1.27.4", [])
    assert main(["image", "list", *where]) == 0
    assert main(["image", "verify", "--deep", *where]) == 0
    assert "content: as recorded" in capsys.readouterr().out
    torn = squash.with_name("torn.sqsh")
    torn.write_bytes(bytes(100))
    assert main(["image", "verify", "--offline", *where]) == 3
    assert "1 of 2 are not whole: torn.sqsh" in capsys.readouterr().err
    old(torn)
    options = ["--directory", str(squash.parent)]
    assert main(["image", "gc", *options]) == 0
    assert f"would remove: {torn}" in capsys.readouterr().out
    assert torn.exists()
    assert main(["image", "gc", "--apply", *options]) == 0
    assert not torn.exists()
    assert squash.exists()
    assert main(["image", "list"]) == 2
    assert main(["image", "adopt", str(squash), "nginx:1.27.4", *options]) == 0
    assert main(["image", "gc", "--grace", "0", "--apply", *options]) == 0
    assert not squash.exists()
