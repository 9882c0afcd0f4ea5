"""A lock that saves work: real processes that die, stop, come from elsewhere, or only know flock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.core import lease as lock_module
from launcher.core.lease import Lock, LockOwner, LockPace
from tests.image.support import process, until

HOLD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
from pathlib import Path
from launcher.core.lease import Lock, LockPace
with Lock(Path(sys.argv[1]), what="a test", wait=5, pace=LockPace(beat=0.05)) as held:
    print("held" if held.acquired else held.owner, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with process(sys.executable, "-c", HOLD, str(path), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child


def quick(path: Path, *, wait: float = 5.0, **more: Any) -> Lock:
    pace = LockPace(**{"poll": 0.01, **{name: more.pop(name) for name in ("lease", "beat") if name in more}})
    return Lock(path, what="this test", wait=wait, pace=pace, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".x.sqsh.owner"


def write_owner(path: Path, **changes: Any) -> None:
    owner = json.loads(LockOwner.here("something").to_json())
    path.write_text(json.dumps({**owner, **changes}))


def test_the_owner_file_says_who_and_goes_away(path: Path) -> None:
    path.parent.chmod(0o755)
    with quick(path) as held:
        assert held.acquired
        assert held.owner is None
        owner = LockOwner.from_json(path.read_bytes())
        assert (owner.pid, owner.what) == (os.getpid(), "this test")
        assert not owner.is_dead
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("missing", [{}, {"pid": 0}, {"boot_id": ""}, {"pid_namespace": ""}], ids=str)
def test_an_owner_is_called_dead_only_where_its_file_proves_it(path: Path, missing: dict[str, Any]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(60)
    write_owner(path, **{"pid": ended.pid, "pid_started": 1, **missing})
    assert LockOwner.from_json(path.read_bytes()).is_dead is (missing == {})


def test_it_goes_away_after_an_error(path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the block"), quick(path):
        raise RuntimeError("in the block")
    assert list(path.parent.iterdir()) == []


def test_a_held_lock_is_not_had_and_its_owner_is_named(path: Path) -> None:
    told: list[str] = []
    with holder(path) as other:
        with quick(path, wait=0.1, on_wait=told.append) as held:
            assert not held.acquired
            assert held.owner is not None
            assert f"pid {other.pid} on " in held.owner
            assert held.owner.endswith(": a test")
        assert told == [held.owner], "told once, not at every look"
        assert LockOwner.from_json(path.read_bytes()).pid == other.pid, "what is not ours stays"


def test_it_is_had_as_soon_as_the_owner_lets_go(path: Path) -> None:
    with quick(path), process(sys.executable, "-c", HOLD, str(path), stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert select.select([other.stdout], [], [], 0.3)[0] == [], "it waits"
        assert LockOwner.from_json(path.read_bytes()).pid == os.getpid()
        path.unlink()
        assert other.stdout.readline() == "held\n"


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_replaced_at_once(path: Path, reaped: bool) -> None:
    with holder(path) as other:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        began = time.monotonic()
        with quick(path, wait=60) as held:
            assert held.acquired
            assert time.monotonic() - began < 50
            assert [fact for fact in held.facts if f"pid {other.pid}" in fact and "process is dead" in fact]


def test_a_pid_given_out_again_is_not_its_owner(path: Path) -> None:
    write_owner(path, pid=os.getppid(), pid_started=1)
    with quick(path, wait=1) as held:
        assert held.acquired


@pytest.mark.parametrize(
    "elsewhere", [{"host": "login-2"}, {"boot_id": "another"}, {"boot_id": ""}, {"pid_namespace": "pid:[1]"}]
)
def test_a_pid_of_another_machine_proves_nothing(path: Path, elsewhere: dict[str, str]) -> None:
    write_owner(path, pid=2**22 + 1, **elsewhere)
    with quick(path, wait=0.05) as held:
        assert not held.acquired


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{", b'{"pid": "x", "host": 3}', b"\xff\xfe"])
def test_an_owner_that_cannot_be_read_is_broken_by_its_lease_only(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with quick(path, wait=0.03) as held:
        assert not held.acquired
    with quick(path, lease=0.06) as held:
        assert held.acquired
        assert "no heartbeat" in held.facts[0]


def test_a_living_owner_keeps_the_lock_beyond_any_lease(path: Path) -> None:
    with holder(path), quick(path, wait=0.6, lease=0.3) as held:
        assert not held.acquired


def test_a_stopped_owner_loses_it_after_the_lease_and_does_no_harm_when_it_goes_on(path: Path) -> None:
    with holder(path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        began = time.monotonic()
        with quick(path, lease=0.5, wait=60) as held:
            assert held.acquired
            assert 0.4 < time.monotonic() - began < 50
            os.kill(other.pid, signal.SIGCONT)
            other.terminate()  # it leaves its block and releases what it believes to hold
            other.wait(10)
            assert LockOwner.from_json(path.read_bytes()).pid == os.getpid()
    assert not path.exists()


def test_who_was_robbed_knows_it(path: Path) -> None:
    robbed = quick(path)
    with robbed as held:
        assert held.acquired
        assert not robbed.lost
        path.rename(path.with_name("aside"))
        assert robbed.lost
        write_owner(path)
        assert robbed.lost
    assert path.exists(), "the other's file stays"


def test_an_observer_that_was_stopped_has_observed_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by an hour between two looks: no proof of anything."""
    write_owner(path, host="login-2")
    now = iter([0.0, 0.0, 0.0, 3600.0, 3600.01, 7200.0])
    monkeypatch.setattr(lock_module, "monotonic", lambda: next(now))
    with Lock(path, what="x", wait=7000, sleep=lambda _: None) as held:
        assert not held.acquired
    monkeypatch.setattr(lock_module, "monotonic", iter(range(10**6)).__next__)
    with Lock(path, what="x", wait=7000, pace=LockPace(lease=2), sleep=lambda _: None) as held:
        assert held.acquired, "and looks that add up to the lease are one"


