"""The stand-in for enroot keeps the recorded contract, and its images are read by the real tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.rehearsal.enroot_stand_in import FAULTS, squashfs
from tests.image.support import as_root

URI = "docker://nvcr.io#nvidia/x:1"
ROOT = Path(__file__).resolve().parents[2]

needs_unsquashfs = pytest.mark.skipif(not shutil.which("unsquashfs"), reason="squashfs-tools are not installed")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher.rehearsal.enroot_stand_in", *words]


def enroot(*words: str, faults: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, FAULTS: faults, **environment}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=30, cwd=ROOT, env=env)


def unsquashfs(*words: str) -> str:
    done = subprocess.run(["unsquashfs", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_says_that_it_is_a_stand_in() -> None:
    assert enroot("version").stdout == "4.1.2-rehearsal\n"


@needs_unsquashfs
def test_its_images_are_real_and_say_what_they_are(tmp_path: Path) -> None:
    output = tmp_path / "x.sqsh"
    done = enroot("import", "-o", str(output), "--", URI)
    assert (done.returncode, done.stdout) == (0, "")
    listed = unsquashfs("-l", str(output)).split()
    assert listed[-3:] == ["squashfs-root/etc", "squashfs-root/etc/rc", "squashfs-root/etc/rehearsal.json"]
    assert unsquashfs("-cat", str(output), "etc/rc").startswith(f"# enroot-provenance: {URI}\n")
    assert '"rehearsal": true' in unsquashfs("-cat", str(output), "etc/rehearsal.json")


@needs_unsquashfs
@pytest.mark.parametrize("size", [0, 1, 131071, 131072, 131073, 1_000_000])
def test_files_of_every_length_are_read_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.sqsh"
    content = os.urandom(size)
    path.write_bytes(squashfs("etc", {"b": content, "a": b"first", "empty": b""}, created=1_700_000_000))
    unsquashfs("-quiet", "-no-progress", "-dest", str(tmp_path / "out"), str(path))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "etc").iterdir()} == {
        "a": b"first",
        "b": content,
        "empty": b"",
    }
    assert path.stat().st_size % 4096 == 0


def test_the_kernel_mounts_its_images(tmp_path: Path) -> None:
    path, at = tmp_path / "x.sqsh", tmp_path / "at"
    path.write_bytes(squashfs("etc", {"rc": b"hello"}, created=1_700_000_000))
    at.mkdir()
    mount = as_root("mount", "-o", "loop,ro", "-t", "squashfs", str(path), str(at))
    if mount.returncode != 0 and "wrong fs type" not in mount.stderr:  # which is what it says of a bad image
        pytest.skip(mount.stderr)
    assert mount.returncode == 0, mount.stderr
    try:
        assert (at / "etc" / "rc").read_bytes() == b"hello"
    finally:
        assert as_root("umount", str(at)).returncode == 0


def test_an_image_is_the_same_every_time() -> None:
    once, again = (squashfs("etc", {"a": b"1", "b": b"2"}, created=7) for _ in range(2))
    assert once == again
    with pytest.raises(ValueError, match="bytes of metadata"):
        squashfs("etc", {f"file-{number}": b"" for number in range(500)}, created=7)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("docker://a#b#c", "[ERROR] Invalid image reference: docker://a#b#c\n"),
        ("docker://a/B:c", "[ERROR] Invalid image reference: docker://a/B:c\n"),
        ("nvcr.io/x", "[ERROR] Invalid argument: nvcr.io/x\n"),
    ],
)
def test_a_bad_reference(tmp_path: Path, uri: str, says: str) -> None:
    for words in (("import", "-o", str(tmp_path / "x"), uri), ("digest", uri)):
        done = enroot(*words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", says)


def test_an_existing_output_and_a_missing_directory(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    done = enroot("import", "-o", str(tmp_path / "x"), URI)
    assert (done.returncode, done.stderr) == (1, f"[ERROR] File already exists: {tmp_path / 'x'}\n")
    done = enroot("import", "-o", str(tmp_path / "none" / "x"), URI)
    assert (done.returncode, done.stderr) == (1, f"[ERROR] No such file or directory: {tmp_path / 'none' / 'x'}\n")


def test_a_digest(tmp_path: Path) -> None:
    done = enroot("digest", URI)
    assert done.returncode == 0
    assert len(done.stdout) == len("sha256:") + 64 + 1


@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [
        ("401", 1, "[ERROR] URL https://nvcr.io/v2/nvidia/x/manifests/1 returned error code: 401 Unauthorized"),
        ("404", 1, "[ERROR] URL https://nvcr.io/v2/nvidia/x/manifests/1 returned error code: 404 Not Found"),
        ("429", 1, "returned error code: 429"),
        ("503", 1, "returned error code: 503 Service Unavailable"),
        ("refused", 7, "curl: (7) Failed to connect"),
        ("nospace", 1, "No space left on device\nFATAL ERROR: Failed to write to output filesystem"),
    ],
)
def test_failures_on_request(tmp_path: Path, fail: str, code: int, says: str) -> None:
    done = enroot("import", "-o", str(tmp_path / "x"), URI, faults=f"fail={fail}", ENROOT_TEMP_PATH=str(tmp_path))
    assert done.returncode == code
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_failures_end_after_so_many(tmp_path: Path) -> None:
    faults = f"fail=503,fail_times=2,counter={tmp_path / 'count'}"
    codes = [enroot("import", "-o", str(tmp_path / "x"), URI, faults=faults).returncode for _ in range(3)]
    assert codes == [1, 1, 0]


@pytest.mark.parametrize("faults", ["fail=500", "faill=404", "fail=404,fail_times=1", "nonsense"])
def test_a_request_that_it_does_not_know_is_refused(tmp_path: Path, faults: str) -> None:
    done = enroot("import", "-o", str(tmp_path / "x"), URI, faults=faults)
    assert done.returncode == 1
    assert FAULTS in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_it_writes_straight_to_the_name_and_the_superblock_last(tmp_path: Path, sent: signal.Signals) -> None:
    output, temporary = tmp_path / "x", tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, FAULTS: "slow=30", "ENROOT_TEMP_PATH": str(temporary)}
    with subprocess.Popen(
        command("import", "-o", str(output), URI), cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    ) as child:
        deadline = time.monotonic() + 60
        while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert output.read_bytes()[:96] == bytes(96)
        child.send_signal(sent)
        code = child.wait(60)
    if sent == signal.SIGTERM:
        assert (code, output.exists(), list(temporary.iterdir())) == (143, False, [])
    else:
        assert (code, output.exists(), len(list(temporary.iterdir()))) == (-9, True, 1), "both stay, as recorded"
