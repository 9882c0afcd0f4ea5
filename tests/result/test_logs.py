"""Logs that are kept while everything about them changes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.publish import remove_tree
from launcher.core.reading import open_regular
from launcher.result import logs as kept
from launcher.result.logs import LEFT_OUT, LOGS, TARBALL, bundle_logs, keep_logs, log_files
from tests.shared import SHARED, needs_shared


def copy_logs(logs: Path, workspace: Path) -> tuple[Path, list[str]]:
    """The copy of a job's logs in a workspace, and what was left out of it."""
    workspace.mkdir()
    _, doubts = keep_logs(logs, workspace, "3", 0.0)
    (workspace / LOGS / ".launcher-job").unlink()
    return workspace / LOGS, doubts


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "outputs" / "3" / "logs"
    (directory / "agentic" / "conc_8").mkdir(parents=True)
    (directory / "sweep_3.log").write_text("one\ntwo\n")
    (directory / "empty.out").write_text("")
    (directory / "agentic" / "conc_8" / "profile.jsonl").write_text("{}\n")
    return directory


def contents(tarball: Path) -> dict[str, bytes]:
    with tarfile.open(tarball) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_a_tarball_holds_every_file_under_its_relative_name(logs: Path, tmp_path: Path) -> None:
    bundle = bundle_logs(logs, tmp_path / "logs.tar.gz", extra=[("power/sha.txt", logs / "sweep_3.log")])
    assert bundle is not None
    assert (bundle.files, bundle.bytes, bundle.left_out) == (4, 19, ())
    assert contents(bundle.path) == {
        "sweep_3.log": b"one\ntwo\n",
        "empty.out": b"",
        "agentic/conc_8/profile.jsonl": b"{}\n",
        "power/sha.txt": b"one\ntwo\n",
    }


@needs_shared
def test_the_logs_of_a_real_job_come_back_as_they_were(tmp_path: Path) -> None:
    assert SHARED is not None
    logs = SHARED / "reference/one-machine/samples/srtctl-disagg-job3/logs"
    bundle = bundle_logs(logs, tmp_path / "logs.tar.gz", seconds=5)
    assert bundle is not None
    shutil.unpack_archive(bundle.path, tmp_path / "out", filter="data")
    copy, left_out = copy_logs(logs, tmp_path / "workspace")
    assert left_out == []
    for path, _ in log_files(logs):
        content = path.read_bytes()
        assert (tmp_path / "out" / path.relative_to(logs)).read_bytes() == content
        assert (copy / path.relative_to(logs)).read_bytes() == content