def test_what_was_not_judged_is_put_back(path: Path) -> None:
    """Between our judging an owner dead and taking its file away, another process broke it first and took the lock."""
    write_owner(path, pid=1, token="judged")
    judged = lock_module.read_owner(path)
    assert judged is not None
    path.unlink()
    write_owner(path, token="the new one")
    inode = path.stat().st_ino
    assert not lock_module.remove_if_unchanged(path, judged)
    assert path.stat().st_ino == inode
    assert b"the new one" in path.read_bytes()
    found = lock_module.read_owner(path)
    assert found is not None
    os.utime(path)
    assert not lock_module.remove_if_unchanged(path, found), "nor one that beat since"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_many_breakers_of_one_dead_owner_never_hold_it_together(path: Path) -> None:
    write_owner(path, pid=2**22 + 1)
    program = (
        "import sys, os, time\nfrom pathlib import Path\nfrom launcher.core.lease import Lock, LockPace\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(15):\n"
        "    with Lock(path, what='x', wait=20, pace=LockPace(poll=0.001)) as held:\n"
        "        assert held.acquired, held\n"
        "        os.close(os.open(path.with_name('inside'), os.O_CREAT | os.O_EXCL))\n"
        "        time.sleep(0.001)\n"
        "        os.unlink(path.with_name('inside'))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    assert list(path.parent.iterdir()) == []


needs_flock = pytest.mark.skipif(not shutil.which("flock"), reason="flock(1) is not installed")


@needs_flock
def test_a_bash_launcher_that_holds_flock_is_waited_for(path: Path, tmp_path: Path) -> None:
    flock = tmp_path / "x.sqsh.lock"
    with process("flock", str(flock), "sleep", "60", start_new_session=True) as bash:
        until(lambda: flock.exists() and subprocess.run(["flock", "-n", str(flock), "true"]).returncode == 1)
        with quick(path, wait=0.2, flock_path=flock) as held:
            assert not held.acquired
            assert held.owner == f"an unnamed process with flock on {flock}"
        assert not path.exists(), "who does not get both keeps neither"
        told: list[str] = []

        def let_go(owner: str) -> None:
            told.append(owner)
            os.killpg(bash.pid, signal.SIGKILL)

        with quick(path, flock_path=flock, on_wait=let_go) as held:
            assert held.acquired
            assert told == [f"an unnamed process with flock on {flock}"]
    assert flock.exists(), "others may wait on that inode"


@needs_flock
def test_a_bash_launcher_waits_for_us(path: Path, tmp_path: Path) -> None:
    flock = tmp_path / ".locks" / "x.lock"
    with quick(path, flock_path=flock) as held:
        assert held.acquired
        assert subprocess.run(["flock", "-n", str(flock), "true"]).returncode == 1
    assert subprocess.run(["flock", "-n", str(flock), "true"]).returncode == 0


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_flock_is_a_fact(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with quick(path, flock_path=path.with_name("l")) as held:
        assert held.acquired
        assert held.facts == (f"flock does not work on {path.with_name('l')}: {os.strerror(code)}",)


def test_a_lock_path_that_cannot_be_opened_is_a_fact(path: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for flock, says in (
        (tmp_path / "loop", os.strerror(errno.ELOOP)),
        (tmp_path / "none" / "none" / "l", os.strerror(errno.ENOENT)),
        (tmp_path, os.strerror(errno.EISDIR)),
    ):
        with quick(path, flock_path=flock) as held:
            assert held.acquired
            assert len(held.facts) == 1
            assert held.facts[0].endswith(says)


def test_where_no_owner_file_can_be_made_flock_alone_must_do(tmp_path: Path) -> None:
    missing = tmp_path / "none" / ".owner"
    with quick(missing) as held:
        assert not held.acquired
        assert held.owner is None
        assert held.facts[0].startswith(f"no lock file can be made at {missing}")
    with quick(missing, flock_path=tmp_path / "l") as held:
        assert held.acquired
        assert len(held.facts) == 1


def test_a_link_whose_reply_was_lost_is_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the server made the link, and the client's repeated request is answered with EEXIST."""
    link = os.link

    def twice(source: Any, target: Any) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with quick(path, wait=0) as held:
        assert held.acquired


def test_the_heart_beats(path: Path) -> None:
    with quick(path, beat=0.02):
        first = path.stat().st_mtime_ns
        until(lambda: path.stat().st_mtime_ns != first)


def test_pipes_in_the_place_of_owner_file_and_flock_are_not_waited_for(tmp_path: Path) -> None:
    """Anybody may make them in a shared directory, and an ordinary open waits for a writer for ever."""
    os.mkfifo(tmp_path / "lock")
    os.mkfifo(tmp_path / "flock")
    with Lock(tmp_path / "lock", what="x", wait=0.1, flock_path=tmp_path / "flock", pace=LockPace(poll=0.05)) as held:
        assert not held.acquired and "unknown process" in str(held.owner)


def test_an_owner_file_of_a_hundred_thousand_levels_is_of_an_unknown_process() -> None:
    assert LockOwner.from_json(b'{"x":' + b"[" * 100_000) == LockOwner()
