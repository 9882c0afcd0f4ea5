"""Striping, by an `lfs` that writes down what it is asked and makes the file, as the real one does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.model.source import DirectorySource
from launcher.model.stage import stage, striping
from tests.model.checkpoints import checkpoint

LFS = """#!/bin/sh
for last; do :; done
if [ -s "$last" ] && [ ! -d "$last" ]; then echo "too late for $last" >&2; exit 1; fi
[ -e "$last" ] || : > "$last"
echo "$@" >> "$LFS_LOG"
exit ${LFS_ANSWER:-0}
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "lfs"
    program.parent.mkdir()
    program.write_text(LFS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LFS_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_layouts_are_set_before_the_first_byte(tmp_path: Path, log: Path) -> None:
    source = checkpoint(tmp_path / "archive" / "M")
    messages: list[str] = []
    shards = [path.stat().st_size for path in source.glob("*.safetensors")]
    policy = [(min(shards), 4, "16M"), (0, 1, "4M"), (10**12, -1, "4M")]
    done = stage(DirectorySource(source), tmp_path / "lustre" / "M", set_layout=striping(policy, log=messages.append))
    assert done.how == "staged"
    assert messages == []
    lines = [line.split() for line in log.read_text().splitlines()]
    assert all(line[0] == "setstripe" for line in lines)
    first, *rest = lines
    assert first[1:5] == ["-c", "1", "-S", "4M"]
    assert ".staging." in Path(first[5]).name  # the temporary, never the published name
    assert {tuple(line[1:5]) for line in rest} == {("-c", "4", "-S", "16M")}
    big = {path.name for path in source.iterdir() if path.stat().st_size >= min(shards)}
    assert {Path(line[5]).name for line in rest} == big


def test_where_lustre_is_not_the_copy_goes_on(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFS_ANSWER", "1")
    source = checkpoint(tmp_path / "archive" / "M")
    messages: list[str] = []
    assert stage(DirectorySource(source), tmp_path / "M", set_layout=striping(log=messages.append)).how == "staged"
    assert len(messages) == len(log.read_text().splitlines()) == 1
