"""A header tells whether a file is whole, to the byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.model.weights import HEADER_LIMIT, LFS_POINTER, DamagedFile, read_header
from tests.model.checkpoints import safetensors


def damaged(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as raised:
        read_header(path)
    return str(raised.value)


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_a_whole_file(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"w": ("U8", 100), "s": ("F8_E4M3", 7), "n": ("BF16", 3)})
    header = read_header(path)
    assert header.size == path.stat().st_size
    assert header.tensors == {"w", "s", "n"}
    assert header.bytes_by_dtype == {"U8": 100, "F8_E4M3": 7, "BF16": 6}


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    assert read_header(safetensors(tmp_path / "a.safetensors", {})).tensors == frozenset()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_one_byte_short_or_long_or_cut_anywhere_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    whole = safetensors(path, {"w": ("U8", 100)}).read_bytes()
    damaged(path, whole[: data.draw(st.integers(0, len(whole) - 1))])
    damaged(path, whole + b"\0" * data.draw(st.integers(1, 10)))


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = safetensors(path, {"w": ("U8", 100)}).read_bytes()
    assert damaged(path, whole[:-1]) == f"1 byte too short ({len(whole) - 1} bytes)"
    assert damaged(path, whole + b"12") == f"2 bytes too long ({len(whole) + 2} bytes)"
    assert "within its header" in damaged(path, whole[:20])
    assert damaged(path, b"") == "empty"
    assert "Git-LFS pointer" in damaged(path, LFS_POINTER + b".github.com/spec/v1\noid sha256:00\nsize 4976698704\n")


@pytest.mark.parametrize(
    "content",
    [
        b"1234",
        b"\0" * 4096,
        (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}",
        framed(b"not json"),
        framed(b"[]"),
        framed(b'{"w": {"dtype": "U8"}}'),
        framed(b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, "1"]}}', b"1"),
        framed(b'{"w": 7}'),
        framed(b"[" * 100_000),
        b"PK\3\4" + b"zipped by torch" * 100,
    ],
)
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    assert "not a safetensors file" in damaged(tmp_path / "a.safetensors", content)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone")
    for name, said in (("pipe", "not a regular file"), (".", "not a regular file"), ("link", "a link to nothing")):
        with pytest.raises(DamagedFile, match=said):
            read_header(tmp_path / name)
    with pytest.raises(DamagedFile, match="no such file"):
        read_header(tmp_path / "nowhere")


def test_descriptors_are_closed_whatever_happens(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    path = tmp_path / "a.safetensors"
    for content in (b"", b"x", LFS_POINTER, framed(b"{}")):
        path.write_bytes(content)
        try:
            read_header(path)
        except DamagedFile:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
