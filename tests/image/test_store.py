"""Having an image in place: hits for nothing, imports that are checked, and every way in which they fail."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import CommandRunner, Completed, run
from launcher.core.publish import TEMPORARY_SUFFIX
from launcher.image.reference import PlannedImage
from launcher.image.squash import Sidecar
from launcher.rehearsal.enroot_stand_in import FAULTS, squashfs
from tests.commands import ScriptedCommands, real_commands
from tests.image.squashfs_tools import needs_squashfs_tools
from tests.image.support import (
    NAME,
    REFERENCE,
    EagerLock,
    EagerLockWithFlock,
    Store,
    as_root,
    completed,
    process,
    request,
    small_image,
    until,
)

URI = "docker://nvcr.io#nvidia/ai-dynamo/vllm-runtime:1.0.1"


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


@pytest.fixture
def final(image_root: Path) -> Path:
    return image_root / "images" / NAME


class Log(list[str]):
    """What the store said and slept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def store(self, runner: CommandRunner = run, **more: Any) -> Store:
        return Store(runner, log=self.append, **more)

    def impatient(self, runner: CommandRunner = run) -> Store:
        """A store that sleeps by noting it."""
        return self.store(runner, sleep=self.slept.append)


@pytest.fixture
def log() -> Log:
    return Log()