def test_without_logs_there_is_no_tarball(tmp_path: Path) -> None:
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    assert bundle_logs(tmp_path / "logs", tmp_path / "x.tar.gz") is None
    assert bundle_logs(tmp_path / "nowhere", tmp_path / "x.tar.gz") is None
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_sockets_pipes_and_links_that_lead_out_are_skipped(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "other-job.json").write_text("not ours")
    (logs / "out.json").symlink_to(tmp_path / "other-job.json")
    (logs / "nothing.json").symlink_to("gone")
    (logs / "latest.log").symlink_to("sweep_3.log")
    (logs / "folder").symlink_to(tmp_path)
    os.mkfifo(logs / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(logs)  # a socket's path may have 107 bytes
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
        bundle = bundle_logs(logs, tmp_path / "logs.tar.gz", seconds=5)
        copy, _ = copy_logs(logs, tmp_path / "workspace")
    assert bundle is not None
    kept = {"sweep_3.log", "latest.log", "empty.out", "agentic/conc_8/profile.jsonl"}
    assert contents(bundle.path).keys() == kept
    assert {str(path.relative_to(copy)) for path, _ in log_files(copy)} == kept


def test_files_that_grow_shrink_and_vanish_while_they_are_read(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(60):
        (logs / f"{number}.out").write_bytes(random.randbytes(20_000 * (number % 7 + 1)))
    done = threading.Event()

    def disturb() -> None:
        chaos = random.Random(1)
        while not done.is_set():
            path = logs / f"{chaos.randrange(60)}.out"
            match chaos.randrange(3):
                case 0:
                    with path.open("ab") as file:
                        file.write(b"x" * 50_000)
                case 1:
                    path.write_bytes(b"")
                case 2:
                    path.unlink(missing_ok=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for number in range(15):
            bundle = bundle_logs(logs, tmp_path / f"{number}.tar.gz", seconds=5)
            if bundle is not None:
                found = contents(bundle.path)
                assert len(found) == bundle.files + bool(bundle.left_out)
    finally:
        done.set()
        thread.join()


def test_a_file_that_shrinks_is_padded_to_the_size_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.out").write_bytes(b"a" * 3_000_000)
    (logs / "b.out").write_bytes(b"after" * 1_000_000)
    real = os.fstat

    looks = 2

    def shrink_after(descriptor: int) -> os.stat_result:
        nonlocal looks
        status = real(descriptor)
        if status.st_size == 3_000_000 and (looks := looks - 1) == 0:  # after the size is in the header
            os.truncate(logs / "a.out", 1000)
        return status

    monkeypatch.setattr(os, "fstat", shrink_after)
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz")
    monkeypatch.undo()
    assert bundle is not None
    found = contents(bundle.path)
    assert len(found["a.out"]) == 3_000_000
    assert found["a.out"].strip(b"\0") == b"a" * 1000
    assert found["b.out"] == b"after" * 1_000_000


def test_what_cannot_be_read_is_listed(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open_regular

    def stale(path: Path) -> object:
        if path.name == "sweep_3.log":
            raise OSError(116, "Stale file handle", str(path))
        return real(path)

    monkeypatch.setattr(kept, "open_regular", stale)
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz")
    _, failed = copy_logs(logs, tmp_path / "workspace")
    monkeypatch.undo()
    assert bundle is not None
    assert bundle.left_out == ("sweep_3.log: Stale file handle",) and failed == [
        f"{TARBALL}: sweep_3.log: Stale file handle"
    ]
    assert contents(bundle.path)[LEFT_OUT] == b"sweep_3.log: Stale file handle\n"
    assert "agentic/conc_8/profile.jsonl" in contents(bundle.path)


def test_within_its_time_the_small_files_and_the_end_of_the_large_one(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a_raw.jsonl").write_bytes(random.randbytes(1 << 20) * 100 + b"the end")
    (logs / "sweep.log").write_text("why it failed")
    began = time.thread_time()
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz", seconds=0.5)
    assert time.thread_time() - began < 4
    assert bundle is not None
    found = contents(bundle.path)
    assert found["sweep.log"] == b"why it failed"
    assert found["a_raw.jsonl"].endswith(b"the end")
    assert 1_000_000 < len(found["a_raw.jsonl"]) < 100 << 20
    assert b"a_raw.jsonl: " in found[LEFT_OUT] and b"for want of time" in found[LEFT_OUT]


@pytest.mark.parametrize(("spent", "packed"), [(0.0, 20_000_000), (0.4, 6_000_000), (2.0, None)])
def test_what_fits_is_reckoned_by_the_speed_so_far(tmp_path: Path, spent: float, packed: int | None) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.out").write_bytes(bytes(4_000_000))
    (logs / "b.out").write_bytes((b"x" * 63 + b"\n") * (30_000_000 // 64))
    clock = iter([0.0, 0.0, 0.0, 0.0, spent])
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz", seconds=1, clock=lambda: next(clock))
    assert bundle is not None
    with tarfile.open(bundle.path) as tar:
        sizes = {member.name: member.size for member in tar}
    assert sizes["a.out"] == 4_000_000
    assert sizes.get("b.out") == packed
    assert bundle.left_out == (f"b.out: {30_000_000 - (packed or 0)} of 30000000 bytes, for want of time",)
    assert (bundle.files, bundle.bytes) == ((2, 4_000_000 + packed) if packed else (1, 4_000_000))


def test_a_directory_that_takes_too_long_to_read_is_read_in_part(logs: Path, tmp_path: Path) -> None:
    now = iter(range(1000))
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz", seconds=10, clock=lambda: next(now) * 3.0)
    assert bundle is not None
    assert any("not read to its end" in line for line in bundle.left_out)
    assert 0 < bundle.files < 3


@contextlib.contextmanager
def worst(directory: Path) -> Iterator[None]:
    """What a job may leave: names that are not UTF-8 and with line ends, links to themselves, depth, pipes.

    It is removed at the end: pytest could not.
    """
    try:
        _make_worst(directory)
        yield
    finally:
        remove_tree(directory)


def _make_worst(directory: Path) -> None:
    directory.mkdir()
    (directory / "sweep_3.log").write_text("one\ntwo\n")
    Path(os.fsdecode(os.fsencode(directory) + b"/caf\xe9\xff.log")).write_text("a name of Latin-1")
    (directory / "x\n::set-output name=a::b\x1b[2J.log").write_text("a name of two lines")
    (directory / "itself").symlink_to("itself")
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    os.mkfifo(directory / "pipe.log")
    here = os.open(directory, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deep.log", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_whatever_a_job_leaves_its_logs_are_kept(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    with worst(tmp_path / "logs"):
        bundle, doubts = keep_logs(tmp_path / "logs", tmp_path / "workspace", "3", 0.0)
    assert bundle is not None and bundle.cut
    packed = contents(tmp_path / "workspace" / TARBALL)
    assert packed["sweep_3.log"] == b"one\ntwo\n"
    assert packed["caf\udce9\udcff.log"] == b"a name of Latin-1"
    assert b"more than 32 levels of directories" in packed[LEFT_OUT]
    copied = {path.name for path, _ in log_files(tmp_path / "workspace" / LOGS)}
    assert copied == {*packed, ".launcher-job"} - {LEFT_OUT}
    assert len(doubts) == 1 and "\n" not in doubts[0]
    assert not (tmp_path / "logs").exists()


def test_what_is_left_out_is_one_line_each_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES_OF_ALL", 1000)
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(1200):
        (logs / f"{number}\n::error::x\x1b").write_text("x" * 100)
    (tmp_path / "workspace").mkdir()
    bundle, doubts = keep_logs(logs, tmp_path / "workspace", "3", 0.0)
    assert bundle is not None and bundle.files == 10
    assert len(doubts) == 20 and not any("\n" in doubt or "\x1b" in doubt for doubt in doubts)
    listed = contents(bundle.path)[LEFT_OUT].decode().splitlines()
    assert len(listed) == 1001 and listed[-1] == "and 190 more"


def test_of_large_files_the_end_is_kept_and_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds on what is read, not on time: a terabyte that is one hole, a long line, many files of middle size."""
    monkeypatch.setattr(kept, "MAX_BYTES_OF_FILE", 1 << 20)
    monkeypatch.setattr(kept, "MAX_BYTES_OF_ALL", 5 << 20)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "small.log").write_text("why it failed\n")
    with (logs / "hole.log").open("wb") as file:
        file.truncate(1 << 40)
    (logs / "line.log").write_bytes(b"x" * (3 << 20) + b"the end")
    for number in range(10):
        (logs / f"{number}.log").write_bytes(b"a line of a log\n" * (1 << 16))
    (tmp_path / "workspace").mkdir()
    bundle, _ = keep_logs(logs, tmp_path / "workspace", "3", 0.0)
    assert bundle is not None and bundle.cut and bundle.bytes <= 5 << 20
    packed = contents(bundle.path)
    assert packed["small.log"] == b"why it failed\n" and packed["0.log"].endswith(b"a line of a log\n")
    assert b"hole.log: " in packed[LEFT_OUT] and b"for its size" in packed[LEFT_OUT]
    copied = {path.name: path.stat().st_size for path, _ in log_files(tmp_path / "workspace" / LOGS)}
    assert sum(copied.values()) <= (5 << 20) + 10


def test_a_long_line_ends_where_the_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_BYTES_OF_FILE", 1 << 20)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "line.log").write_bytes(b"x" * (3 << 20) + b"the end")
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz")
    assert bundle is not None and contents(bundle.path)["line.log"].endswith(b"xxthe end")


def test_files_without_number_are_not_all_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_FILES", 50)
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(100):
        (logs / f"{number}.log").write_text("x")
    bundle = bundle_logs(logs, tmp_path / "x.tar.gz")
    assert bundle is not None and bundle.files == 50 and bundle.cut


def test_a_tarball_that_cannot_be_written_leaves_the_old_one(logs: Path, tmp_path: Path) -> None:
    tarball = tmp_path / "x.tar.gz"
    tarball.write_text("old")
    with pytest.raises(OSError):
        bundle_logs(logs, tmp_path / "nowhere" / "x.tar.gz")
    full = Path("/dev/full")
    assert full.exists()
    real = tarfile.open

    def on_a_full_disk(name: Path, mode: str, **options: int) -> tarfile.TarFile:
        name.symlink_to(full)
        return real(name, mode, **options)  # type: ignore[call-overload, no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile, "open", on_a_full_disk)
        with pytest.raises(OSError, match="No space left"):
            bundle_logs(logs, tarball)
    assert tarball.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "x.tar.gz"]
