"""Staging from a directory: whole or absent, resumed by parts, raced, and told apart from what was there before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from launcher.core.errors import Cancelled, ModelError
from launcher.core.lease import Lock
from launcher.core.stop import Stop
from launcher.model import copy as copying
from launcher.model import stage as staging
from launcher.model.checkpoint import examine
from launcher.model.destination import leftovers, lock_path, remove_leftovers, staging_directories
from launcher.model.manifest import BUFFER, MANIFEST_NAME, PART_SIZE, WORK_DIRECTORY, Manifest, hash_file, hash_of_parts
from launcher.model.source import DirectorySource, SourceFile
from launcher.model.stage import adopt, stage
from tests.model.checkpoints import checkpoint

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = checkpoint(tmp_path / "archive" / "MiniMax-M3")
    (made / "figures").mkdir()
    (made / "figures" / "a.png").write_bytes(b"png")
    (made / "empty.txt").touch()
    return made


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "fast" / "MiniMax-M3"


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def small_parts(monkeypatch: pytest.MonkeyPatch, size: int = 64) -> None:
    monkeypatch.setattr(copying, "PART_SIZE", size)


def test_a_copy_is_the_source_with_a_manifest(source: Path, destination: Path) -> None:
    done = stage(DirectorySource(source), destination)
    assert (done.how, done.resumed) == ("staged", 0)
    assert content(destination) == content(source)
    manifest = Manifest.read(destination)
    assert manifest == done.manifest
    assert manifest is not None and manifest.source == str(source)
    entry = next(entry for entry in manifest.files if entry.path == SHARD)
    assert entry.hash == xxhash.xxh3_128((source / SHARD).read_bytes()).hexdigest()  # one part: as xxhsum -H128 says
    assert os.listdir(destination.parent) == [destination.name]
    assert examine(destination, precision="bf16").whole
    assert manifest.deep_differences(destination) == []


def test_a_second_time_nothing_is_read(source: Path, destination: Path) -> None:
    first = stage(DirectorySource(source), destination)
    files = [path for path in destination.rglob("*") if path.name != MANIFEST_NAME]
    before = [path.stat().st_atime_ns for path in files]
    again = stage(DirectorySource(source), destination)
    assert (again.how, again.copied, again.manifest) == ("there", 0, first.manifest)
    assert [path.stat().st_atime_ns for path in files] == before


def test_the_hash_of_many_parts(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    parts = [xxhash.xxh3_128(part).digest() for part in (b"0123", b"4567", b"89")]
    assert hash_file(tmp_path / "f", 4) == hash_of_parts(parts) == xxhash.xxh3_128(b"".join(parts)).hexdigest()
    assert hash_file(tmp_path / "f", 10) == xxhash.xxh3_128(b"0123456789").hexdigest()


@pytest.mark.parametrize("buffer", [BUFFER, 48, 7])
def test_parts_of_a_file_come_in_any_order(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    small_parts(monkeypatch)
    monkeypatch.setattr(copying, "BUFFER", buffer)
    monkeypatch.setattr(copying, "WINDOW", 2 * buffer)
    stage(DirectorySource(source), destination, workers=5)
    assert content(destination) == content(source)
    manifest = Manifest.read(destination)
    assert manifest is not None and manifest.part_size == 64
    assert manifest.deep_differences(destination) == []


class Told:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def begin(self, files: int, size: int) -> None:
        self.files = files

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        self.counts.setdefault(path, []).append(count)


@pytest.mark.parametrize("window", [8, 7, 1 << 20])
def test_progress_is_told_every_byte_once_and_nothing_after_a_files_end(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(copying, "BUFFER", window)
    monkeypatch.setattr(copying, "WINDOW", window)
    progress = Told()
    stage(DirectorySource(source), destination, progress=progress)
    assert {path: sum(counts) for path, counts in progress.counts.items()} == {
        file.path: file.size for file in DirectorySource(source).files
    }
    assert [path for path, counts in progress.counts.items() if 0 in counts] == ["empty.txt"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system here")
def test_another_file_system_is_written_to(source: Path) -> None:
    place = Path("/dev/shm") / f"launcher-test-{os.getpid()}"
    try:
        if place.parent.stat().st_dev == source.stat().st_dev:
            pytest.skip("no second file system here")
        stage(DirectorySource(source), place / "M")
        assert content(place / "M") == content(source)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_links_of_a_hub_cache_become_files(source: Path, destination: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    (source / SHARD).rename(blob)
    (source / SHARD).symlink_to(blob)
    stage(DirectorySource(source), destination)
    assert (destination / SHARD).read_bytes() == blob.read_bytes()
    assert not (destination / SHARD).is_symlink()
    blob.unlink()
    with pytest.raises(ModelError, match="is a link to nothing"):
        DirectorySource(source)


def test_a_stub_is_not_staged(source: Path, destination: Path) -> None:
    (source / SHARD).unlink()
    with pytest.raises(ModelError, match=f"not a whole checkpoint: {SHARD} is missing"):
        stage(DirectorySource(source), destination)
    assert not destination.exists()


def test_what_is_there_is_never_replaced(source: Path, destination: Path) -> None:
    checkpoint(destination)
    with pytest.raises(ModelError, match="a checkpoint without a manifest is there"):
        stage(DirectorySource(source), destination)
    before = content(destination)
    (destination / SHARD).unlink()
    with pytest.raises(ModelError, match="not staged by us, and is not whole"):
        stage(DirectorySource(source), destination)
    assert {**content(destination), SHARD: before[SHARD]} == before
    assert staging_directories(destination) == []


def test_another_checkpoint_of_the_same_names_and_sizes(source: Path, destination: Path) -> None:
    stage(DirectorySource(source), destination)
    adopt(source)
    with (source / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\2")
    (source / MANIFEST_NAME).unlink()
    adopt(source)
    with pytest.raises(ModelError, match=f"another checkpoint is there: {SHARD} has another content"):
        stage(DirectorySource(source), destination)


def test_a_source_that_is_not_what_its_manifest_says(source: Path, destination: Path) -> None:
    adopt(source)
    with (source / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\2")
    with pytest.raises(ModelError, match="content is not what its manifest says"):
        stage(DirectorySource(source), destination)
    assert not destination.exists()
    with (source / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert stage(DirectorySource(source), destination).how == "staged"  # and the wrong part was copied again
    assert content(destination) == content(source)


def test_a_stopped_copy_goes_on_by_parts(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    stop = StopAfter(total // 2)
    with pytest.raises(Cancelled):
        stage(DirectorySource(source), destination, workers=1, progress=stop, stop=Stop(stop))
    (half,) = staging_directories(destination)
    assert examine(half, precision="bf16").problems[0].startswith("half staged")
    with pytest.raises(ModelError, match="not whole: half staged"):
        adopt(half)
    victim = next(path for path in half.glob("*.safetensors") if path.read_bytes() == (source / path.name).read_bytes())
    victim.write_bytes(victim.read_bytes()[:-1] + b"\7")  # a journal's line without its data, as after a power cut
    dead(half)
    done = stage(DirectorySource(source), destination, workers=1)
    assert done.copied + done.resumed == total
    assert total // 4 < done.resumed < total
    assert content(destination) == content(source)
    assert os.listdir(destination.parent) == [destination.name]


def test_parts_of_a_file_that_changed_since_are_copied_again(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    stop = StopAfter(10**9)
    monkeypatch.setattr("launcher.model.stage._publish", _cut_off)
    with pytest.raises(Cancelled):
        stage(DirectorySource(source), destination, progress=stop)
    dead(*staging_directories(destination))
    monkeypatch.undo()
    small_parts(monkeypatch)
    content_now = (source / SHARD).read_bytes()[:-1] + b"\2"
    (source / SHARD).write_bytes(content_now)
    done = stage(DirectorySource(source), destination)
    assert done.copied == len(content_now)
    assert (destination / SHARD).read_bytes() == content_now


def _cut_off(*arguments: object) -> None:
    raise Cancelled("as if killed")


class StopAfter:
    """A Progress that asks for a stop after so many bytes."""

    def __init__(self, count: int) -> None:
        self.left = count

    def begin(self, files: int, size: int) -> None:
        pass

    def advance(self, path: str, size: int, count: int, *, resumed: bool = False) -> None:
        self.left -= count
        if self.left <= 0:
            time.sleep(0.002)

    def __call__(self, seconds: float) -> bool:
        return self.left <= 0


def dead(*stagings: Path) -> None:
    """Let the staging's owner be a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for directory in stagings:
        owner = directory / WORK_DIRECTORY / "owner.json"
        owner.write_text(owner.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {child.pid}'))


KILLED = """
import sys
from pathlib import Path
from launcher.model import copy, stage as staging
from launcher.model.source import DirectorySource, SourceFile
class Slow:
    def begin(self, files, size): pass
    def advance(self, path, size, count, *, resumed=False):
        import time; time.sleep(0.05); print(path, flush=True)
copy.PART_SIZE = 64
staging.stage(DirectorySource(Path(sys.argv[1])), Path(sys.argv[2]), workers=1, progress=Slow())
"""


def test_a_killed_process_is_followed_by_one_that_resumes(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, source, destination], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(6):
        child.stdout.readline()
    assert leftovers(destination.parent)[0].keep == "it is running"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not destination.exists()
    assert all(item.keep is None for item in leftovers(destination.parent))
    messages: list[str] = []
    small_parts(monkeypatch)
    done = stage(DirectorySource(source), destination, log=messages.append)
    assert done.resumed >= 5 * 64
    assert any("going on with what pid" in text for text in messages)
    assert content(destination) == content(source)


def test_gc_removes_what_is_dead_and_nothing_else(source: Path, destination: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, source, destination], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    held = remove_leftovers(destination.parent, wait=0)
    assert {item.keep for item in held} == {"it is running"}
    child.kill()
    child.wait()
    stage(DirectorySource(source), destination.with_name("other"))
    before = content(destination.with_name("other"))
    assert len(leftovers(destination.parent)) == 2
    assert all(item.keep is None for item in remove_leftovers(destination.parent, wait=0))
    assert os.listdir(destination.parent) == ["other"]
    assert content(destination.with_name("other")) == before


def test_a_staging_of_another_host_is_dead_when_its_lock_can_be_had(destination: Path) -> None:
    staging = destination.with_name(f"{destination.name}.staging.0123456789ab")
    (staging / WORK_DIRECTORY).mkdir(parents=True)
    process = {"host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}
    owner = {"process": process, "source": "/archive/M", "revision": None, "listing": "x", "began": "then"}
    (staging / WORK_DIRECTORY / "owner.json").write_text(json.dumps(owner))
    lock_path(destination).write_text(json.dumps({"host": "elsewhere", "pid": 1, "what": "staging", "started": "then"}))
    kept = {item.path: item.keep for item in remove_leftovers(destination.parent, wait=0)}
    assert kept[staging] == "held by pid 1 on elsewhere, since then: staging"
    assert staging.is_dir()
    lock_path(destination).unlink()
    assert remove_leftovers(destination.parent, wait=0)[0].keep is None
    assert list(destination.parent.iterdir()) == []


def test_waiting_for_another_staging_can_be_stopped(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination.parent.mkdir()
    messages: list[str] = []
    with Lock(lock_path(destination), what="staging for ever", wait=0), pytest.raises(Cancelled):
        stage(DirectorySource(source), destination, log=messages.append, stop=Stop(lambda seconds: bool(messages)))
    assert "staging for ever" in messages[0]
    monkeypatch.setattr("launcher.model.stage.LOCK_WAIT", 0)
    with Lock(lock_path(destination), what="staging for ever", wait=0), pytest.raises(ModelError, match="still being"):
        stage(DirectorySource(source), destination)


def test_sixteen_at_once_copy_once(source: Path, destination: Path) -> None:
    results, errors = [], []

    def one() -> None:
        try:
            results.append(
                stage(DirectorySource(source), destination, stop=Stop.never(lambda seconds: time.sleep(0.01)))
            )
        except ModelError as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(done.how for done in results) == ["staged"] + ["there"] * 15
    assert os.listdir(destination.parent) == [destination.name]


def test_a_lost_race_keeps_the_winner(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two without a working lock: the other one publishes just before we do."""
    monkeypatch.setattr("launcher.model.stage.Lock", _NoLock)
    publish = staging._publish

    def late(*arguments: Any) -> object:
        monkeypatch.setattr(staging, "_publish", publish)
        stage(DirectorySource(source), destination)
        winner.append(destination.stat().st_ino)
        return publish(*arguments)

    winner: list[int] = []
    monkeypatch.setattr(staging, "_publish", late)
    assert stage(DirectorySource(source), destination).how == "lost"
    assert destination.stat().st_ino == winner[0]
    assert os.listdir(destination.parent) == [destination.name]
    assert content(destination) == content(source)


class _NoLock:
    def __init__(self, *arguments: object, **keywords: object) -> None:
        pass

    def __enter__(self) -> object:
        from launcher.core.lease import LockResult

        return LockResult(False, None, ("locks do not work here",))

    def __exit__(self, *arguments: object) -> None:
        pass


def test_a_publication_that_was_cut_off_is_whole_and_gc_or_the_next_one_cleans_up(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.model.stage.remove_work_directory", _cut_off)
    with pytest.raises(Cancelled):
        stage(DirectorySource(source), destination)
    assert (destination / WORK_DIRECTORY).is_dir()
    assert examine(destination, precision="bf16").whole
    remove_leftovers(destination.parent, wait=0)
    assert not (destination / WORK_DIRECTORY).exists()
    (destination / WORK_DIRECTORY).mkdir()
    assert stage(DirectorySource(source), destination).how == "there"
    assert not (destination / WORK_DIRECTORY).exists()


def test_before_its_rename_a_staging_is_no_checkpoint_for_all_its_manifest(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.model.stage._publish", _cut_off)
    with pytest.raises(Cancelled):
        stage(DirectorySource(source), destination)
    (staging,) = staging_directories(destination)
    assert (staging / MANIFEST_NAME).exists()
    assert examine(staging, precision="bf16").problems == ("half staged: its staging has not ended, or was killed",)
    assert not destination.exists()


def test_a_shard_one_byte_short_and_one_gone_are_told_by_the_manifest(source: Path, destination: Path) -> None:
    stage(DirectorySource(source), destination)
    os.truncate(destination / "figures/a.png", 2)
    (destination / "empty.txt").unlink()
    assert set(examine(destination, precision="bf16").problems) == {
        "figures/a.png is 1 byte too short",
        "empty.txt is missing",
    }
    with pytest.raises(ModelError, match="staged, and damaged since"):
        stage(DirectorySource(source), destination)


def test_deep_verification_finds_a_flipped_bit(source: Path, destination: Path) -> None:
    manifest = stage(DirectorySource(source), destination).manifest
    with (destination / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    assert examine(destination, precision="bf16").whole  # names, sizes and headers are right
    assert manifest.deep_differences(destination) == [f"{SHARD} has another content than was staged"]


def test_a_copy_that_comes_out_wrong_is_not_published(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = copying._write
    monkeypatch.setattr(copying, "_write", lambda fd, chunk, at: write(fd, memoryview(bytes(len(chunk))), at))
    with pytest.raises(ModelError, match="read back as others than were written"):
        stage(DirectorySource(source), destination)
    assert not destination.exists()


def test_a_full_disk_is_said_before_the_first_byte(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"GB are needed and 0\.0 GB are free"):
        stage(DirectorySource(source), destination)


def test_a_destination_within_the_source_is_refused(source: Path) -> None:
    with pytest.raises(ModelError, match="one within the other"):
        stage(DirectorySource(source), source / "copy")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ".complete.json", ".staging/owner.json", ""])
def test_names_that_lead_elsewhere_are_refused(source: Path, destination: Path, name: str) -> None:
    hostile = DirectorySource(source)
    hostile.files = (*hostile.files, SourceFile(name, 1, "0"))
    with pytest.raises(ModelError, match="cannot be staged"):
        stage(hostile, destination)
    assert not destination.parent.exists()


def test_adopting_what_is_there(source: Path, destination: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    manifest = adopt(source)
    assert len(os.listdir("/proc/self/fd")) == before
    assert manifest.part_size == PART_SIZE
    done = stage(DirectorySource(source), destination)
    assert [entry.hash for entry in done.manifest.files] == [entry.hash for entry in manifest.files]
    assert not lock_path(destination).exists()
