"""Marks of use in the image directory: whose image stays, for whoever collects garbage there."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from launcher.image import usage
from launcher.image.inventory import ImageDirectory, adopt
from launcher.image.squash import Sidecar, inspect, sidecar_path
from launcher.run.image_usage import is_run_over, mark_used_by, unmark
from launcher.run.record import RecordedJob
from tests.image.support import small_image
from tests.run.driving import ONE, LauncherUser
from tests.run.runs import a_run, plan_on

DAY = 86400.0


@pytest.fixture
def squash(tmp_path: Path) -> Path:
    """An image that nobody used for 40 days."""
    (tmp_path / "images").mkdir()
    squash = small_image(tmp_path / "images/x.sqsh")
    adopt(squash, "a/b:1", "docker://registry-1.docker.io#a/b:1")
    for path in (squash, sidecar_path(squash)):
        aged(path, 40)
    note = Sidecar.read(squash)
    assert note is not None
    dataclasses.replace(note, mtime_ns=inspect(squash).mtime_ns).write(squash)
    aged(sidecar_path(squash), 40)
    return squash


def aged(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def forgotten(squash: Path, days: float = 40) -> None:
    """As if its marks had been made long ago."""
    for path in (squash.parent / ".uses").rglob("*"):
        aged(path, days)


def gone(squash: Path) -> list[str]:
    return [item.path.name for item in ImageDirectory(squash.parent, is_over=is_run_over).garbage()]


def test_a_mark_of_anybody_keeps_an_image_until_it_is_released(squash: Path, tmp_path: Path) -> None:
    assert gone(squash) == ["x.sqsh"]
    assert usage.add_mark(squash, "r1", tmp_path / "theirs/r1") is None
    assert usage.add_mark(squash, "r1", tmp_path / "another/r1") is None
    forgotten(squash, 20)
    assert gone(squash) == []
    (image,) = ImageDirectory(squash.parent).images()
    assert [name.partition("@")[0] for name in image.users] == ["r1", "r1"]
    usage.remove_marks(squash.parent, "r1", tmp_path / "theirs/r1")
    (image,) = ImageDirectory(squash.parent).images()
    assert len(image.users) == 1, "a run of the same name is another one's"
    usage.remove_marks(squash.parent, "r1", tmp_path / "another/r1")
    assert ImageDirectory(squash.parent).images()[0].users == ()
    assert gone(squash) == [], "its use has just ended"
    forgotten(squash)
    aged(sidecar_path(squash), 40)
    assert gone(squash) == ["x.sqsh"]


def test_a_mark_that_was_torn_counts_and_one_that_is_too_old_does_not(squash: Path, tmp_path: Path) -> None:
    usage.add_mark(squash, "r1", tmp_path / "runs/r1")
    (mark,) = (squash.parent / ".uses/x.sqsh").iterdir()
    mark.write_bytes(b'{"run": ')
    forgotten(squash, 20)
    assert gone(squash) == []
    forgotten(squash, 22)
    assert gone(squash) == [mark.name]
    aged(squash.parent / ".uses/x.sqsh", 40)
    assert gone(squash) == ["x.sqsh", mark.name]
    for item in ImageDirectory(squash.parent).garbage():
        assert ImageDirectory(squash.parent).remove(item) is None
    assert list(squash.parent.iterdir()) == []


def test_a_run_marks_what_it_uses_until_it_is_settled(squash: Path, tmp_path: Path) -> None:
    plan = plan_on("local", tmp_path)
    moved = dataclasses.replace(plan, images=(dataclasses.replace(plan.images[0], squash=str(squash)),))
    record = a_run(tmp_path, moved).record
    mark_used_by(record)(squash)
    forgotten(squash)
    aged(next((squash.parent / ".uses/x.sqsh").iterdir()), 1)
    record.update(state="failed", job=RecordedJob("7", None, "/x", "/x/l"))
    unmark(record)
    assert gone(squash) == [], "its job may still map the image"
    record.update(job=RecordedJob("7", None, "/x", "/x/l", over=True))
    assert [name.partition("@")[0] for name in gone(squash)] == ["x.sqsh", "r1"], "the record proves it over"
    unmark(record)
    assert list((squash.parent / ".uses/x.sqsh").iterdir()) == []


def test_where_no_mark_can_be_made_that_is_said(tmp_path: Path) -> None:
    record = a_run(tmp_path).record
    (tmp_path / "images").mkdir()
    (tmp_path / "images/.uses").touch()
    mark_used_by(record)(tmp_path / "images/x.sqsh")
    messages = [event["text"] for event in record.events()]
    assert messages == ["x.sqsh cannot be marked as used by this run: File exists; gc of others may remove it"] or (
        "Not a directory" in messages[0]
    )


def test_a_run_that_comes_between_a_look_and_the_removal_keeps_its_image(
    squash: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run marks first and looks then. It looked while the image was there; so its mark is seen."""
    (item,) = ImageDirectory(squash.parent).garbage()
    content, calls = squash.read_bytes(), 0
    marks = usage.read_marks

    def comes(path: Path) -> list[usage.ImageUse]:
        nonlocal calls
        uses, calls = marks(path), calls + 1
        if calls == 1:
            usage.add_mark(squash, "r1", tmp_path / "runs/r1")
        return uses

    monkeypatch.setattr(usage, "read_marks", comes)
    assert ImageDirectory(squash.parent).remove(item) is not None
    assert calls == 2
    assert squash.read_bytes() == content
    assert [path.name for path in squash.parent.iterdir() if path.name.endswith(".part")] == []
    note = Sidecar.read(squash)
    assert note is not None and note.fits(inspect(squash))


def test_gc_of_another_user_keeps_what_a_run_maps_until_its_job_is_over(tmp_path: Path) -> None:
    user = LauncherUser(tmp_path)
    process = user.start("run", *ONE, "--runner", "local", "--run-id", "r", LAUNCHER_REHEARSAL_FAULTS="hang")
    try:
        user.wait_for(lambda record: bool(record["state"] == "running"))
        directory = user.state / "squash"
        theirs = ("--directory", str(directory), "--state", str(tmp_path / "another"))
        mine = sorted(path.name for path in directory.glob("*.sqsh"))
        assert mine
        assert f"r@{socket.gethostname()}" in user.launcher("image", "list", *theirs)
        user.launcher("image", "gc", "--grace", "0", "--apply", *theirs)
        assert sorted(path.name for path in directory.glob("*.sqsh")) == mine
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    user.launcher("image", "gc", "--grace", "0", "--apply", *theirs)
    assert list(directory.glob("*.sqsh")) == []
    assert not (directory / ".uses").exists()
