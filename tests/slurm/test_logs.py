from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.slurm import logs
from launcher.slurm.logs import LogFollower


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_the_file_may_come_late(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "logs" / "sweep_1.log")
    assert follower.read_new() == []
    follower.path.parent.mkdir()
    append(follower.path, "one\ntwo\n")
    assert follower.read_new() == ["one", "two"]
    assert follower.read_new() == []


def test_a_partial_line_is_held_back(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "a\nhal")
    assert follower.read_new() == ["a"]
    assert follower.read_new() == []
    append(follower.path, "f\nrest")
    assert follower.read_new() == ["half"]
    assert follower.flush() == ["rest"]
    assert follower.flush() == []


def test_a_replaced_file_is_read_to_its_end_first(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "old 1\n")
    assert follower.read_new() == ["old 1"]
    append(follower.path, "old 2\nold, torn")
    follower.path.rename(tmp_path / "log.1")
    append(follower.path, "new 1\n")
    seen = follower.read_new()
    while more := follower.read_new():
        seen += more
    assert seen == ["old 2", "old, torn", "new 1"]


@pytest.mark.parametrize("again", ["b\n", "b\nand much more than there was before\n"])
def test_a_file_removed_and_written_anew_is_read_from_its_start(tmp_path: Path, again: str) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "a line of the first file\n")
    assert len(follower.read_new()) == 1
    follower.path.unlink()
    assert follower.read_new() == []
    append(follower.path, again)
    assert follower.read_new() == again.splitlines()


def test_truncation_starts_again(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "a long first line\n")
    assert follower.read_new() == ["a long first line"]
    with follower.path.open("wb"):
        pass
    append(follower.path, "short\n")
    assert follower.read_new() == ["short"]


def test_bytes_that_are_no_text_and_progress_bars(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, b"caf\xc3\xa9 \xff\n 10%\r 50%\r100%\r\nwindows\r\n")
    assert follower.read_new() == ["café \ufffd", "100%", "windows"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "READ_SIZE", 1000)
    monkeypatch.setattr(logs, "LONGEST_LINE", 100)
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "x" * 5050 + "\n" + "y\n" * 2000)
    calls = []
    while lines := follower.read_new():
        calls.append(lines)
    assert max(sum(len(line) + 1 for line in lines) for lines in calls) <= 1200
    assert "".join("".join(lines) for lines in calls) == "x" * 5050 + "y" * 2000


def test_a_path_that_cannot_be_read_is_nothing_new(tmp_path: Path) -> None:
    assert LogFollower(tmp_path).read_new() == []
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert LogFollower(tmp_path / "loop").read_new() == []


def test_no_line_is_lost_or_doubled_while_the_file_grows(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    written = "".join(f"line {n}\n" for n in range(3000)).encode()
    seen: list[str] = []
    for start in range(0, len(written), 997):
        append(follower.path, written[start : start + 997])
        seen += follower.read_new()
    assert seen == written.decode().splitlines()


def test_who_is_too_far_behind_is_told_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LONGEST_BACKLOG", 10_000)
    monkeypatch.setattr(logs, "KEPT_BACKLOG", 1000)
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "first\nhalf")
    assert follower.catch_up() == []
    assert follower.read_new() == ["first"]
    written = "".join(f" of line {n}\n" for n in range(5000))
    append(follower.path, written)
    held, said = follower.catch_up()
    assert held == "half"
    left = follower.read_new()
    assert left == written.splitlines()[-len(left) :] and sum(len(line) + 1 for line in left) <= 1000
    skipped = len(written) - sum(len(line) + 1 for line in left)
    assert f"{skipped} bytes of this log are left out here; all of it is in {follower.path}" in said
    assert follower.path.read_text() == "first\nhalf" + written


def test_a_log_that_ended_before_the_first_look_is_shown_by_its_end(tmp_path: Path) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, "x" * 79 + "\n")
    append(follower.path, ("y" * 79 + "\n") * 20_000)
    (said,) = follower.catch_up(1 << 20)
    assert "left out" in said and len(follower.read_new()) < (1 << 20) / 80 + 1


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_one_endless_line_is_read_in_bounded_pieces(tmp_path: Path, size: int) -> None:
    follower = LogFollower(tmp_path / "log")
    append(follower.path, b"x" * size)
    pieces: list[str] = []
    while (lines := follower.read_new()) or follower.behind:
        assert sum(map(len, lines)) <= logs.READ_SIZE + logs.LONGEST_LINE
        pieces += lines
    assert "".join(pieces + follower.flush()) == "x" * size


def test_a_pipe_in_the_place_of_a_log_is_nothing_new(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    assert LogFollower(tmp_path / "log").read_new() == []