def note(final: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(final.with_name(f"{final.name}.json").read_text())
    return document


def parts(image_root: Path) -> list[Path]:
    return [path for path in image_root.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]


# Opening files raises an audit event; a hook cannot be removed again, so there is one, with a switch.
_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # A descriptor is a file that was opened before.
    if _opened is not None and event == "open" and not isinstance(arguments[0], int):
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else str(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opened() -> Iterator[list[str]]:
    global _opened
    results: list[str] = []
    _opened = results
    try:
        yield results
    finally:
        _opened = None


def test_an_import_leaves_a_whole_file_and_its_record(image_root: Path, final: Path, log: Log) -> None:
    before = os.umask(0o077)
    try:
        record = log.store().ensure(request(image_root))
    finally:
        os.umask(before)
    assert (record.how, record.sidecar.uri, record.squash) == ("imported", URI, final)
    assert record.sidecar.enroot_version == "4.1.2-rehearsal"
    assert record.sidecar.digest is not None
    assert record.notes == ()
    assert record.sidecar.size == final.stat().st_size
    assert log == [f"importing {REFERENCE} to {final}: no squash file: No such file or directory"]
    assert sorted(path.name for path in final.parent.iterdir()) == [NAME, f"{NAME}.json"]
    assert list((image_root / "tmp").iterdir()) == []
    assert final.stat().st_mode & 0o444 == 0o444
    written = note(final)
    assert written["mtime_ns"] == final.stat().st_mtime_ns
    expected = {"reference": REFERENCE, "uri": URI, "how": "imported", "size": record.sidecar.size}
    assert expected.items() <= written.items()
    assert {"host", "user", "job", "written", "seconds", "superblock_time", "digest"} <= set(written)


@needs_squashfs_tools
def test_what_was_imported_is_a_real_image_that_says_it_is_a_rehearsal(image_root: Path, final: Path, log: Log) -> None:
    assert log.store().ensure(request(image_root)).sidecar.listing == "whole"
    done = subprocess.run(["unsquashfs", "-cat", str(final), "etc/rc"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"# enroot-provenance: {URI}\n")


def test_a_hit_starts_no_process_takes_no_lock_and_opens_two_files(image_root: Path, final: Path, log: Log) -> None:
    log.store().ensure(request(image_root))
    log.store().ensure(request(image_root))  # a hit, which imports the reader of records
    log.clear()
    store = log.store(ScriptedCommands(), lock=EagerLockWithFlock)
    wanted = request(image_root, lock=str(image_root / "images" / "bash.lock"))
    before = final.parent.stat().st_mtime_ns
    with opened() as files:
        record = store.ensure(wanted)
    assert record.how == "hit"
    assert record.sidecar.digest == note(final)["digest"]
    assert files == [str(final), f"{final}.json"]
    assert final.parent.stat().st_mtime_ns == before, "nothing was made or removed beside it"
    assert log == []


def test_a_hit_costs_a_fraction_of_a_millisecond(image_root: Path, log: Log) -> None:
    log.store().ensure(request(image_root))
    store, wanted = Store(ScriptedCommands()), request(image_root)
    seconds = min(_timed(store, wanted) for _ in range(200))
    assert seconds < 0.002
    print(f"hit: {seconds * 1e6:.0f} µs")


def _timed(store: Store, wanted: PlannedImage) -> float:
    began = time.perf_counter()
    store.ensure(wanted)
    return time.perf_counter() - began


def test_a_file_that_bash_made_is_adopted_without_a_process(image_root: Path, final: Path) -> None:
    small_image(final)
    store = Store(ScriptedCommands())
    assert store.ensure(request(image_root)).how == "adopted"
    assert note(final)["how"] == "adopted"
    assert store.ensure(request(image_root)).how == "hit"


def test_between_its_publication_and_its_record_a_file_is_waited_for(
    image_root: Path, final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopted in that moment, it would have a record without its digest. (Seen once, of sixteen at a busy time.)"""
    waited, write = threading.Event(), Sidecar.write

    def write_late(self: Sidecar, squash: Path, *, replace: bool = True) -> OSError | None:
        assert self.how != "imported" or waited.wait(20)
        return write(self, squash, replace=replace)

    def log(line: str) -> None:
        if line.startswith(f"waiting for {NAME}"):
            waited.set()

    monkeypatch.setattr(Sidecar, "write", write_late)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Store().ensure, request(image_root))
        until(final.exists)
        assert Store(log=log).ensure(request(image_root)).how == "hit"
        assert first.result().how == "imported"
    assert note(final)["how"] == "imported"


def test_it_is_adopted_where_no_record_can_be_written(image_root: Path, final: Path) -> None:
    small_image(final)
    final.with_name(f"{NAME}.json").mkdir()
    assert Store(ScriptedCommands()).ensure(request(image_root)).how == "adopted"
    assert parts(image_root) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"uri": 1}', "{}", '{"size": "x"}'])
def test_a_record_that_cannot_be_read_says_nothing(image_root: Path, final: Path, content: str) -> None:
    small_image(final)
    final.with_name(f"{NAME}.json").write_text(content)
    assert Store(ScriptedCommands()).ensure(request(image_root)).how == "adopted"


def test_a_file_replaced_since_it_was_recorded_is_listed_and_adopted(image_root: Path, final: Path, log: Log) -> None:
    log.store().ensure(request(image_root))
    small_image(final, "made by a bash launcher")
    whole = ScriptedCommands(lambda argv: completed(argv, 0))
    assert log.store(whole).ensure(request(image_root)).how == "adopted"
    assert whole.calls == [("unsquashfs", "-l", str(final))]
    assert (note(final)["how"], note(final)["listing"]) == ("adopted", "whole")
    assert log.store(ScriptedCommands()).ensure(request(image_root)).how == "hit"


def test_two_images_of_one_name_are_an_error(image_root: Path, log: Log) -> None:
    log.store().ensure(request(image_root))
    other = "nvcr.io/nvidia_ai-dynamo/vllm-runtime:1.0.1"  # the same name once '/' and '_' are alike
    with pytest.raises(ImageError, match="would have the same name") as caught:
        log.store().ensure(request(image_root, reference=other))
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", bytes(8192), b"garbage" * 1000, "half"])
def test_a_damaged_file_is_replaced_by_rename(image_root: Path, final: Path, log: Log, content: bytes | str) -> None:
    whole = small_image(final).read_bytes()
    final.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with final.open("rb") as reader:  # a job that maps it keeps what it has
        before = reader.read()
        assert log.store().ensure(request(image_root)).how == "imported"
        reader.seek(0)
        assert reader.read() == before
    assert log[0].startswith(f"importing {REFERENCE} to {final}: not a whole squash file")
    assert log.store(ScriptedCommands()).ensure(request(image_root)).how == "hit"


def test_a_file_whose_lists_are_damaged_is_replaced(image_root: Path, final: Path, log: Log) -> None:
    log.store().ensure(request(image_root))
    small_image(final, "changed")
    damaged = final.read_bytes()

    def answer(argv: Sequence[str]) -> Completed:
        if argv[0] == "unsquashfs":
            is_damaged = Path(argv[2]).read_bytes() == damaged
            return completed(argv, 1 if is_damaged else 0)
        return run(argv, timeout=20)

    assert log.store(ScriptedCommands(answer)).ensure(request(image_root)).how == "imported"
    assert final.read_bytes() != damaged
    assert parts(image_root) == []


def test_a_whole_file_that_came_meanwhile_stays(image_root: Path, final: Path, log: Log) -> None:
    """A bash launcher publishes while we import: ours is dropped, and its file is not touched."""

    def answer(argv: Sequence[str]) -> Completed:
        if "import" in argv:
            small_image(final, "the other's")
        return run(argv, timeout=20)

    record = log.store(ScriptedCommands(answer)).ensure(request(image_root))
    assert record.how == "adopted"
    assert record.notes == ("another process published it first; ours was dropped",)
    assert b"the other's" in final.read_bytes()
    assert parts(image_root) == []


def test_an_import_in_place_that_began_meanwhile_is_replaced(image_root: Path, final: Path, log: Log) -> None:
    def answer(argv: Sequence[str]) -> Completed:
        if "import" in argv:
            final.write_bytes(bytes(5000))
        return run(argv, timeout=20)

    assert log.store(ScriptedCommands(answer)).ensure(request(image_root)).how == "imported"
    assert log.store(ScriptedCommands()).ensure(request(image_root)).how == "hit"


@pytest.mark.parametrize(
    ("fail", "says", "hint"),
    [
        ("401", "401, the registry wants credentials", "credentials"),
        ("403", "403, the registry forbids it", "credentials"),
        ("404", "404, the registry has no such image", "correct the image"),
        ("nospace", "no space left", "free space"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(
    image_root: Path, log: Log, monkeypatch: pytest.MonkeyPatch, fail: str, says: str, hint: str
) -> None:
    monkeypatch.setenv(FAULTS, f"fail={fail}")
    with pytest.raises(ImageError, match=says) as caught:
        log.impatient().ensure(request(image_root, where="nvidia-master.yaml:12"))
    assert log.slept == []
    assert caught.value.exit_code == 3
    assert caught.value.where == "nvidia-master.yaml:12"
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert list((image_root / "images").iterdir()) == []
    assert list((image_root / "tmp").iterdir()) == []


@pytest.mark.parametrize("fail", ["429", "503", "refused"])
def test_what_may_pass_is_tried_again(image_root: Path, log: Log, monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
    monkeypatch.setenv(FAULTS, f"fail={fail},fail_times=2,counter={image_root / 'count'}")
    assert log.impatient().ensure(request(image_root)).how == "imported"
    assert len(log.slept) == 2
    assert 5 <= log.slept[0] < log.slept[1] <= 20
    assert [line.split(":")[0] for line in log[1:]] == ["attempt 1 of 4", "attempt 2 of 4"]


def test_an_attempt_that_still_writes_is_in_nobodys_way(image_root: Path, final: Path, log: Log) -> None:
    """On a node that Slurm gave up as failed the enroot of the last attempt may go on."""
    outputs: list[Path] = []

    def answer(argv: Sequence[str]) -> Completed:
        if "import" in argv:
            outputs.append(Path(argv[argv.index("-o") + 1]))
            if len(outputs) == 1:
                return completed(argv, 56, stderr="curl: (56) Recv failure: Connection reset by peer")
            outputs[1].write_bytes(image)
            outputs[0].write_bytes(bytes(100))
        return completed(argv, 0, stdout="4.1.2")

    image = squashfs("etc", {"rc": b"x" * 2000}, created=1_700_000_000)
    assert log.impatient(ScriptedCommands(answer)).ensure(request(image_root)).how == "imported"
    assert len(set(outputs)) == 2 and final.read_bytes() == image


def test_trying_again_ends(image_root: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, "fail=429")
    with pytest.raises(ImageError, match="429, the registry's rate limit"):
        log.impatient().ensure(request(image_root))
    assert len(log.slept) == 3
    assert list((image_root / "images").iterdir()) == []


@pytest.mark.parametrize("fail", ["truncate", "empty"])
def test_an_import_that_only_says_it_went_well_is_not_published(
    image_root: Path, final: Path, log: Log, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    monkeypatch.setenv(FAULTS, f"fail={fail}")
    with pytest.raises(ImageError, match="left no whole squash file"):
        log.store().ensure(request(image_root))
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("returncode", "stderr", "says", "hint", "tries"),
    [
        (0, "", "left no whole squash file: no squash file", "run again", 1),
        (127, "{enroot}: No such file or directory", "enroot is not there", "images.import-on", 1),
        (1, "[ERROR] Invalid image reference: docker://x", "does not accept the reference", "correct the image", 1),
        (1, "[ERROR] Command not found: mksquashfs", "a program that enroot needs is missing", "install it", 1),
        (1, "mv: cannot stat: Stale file handle", "went stale", "node-local", 4),
        (1, "tar: x: Cannot unlink: Operation not permitted", "may not be written", "node-local", 1),
        (
            255,
            "parallel: Error: Output is incomplete.\nparallel: Error: Is the disk full?",
            "no space",
            "free space",
            1,
        ),
        (1, "Write failed because Disk quota exceeded\nFATAL ERROR", "quota", "free space", 1),
        (35, "curl: (35) error:0A00010B:SSL routines::wrong version number", "TLS", "ENROOT_ALLOW_HTTP", 1),
        (6, "curl: (6) Could not resolve host: nvcr.io", "the network or the registry failed", "try again", 4),
        (28, "curl: (28) Operation timed out after 30000 ms", "the network or the registry failed", "try again", 4),
        (56, "curl: (56) Recv failure: Connection reset by peer", "the network or the registry", "try again", 4),
        (18, "curl: (18) transfer closed with 77 bytes remaining to read", "the network", "try again", 4),
        (22, "curl: (22) The requested URL returned error: 502", "HTTP status 502", "try again later", 4),
        (22, "curl: (22) The requested URL returned error: 416", "HTTP status 416", "correct the image", 1),
        (1, "Checksum mismatch: 0123", "a layer arrived damaged", "try again later", 4),
        (
            1,
            "[ERROR] URL https://x returned error code: 503 Service Unavailable\nNo space left on device",
            "no space left",
            "",
            1,
        ),
        (9, "[INFO] Connection is fine\nsomething new", "exit 9\n  something new\n", "read what it said", 1),
    ],
)
def test_enroots_words_are_understood(
    image_root: Path, log: Log, returncode: int, stderr: str, says: str, hint: str, tries: int
) -> None:
    def answer(argv: Sequence[str]) -> Completed:
        return completed(argv, returncode, stderr.format(enroot=argv[0]))

    runner = ScriptedCommands(answer)
    with pytest.raises(ImageError, match=says) as caught:
        log.impatient(runner).ensure(request(image_root))
    assert hint in (caught.value.hint or "")
    assert sum("import" in argv for argv in runner.calls) == tries


def test_an_import_beyond_its_time_is_ended_and_not_tried_again(
    image_root: Path, final: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULTS, "slow=30")
    with pytest.raises(ImageError, match="did not end within 1 s") as caught:
        log.impatient().ensure(request(image_root, import_timeout=1))
    assert "images.import-timeout" in (caught.value.hint or "")
    assert log.slept == []
    assert list(final.parent.iterdir()) == []
    assert list((image_root / "tmp").iterdir()) == []


def test_the_wrong_architecture_is_a_stated_fact(image_root: Path, log: Log) -> None:
    warning = "[WARN] Image architecture doesn't match the requested one: amd64 != arm64"

    def answer(argv: Sequence[str]) -> Completed:
        done = run(argv, timeout=20)
        return completed(argv, 0, warning) if "import" in argv else done

    assert log.store(ScriptedCommands(answer)).ensure(request(image_root)).notes == (warning,)
    assert log[-1] == warning


def test_enroot_gets_private_temporaries_english_and_the_runners_environment(image_root: Path, log: Log) -> None:
    environments: list[dict[str, str]] = []

    def answer(argv: Sequence[str]) -> None:
        if "import" in argv:
            environments.append(dict(runner.environments[-1] or {}))
            assert Path(environments[-1]["ENROOT_TEMP_PATH"]).is_dir()

    runner = ScriptedCommands(answer)
    given = {"ENROOT_CACHE_PATH": "/tmp/shared-cache", "ENROOT_SQUASH_OPTIONS": "-comp zstd"}
    log.store(runner).ensure(request(image_root, environment=given))
    (environment,) = environments
    for name in ("ENROOT_TEMP_PATH", "ENROOT_RUNTIME_PATH", "ENROOT_DATA_PATH", "TMPDIR"):
        assert environment[name].startswith(f"{image_root / 'tmp'}/.enroot.")
        assert not Path(environment[name]).exists()
    assert given.items() <= environment.items()
    assert environment["LC_ALL"] == "C"
    assert environment["PATH"] == os.environ["PATH"]


def test_temporaries_that_their_owner_may_not_write_are_removed(image_root: Path, log: Log) -> None:
    def answer(argv: Sequence[str]) -> None:
        if "import" in argv:
            environment = runner.environments[-1]
            assert environment is not None
            layer = Path(environment["ENROOT_TEMP_PATH"], "enroot.x", "0", "usr")
            layer.mkdir(parents=True)
            (layer / "link").symlink_to(image_root)
            layer.chmod(0o555)
            layer.parent.chmod(0)

    runner = ScriptedCommands(answer)
    log.store(runner).ensure(request(image_root))
    assert list((image_root / "tmp").iterdir()) == []


def test_a_digest_in_the_reference_is_recorded_without_asking(image_root: Path, log: Log) -> None:
    digest = "sha256:" + "ab" * 32
    runner = real_commands()
    record = log.store(runner).ensure(request(image_root, reference=f"a/b:c@{digest}"))
    assert record.sidecar.digest == digest
    assert not any("digest" in argv for argv in runner.calls)


def test_an_enroot_without_digest_or_a_machine_without_unsquashfs_is_recorded(image_root: Path, log: Log) -> None:
    def answer(argv: Sequence[str]) -> Completed:
        if "digest" in argv:
            return completed(argv, 1, "Usage: enroot COMMAND [ARG...]")
        return completed(argv, 127) if argv[0] == "unsquashfs" else run(argv, timeout=20)

    record = log.store(ScriptedCommands(answer)).ensure(request(image_root))
    assert record.sidecar.digest is None
    assert record.sidecar.listing == "not checked: unsquashfs is not installed"


# --- places that cannot be written


def test_a_directory_in_place_of_the_file_is_an_error(image_root: Path, final: Path, log: Log) -> None:
    final.mkdir()
    with pytest.raises(ImageError, match="a directory, where a squash file belongs"):
        log.store(ScriptedCommands()).ensure(request(image_root))
    assert final.is_dir()


def test_a_missing_image_directory_is_named(tmp_path: Path, log: Log) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path / 'images'}: No such file") as caught:
        log.store(ScriptedCommands()).ensure(request(tmp_path))
    assert "images.directory" in (caught.value.hint or "")


def test_an_image_directory_that_is_a_file_is_named(tmp_path: Path, log: Log) -> None:
    (tmp_path / "images").touch()
    with pytest.raises(ImageError, match="Not a directory") as caught:
        log.store(ScriptedCommands()).ensure(request(tmp_path))
    assert "a part of it is a file" in (caught.value.hint or "")


def test_too_little_space_is_said_before_the_import_with_what_killed_ones_left(
    image_root: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = image_root / "images" / f".x.sqsh.{os.uname().nodename[:32]}.{2**22 + 1}.0123abcd{TEMPORARY_SUFFIX}"
    left.write_bytes(bytes(1000))
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 1000, 500, 500, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(ImageError, match=r"not enough space for an import: 0\.0 GiB free in ") as caught:
        log.store(ScriptedCommands()).ensure(request(image_root))
    assert left.name in (caught.value.hint or "")


def test_a_read_only_directory_fails_before_anything_is_imported(small_disk: Path, tmp_path: Path, log: Log) -> None:
    assert as_root("mount", "-o", "remount,ro", str(small_disk)).returncode == 0
    with pytest.raises(ImageError, match=f"{small_disk}: Read-only file system") as caught:
        log.store(ScriptedCommands()).ensure(request(tmp_path))
    assert "images.import-on" in (caught.value.hint or "")


def test_a_whole_file_in_a_read_only_directory_is_a_hit(small_disk: Path, tmp_path: Path, log: Log) -> None:
    small_image(small_disk / NAME)
    assert as_root("mount", "-o", "remount,ro", str(small_disk)).returncode == 0
    assert log.store(ScriptedCommands()).ensure(request(tmp_path)).how == "adopted"


def test_a_disk_that_gets_full_during_the_import(
    small_disk: Path, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULTS, "size=1000000")
    with pytest.raises(ImageError, match="no space left"):
        log.impatient().ensure(request(tmp_path))
    assert log.slept == []
    assert list(small_disk.iterdir()) == []


def test_a_full_disk(small_disk: Path, tmp_path: Path, log: Log) -> None:
    with (small_disk / "full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(ImageError, match=r"not enough space for an import: 0\.0 GiB free") as caught:
        log.store(ScriptedCommands()).ensure(request(tmp_path))
    assert "free space" in (caught.value.hint or "")
    assert [path.name for path in small_disk.iterdir()] == ["full"]


def test_temporaries_that_cannot_be_made_are_named(image_root: Path, log: Log) -> None:
    (image_root / "file").touch()
    with pytest.raises(ImageError, match=f"{image_root / 'file'}"):
        log.store(ScriptedCommands()).ensure(request(image_root, temporary=str(image_root / "file" / "tmp")))
    assert list((image_root / "images").iterdir()) == []


# --- locks that are not to be had


def test_a_lock_that_is_not_had_is_said_with_its_owner_and_the_import_goes_on(
    image_root: Path, final: Path, log: Log
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from launcher.core.lease import Lock\n"
        "with Lock(Path(sys.argv[1]), what='an import that hangs', wait=1): print('held', flush=True); time.sleep(60)"
    )
    owner = final.with_name(f".{NAME}.owner")
    with process(sys.executable, "-c", program, str(owner), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        record = log.store().ensure(request(image_root, lock_wait=0.2))
    assert record.how == "imported"
    assert record.notes[0].startswith(f"no lock in 0.2 s, going on without it: pid {child.pid} on ")
    assert log[0] == f"waiting for {NAME}: {record.notes[0].partition(': ')[2]}"


def test_who_waited_for_another_import_takes_its_image(image_root: Path, final: Path, log: Log) -> None:
    lock = final.with_name("bash.lock")
    script = 'exec 9>"$1"; flock 9; echo locked; sleep 0.5; cat "$2" > "$3"'
    image = small_image(image_root / "made-by-bash")
    with process("bash", "-c", script, "-", str(lock), str(image), str(final), stdout=subprocess.PIPE) as bash:
        assert bash.stdout is not None
        assert bash.stdout.readline() == "locked\n"
        store = log.store(ScriptedCommands(), lock=EagerLockWithFlock)
        record = store.ensure(request(image_root, lock=str(lock)))
    assert record.how == "adopted"
    assert log == [f"waiting for {NAME}: an unnamed process with flock on {lock}"]


def test_a_lock_that_cannot_be_had_at_all_is_said(image_root: Path, final: Path, log: Log) -> None:
    class Broken(EagerLock):
        def __init__(self, path: Path, **options: Any) -> None:
            super().__init__(path.with_name("none") / path.name, **options)

    record = Store(lock=Broken, log=log.append).ensure(request(image_root))
    assert record.how == "imported"
    assert record.notes[0].startswith("no lock file can be made")
    assert record.notes[1] == "no lock can be acquired, going on without it"
    assert log[:2] == list(record.notes)


# --- what is left behind, and what is sent away


def test_an_interrupted_import_removes_its_own_temporaries_only(image_root: Path, final: Path, log: Log) -> None:
    other = final.with_name(f".{NAME}.login-2.77.0123abcd{TEMPORARY_SUFFIX}")
    other.write_bytes(b"live")

    def answer(argv: Sequence[str]) -> Completed:
        if "import" in argv:
            Path(argv[argv.index("-o") + 1]).write_bytes(bytes(100))
            raise KeyboardInterrupt
        return completed(argv, 0, stdout="4.1.2")

    with pytest.raises(KeyboardInterrupt):
        log.store(ScriptedCommands(answer)).ensure(request(image_root))
    assert list(final.parent.iterdir()) == [other]
    assert list((image_root / "tmp").iterdir()) == []


def test_a_request_can_be_pickled_and_carried_out_elsewhere(image_root: Path) -> None:
    wanted = request(image_root, environment={"A": "b"})
    again = pickle.loads(pickle.dumps((Store(), wanted)))
    record = again[0].ensure(again[1])
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.how == "imported"
