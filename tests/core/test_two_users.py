"""Locks, publishing and rights between two users who share a directory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.core.rights import cannot_remove, inherit_rights, make_directories
from tests.people import People, given, mode

LOCK = """
from launcher.core.lease import Lock, LockPace
began = __import__("time").monotonic()
flock = Path(sys.argv[2]) if len(sys.argv) > 2 else None
with Lock(Path(sys.argv[1]), what="it", wait=4, pace=LockPace(lease=0.6, poll=0.05), flock_path=flock) as held:
    print("had" if held.acquired else "not had", held.owner, *held.facts, sep="|")
    print("at once" if __import__("time").monotonic() - began < 2.5 else "waited")
"""
LEFT = "from launcher.core.lease import Lock; Lock(Path(sys.argv[1]), what='x', wait=1).__enter__(); os._exit(0)"


@pytest.mark.parametrize(("rights", "ours"), [(0o2775, False), (0o1777, False), (0o1777, True)], ids=str)
def test_a_stale_owner_file_of_another_user(people: People, rights: int, ours: bool) -> None:
    """It goes where the directory lets it; else whose it is is said at once, and flock alone does."""
    directory = people.directory("locks", people.alice, rights)
    if rights == 0o2775:
        os.chown(directory, -1, people.bob.gid)
    lock, flock = directory / ".x.owner", directory / "x.lock"
    owner = people.bob if ours else people.alice
    owner.do(LEFT, lock)
    said = people.bob.do(LOCK, lock, flock)
    assert said.startswith("had|None|") and said.endswith("at once\n"), said
    if rights == 0o2775 or ours:
        assert "broke the lock of pid" in said and not lock.exists()
    else:
        assert "a stale lock is in the way, of pid" in said and "its process is dead" in said
        assert f"it is owned by {people.alice.name}, who may remove it, or root" in said
        assert lock.exists()


def test_a_lock_that_only_its_owner_may_read(people: People) -> None:
    """It holds as long as it beats; whose it is is said; its lease breaks it."""
    directory = people.directory("locks", people.alice, 0o777)
    lock = given(people.alice, _written(directory / ".x.owner"), 0o600)
    beats = "import time\nfor _ in range(60): os.utime(sys.argv[1]); time.sleep(0.1)"
    with people.alice.start(people.alice.python, "-c", f"import os, sys\n{beats}", lock) as heart:
        said = people.bob.do(LOCK, lock)
        heart.kill()
    assert (
        said.startswith("not had|an unknown process; ") and f"{lock} is owned by {people.alice.name}, mode 0600" in said
    )
    assert people.bob.do(LOCK, lock).startswith("had|None|broke the lock of an unknown process; ")


def _written(path: Path) -> Path:
    path.write_text("{}")
    return path


@pytest.mark.parametrize("leads", ["nowhere", "to a file"])
def test_a_link_in_the_place_of_a_lock(people: People, leads: str) -> None:
    directory = people.directory("locks", people.alice, 0o1777)
    target = directory / "target"
    if leads == "to a file":
        given(people.alice, _written(target), 0o644)
    for name in ("x.owner", "x.lock"):
        (directory / name).symlink_to(target)
        os.chown(directory / name, people.alice.uid, people.alice.gid, follow_symlinks=False)
    said = people.bob.do(LOCK, directory / "x.owner", directory / "x.lock")
    assert said.endswith("at once\n") and "it is a link, which no lock is" in said
    assert f"owned by {people.alice.name}, who may remove it, or root" in said
    assert said.startswith("had|" if leads == "to a file" else "not had|None|")  # flock is on what bash locks too
    assert target.exists() == (leads == "to a file"), "nothing is made through somebody's link"
    (directory / "x.owner").unlink()
    assert people.bob.do(LOCK, directory / "x.owner").startswith("had|")


def test_a_flock_file_of_another_user(people: People) -> None:
    """Ours may be locked by everybody who may write to its directory; of a closed one it is said whose it is."""
    directory = people.directory("locks", people.alice, 0o777)
    people.alice.do(LOCK, directory / "a", directory / ".locks/a.lock", umask=0o077)
    assert (mode(directory / ".locks"), mode(directory / ".locks/a.lock")) == ("777", "666")
    assert people.bob.do(LOCK, directory / "b", directory / ".locks/a.lock") == "had|None\nat once\n"
    closed = given(people.alice, _written(directory / "c.lock"), 0o600)
    said = people.bob.do(LOCK, directory / "b", closed)
    assert said.startswith("had|None|flock does not work on ")
    assert f"({closed} is owned by {people.alice.name}, mode 0600)" in said


def test_who_broke_a_lease_does_not_wait_for_that_owners_flock(people: People) -> None:
    """Its owner is stopped, and has flock on the second file still."""
    directory = people.directory("locks", people.alice, 0o777)
    hold = "import signal\nfrom launcher.core.lease import Lock\n"
    hold += "with Lock(Path(sys.argv[1]), what='it', wait=4, flock_path=Path(sys.argv[2])):\n"
    hold += "    print('in', flush=True); signal.pause()"
    begin = "import os, sys; from pathlib import Path\n"
    words = (directory / "x.owner", directory / "x.lock")
    with people.alice.start(people.alice.python, "-c", begin + hold, *words) as first:
        assert first.stdout is not None and first.stdout.readline() == "in\n"
        first.send_signal(signal.SIGSTOP)
        try:
            said = people.bob.do(LOCK, *words)
        finally:
            first.kill()
    assert said.startswith("had|None|broke the lock of pid ") and said.endswith("at once\n"), said
    assert "is not waited for: it may be the owner whose lock was broken" in said


PUBLISH = """
import ctypes, errno, time
from launcher.core import publish
from launcher.core.publish import publish_new
def no_link(*names, **more): raise OSError(errno.EPERM, "no links here")
def no_call(*names, **more): raise AttributeError
how, final, content, pause = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
if "link" in how: os.link = no_link
if "call" in how: ctypes.CDLL = no_call
real = Path.rename
def late(self, target):
    if Path(target) == final or self == final: print("renames", flush=True); time.sleep(pause)
    return real(self, target)
