"""Whole, cut, empty, something else: what 96 bytes tell, against files that real mksquashfs made."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.image.squash import WHOLE, DamagedImage, MissingImage, Sidecar, check_lists, inspect, sidecar_path
from tests.commands import ScriptedCommands
from tests.image.squashfs_tools import mksquashfs, needs_squashfs_tools
from tests.image.support import completed, small_image

UNCHECKED = "not checked: unsquashfs "


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return mksquashfs(tmp_path_factory.mktemp("squash") / "x.sqsh").read_bytes()


@needs_squashfs_tools
@pytest.mark.parametrize(
    "options",
    [
        "",
        "-comp lzo -noD -exit-on-error",  # enroot's default
        "-comp zstd -Xcompression-level 3 -b 1M",
        "-comp lz4",
        "-comp xz",
        "-nopad",
        "-no-exports -no-xattrs -no-fragments",
        "-noI -noD -noF -noX",
    ],
)
def test_whole_files_of_every_kind_pass(tmp_path: Path, options: str) -> None:
    path = mksquashfs(tmp_path / "x.sqsh", *options.split())
    block = inspect(path)
    status = path.stat()
    assert (block.size, block.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert abs(block.created - status.st_mtime) < 60
    assert check_lists(path) == WHOLE


@needs_squashfs_tools
@pytest.mark.parametrize("lost", [1, 100, 4096, 4097, "half", "all but 96", "all but 95"])
def test_a_cut_file_is_damaged(tmp_path: Path, real: bytes, lost: int | str) -> None:
    size = len(real)
    keep = {"half": size // 2, "all but 96": 96, "all but 95": 95}[lost] if isinstance(lost, str) else size - lost
    path = tmp_path / "x.sqsh"
    path.write_bytes(real[:keep])
    with pytest.raises(DamagedImage, match="not a whole squash file"):
        inspect(path)


@needs_squashfs_tools
def test_a_cut_file_without_padding_is_damaged(tmp_path: Path) -> None:
    path = mksquashfs(tmp_path / "x.sqsh", "-nopad")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DamagedImage, match="cut short"):
        inspect(path)


def at(offset: int, form: str, value: int) -> tuple[int, bytes]:
    return offset, struct.pack(form, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((0, b"hsqt"), "it begins with b'hsqt'"),
        (at(4, "<I", 0), "no inodes"),
        (at(12, "<I", 100_000), "impossible block size"),
        (at(20, "<H", 9), "unknown compressor 9"),
        (at(22, "<H", 40), "impossible block size"),
        (at(28, "<H", 3), r"squashfs 3\.0"),
        (at(40, "<Q", 1 << 40), "cut short"),
        (at(48, "<Q", 0), "a table lies outside"),
        (at(64, "<Q", 0), "a table lies outside"),
        (at(64, "<Q", 1 << 33), "a table lies outside"),
        (at(72, "<Q", 97), "out of order"),
        (at(80, "<Q", 5), "a table lies outside"),
    ],
)
def test_a_superblock_that_cannot_be_is_damaged(tmp_path: Path, change: tuple[int, bytes], says: str) -> None:
    path = small_image(tmp_path / "x.sqsh")
    offset, new = change
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)
    with pytest.raises(DamagedImage, match=says):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (bytes(5000), "begins with zeros"), (b"<html>503</html>" * 99, "it begins with b'<htm'")],
)
def test_what_is_no_squash_file_is_damaged(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.sqsh"
    path.write_bytes(content)
    with pytest.raises(DamagedImage, match=says) as caught:
        inspect(path)
    assert caught.value.where == str(path)


def test_nothing_there_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (
        tmp_path / "x.sqsh",
        tmp_path / "none" / "x.sqsh",
        tmp_path / "file" / "x.sqsh",
        tmp_path / "dangling",
    ):
        with pytest.raises(MissingImage):
            inspect(path)


def test_what_must_not_be_replaced_is_an_error_of_its_own(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, says in (
        (tmp_path, "a directory"),
        (tmp_path / "fifo", "regular"),
        (tmp_path / "loop", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=says) as caught:
            inspect(path)
        assert not isinstance(caught.value, (MissingImage, DamagedImage))
        assert caught.value.hint


def test_it_reads_through_a_symbolic_link(tmp_path: Path) -> None:
    small_image(tmp_path / "real.sqsh")
    (tmp_path / "link.sqsh").symlink_to("real.sqsh")
    assert inspect(tmp_path / "link.sqsh") == inspect(tmp_path / "real.sqsh")


@needs_squashfs_tools
def test_the_listing_sees_what_the_superblock_does_not(tmp_path: Path, real: bytes) -> None:
    path = tmp_path / "x.sqsh"
    path.write_bytes(real)
    tables = struct.unpack_from("<Q", real, 64)[0]
    with path.open("r+b") as file:
        file.seek(tables)
        file.write(bytes(64))
    inspect(path)
    with pytest.raises(DamagedImage, match="its lists cannot be read"):
        check_lists(path)


@pytest.mark.parametrize(
    ("returncode", "stderr", "expected"),
    [
        (0, "", "whole"),
        (1, "FATAL ERROR: File system corruption detected", None),
        (1, "Filesystem uses lzo compression, this is unsupported by this version", UNCHECKED + "does not know"),
        (127, "unsquashfs: No such file or directory", UNCHECKED + "is not installed"),
        (137, "Killed", UNCHECKED + "did not end by itself"),
        (-9, "", UNCHECKED + "did not end by itself"),
        (None, "", UNCHECKED + "did not end by itself"),
    ],
)
def test_only_unsquashfs_own_verdict_counts_as_damage(
    returncode: int | None, stderr: str, expected: str | None
) -> None:
    runner = ScriptedCommands(lambda argv: completed(argv, returncode, stderr))
    if expected is None:
        with pytest.raises(DamagedImage):
            check_lists(Path("/x.sqsh"), runner)
    else:
        assert check_lists(Path("/x.sqsh"), runner).startswith(expected)
    assert runner.calls == [("unsquashfs", "-l", "/x.sqsh")]


def test_a_machine_without_unsquashfs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_lists(small_image(tmp_path / "x.sqsh")) == UNCHECKED + "is not installed"


@pytest.mark.parametrize("content", [None, b'{"x":' + b"[" * 100_000, b'{"reference":"\xff"}', b"x" * (2 << 20)])
def test_a_record_that_cannot_be_one_says_nothing(tmp_path: Path, content: bytes | None) -> None:
    """A pipe, which an ordinary open would wait for; and what a parser stumbles over."""
    path = sidecar_path(tmp_path / "x.sqsh")
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert Sidecar.read(tmp_path / "x.sqsh") is None
