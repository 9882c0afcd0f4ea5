"""Publishing: whole or absent, and never in anyone's way."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from launcher.core import publish
from launcher.core.publish import (
    dead_temporaries,
    publish_new,
    publishing,
    publishing_directory,
    temporary_name,
    write_json,
    write_text,
)


def test_a_block_that_fails_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    final = tmp_path / "f"
    final.write_text("old")
    with pytest.raises(RuntimeError), publishing(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "d.json", {"a": 1})
    write_json(tmp_path / "d.json", {"b": "ü"})
    assert json.loads((tmp_path / "d.json").read_text()) == {"b": "ü"}
    assert os.listdir(tmp_path) == ["d.json"]


def test_names_of_temporaries_are_unique_hidden_and_short_enough(tmp_path: Path) -> None:
    final = tmp_path / ("ü" * 127)
    names = {temporary_name(final).name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(".") and len(name.encode()) <= 255 for name in names)


def test_the_first_to_publish_wins(tmp_path: Path) -> None:
    final, mine, theirs = tmp_path / "f", tmp_path / "a", tmp_path / "b"
    mine.write_text("first")
    theirs.write_text("second")
    assert publish_new(mine, final) is True
    assert publish_new(theirs, final) is False
    assert final.read_text() == "first"
    assert os.listdir(tmp_path) == ["f"]


def test_a_directory_is_published_whole_and_the_first_one_stays(tmp_path: Path) -> None:
    final = tmp_path / "d"
    for content in ("first", "second"):
        with publishing_directory(final) as temporary:
            temporary.mkdir()
            (temporary / "f").write_text(content)
    assert (final / "f").read_text() == "first"
    with pytest.raises(RuntimeError), publishing_directory(tmp_path / "e") as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert os.listdir(tmp_path) == ["d"]


def test_a_directory_is_not_published_over_something_else(tmp_path: Path) -> None:
    final = tmp_path / "d"
    final.mkdir()
    (final / "theirs").touch()
    with pytest.raises(OSError), publishing_directory(final, whole=lambda path: False) as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "theirs"]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "f", "x")


def test_only_what_processes_of_this_host_left_is_known_to_be_dead(tmp_path: Path) -> None:
    host = os.uname().nodename[:32]
    dead, alive = 2**22 + 1, os.getpid()
    names = [
        f".x.sqsh.{host}.{dead}.0123abcd.part",
        f".x.sqsh.{host}.{alive}.0123abcd.part",
        f".x.sqsh.login-2.{dead}.0123abcd.part",
        f".x.sqsh.{host}.{dead}.0123abcd.part.json",
        "x.sqsh.part",
        "x.sqsh",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".enroot.{host}.{dead}.89abcdef.part").mkdir()
    assert [path.name for path in dead_temporaries(tmp_path)] == [f".enroot.{host}.{dead}.89abcdef.part", names[0]]


def test_what_is_written_meanwhile_is_stored_and_what_cannot_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, looked = list[Path](), threading.Event()

    def store(path: Path) -> None:
        looked.set()
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "not yet", str(path))
        stored.append(path)
        if len(stored) == 2:
            raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(publish, "fsync", store)
    file = tmp_path / "x"
    with publish.sync_meanwhile(file, every=0.001):
        assert looked.wait(10)
    with pytest.raises(OSError, match="no space"), publish.sync_meanwhile(file, every=0.001):
        file.touch()
        while len(stored) < 2:
            time.sleep(0.001)