Path.rename = late
mine = publish.temporary_name(final)
mine.write_text(content)
def whole(path): return path.read_text() != "damaged"
print("published" if publish_new(mine, final, whole=whole) else "theirs", flush=True)
"""


@pytest.mark.parametrize(
    ("without", "damaged"), [("", True), ("link", True), ("link call", False), ("link call", True)]
)
def test_a_whole_file_is_never_replaced_however_late_a_rename_comes(
    people: People, without: str, damaged: bool
) -> None:
    """One is stopped right before its rename while another, who is quick, publishes."""
    directory = people.directory("images", people.alice, 0o777)
    final = directory / "x.sqsh"
    if damaged:
        final.write_text("damaged")
    words = ("-c", "import os, sys; from pathlib import Path\n" + PUBLISH, without, final)
    seen = set()
    with people.alice.start(people.alice.python, *words, "slow", "2") as slow:
        assert slow.stdout is not None and slow.stdout.readline() == "renames\n"
        with people.bob.start(people.bob.python, *words, "quick", "0") as quick:
            while slow.poll() is None or quick.poll() is None:
                with contextlib.suppress(FileNotFoundError):
                    if final.read_text() != "damaged":
                        seen.add(final.stat().st_ino)
                time.sleep(0.002)
            said = [child.communicate()[0].splitlines()[-1] for child in (slow, quick)]
    assert sorted(said) == ["published", "theirs"]
    assert final.read_text() == ("slow" if said[0] == "published" else "quick")
    assert len(seen) == 1, "it was one and the same file all the time"
    assert os.listdir(directory) == ["x.sqsh"]


def test_a_claim_that_nobody_gives_up_is_named(people: People) -> None:
    directory = people.directory("images", people.alice, 0o777)
    final = directory / "x.sqsh"
    given(people.alice, _written(directory / ".x.sqsh.claim.part"), 0o600)
    said = people.bob.do(
        PUBLISH.replace('print("pub', 'publish._ATTEMPTS = 3\nprint("pub'), "link call", final, "q", "0", ends=1
    )
    assert f"if nobody does any more, remove {directory / '.x.sqsh.claim.part'}" in said
    assert not final.exists()


@pytest.mark.parametrize(
    ("directory", "file", "made"),
    [
        (0o700, "600", "700"),
        (0o750, "640", "750"),
        (0o2770, "660", "2770"),
        (0o2775, "664", "2775"),
        (0o1777, "664", "775"),
    ],
)
@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_what_we_make_has_the_rights_of_its_directory(
    tmp_path: Path, directory: int, file: str, made: str, umask: int
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(directory)
    before = os.umask(umask)
    try:
        (place / "file").touch()
        (place / "made").mkdir()
        (place / "script").touch()
        (place / "script").chmod(0o700)
        make_directories(place / "a/b")
    finally:
        os.umask(before)
    for name in ("file", "made", "script"):
        inherit_rights(place / name)
    assert (mode(place / "file"), mode(place / "made")) == (file, made)
    assert mode(place / "script") == f"{int(file, 8) | 0o100 | directory & 0o011:o}"
    assert {mode(place / "a"), mode(place / "a/b")} == {f"{directory:o}"}, "who may make files there may make some here"


def test_the_group_is_that_of_the_directory(people: People) -> None:
    directory = people.directory("shared", people.alice, 0o770)
    people.alice.do("from launcher.core.publish import write_text; write_text(Path(sys.argv[1]), 'x')", directory / "f")
    assert (mode(directory / "f"), (directory / "f").stat().st_gid) == ("660", people.alice.gid)


def test_who_may_remove_something(people: People) -> None:
    sticky, closed = people.directory("a", people.alice, 0o1777), people.directory("b", people.alice, 0o755)
    for directory in (sticky, closed):
        given(people.alice, _written(directory / "f"), 0o666)
    given(people.bob, _written(sticky / "mine"), 0o600)
    code = "from launcher.core.rights import cannot_remove\nfor p in sys.argv[1:]: print(cannot_remove(Path(p)))"
    said = people.bob.do(code, sticky / "f", closed / "f", sticky / "mine").splitlines()
    assert said[0] == f"owned by {people.alice.name}, who may remove it, or root"
    assert said[1] == f"{closed} is owned by {people.alice.name}, mode 0755: its owner may remove it, or root"
    assert said[2] == "None"
    assert cannot_remove(closed / "f") is None, "root may"
