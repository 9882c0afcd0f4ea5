"""`launcher model`, as typed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cli.progress import ProgressLines, show_progress
from tests.model.checkpoints import checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "archive" / "MiniMax-M3")


def test_stage_verify_list_and_gc(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "fast" / "MiniMax-M3"
    assert main(["model", "stage", str(destination), "--from", str(source)]) == 0
    assert "staged: 0.0 GB" in capsys.readouterr().out
    assert main(["model", "stage", str(destination), "--from", str(source)]) == 0
    assert "is there already" in capsys.readouterr().out
    for flags in ([], ["--deep"]):
        assert main(["model", "verify", str(destination), *flags]) == 0
    assert "(every byte)" in capsys.readouterr().out
    shard = destination / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert main(["model", "verify", str(destination)]) == 0
    assert main(["model", "verify", str(destination), "--deep"]) == 4
    printed = capsys.readouterr()
    assert f"{shard.name} has another content than was staged" in printed.out
    assert "1 of 6 files differ" in printed.err

    dead = destination.with_name("MiniMax-M3.staging.0123456789ab")
    (dead / ".staging").mkdir(parents=True)
    (dead / "x").write_bytes(b"x" * 10000)
    assert main(["model", "list", str(tmp_path / "fast"), "--json"]) == 0
    listed = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert listed["MiniMax-M3"]["whole"] and listed["MiniMax-M3"]["manifest"]["source"] == str(source)
    assert not listed[dead.name]["whole"]
    assert main(["model", "gc", str(tmp_path / "fast")]) == 0
    assert "would remove" in capsys.readouterr().out
    assert dead.is_dir()
    assert main(["model", "gc", str(tmp_path / "fast"), "--apply"]) == 0
    assert "removed" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "fast").iterdir()] == ["MiniMax-M3"]


def test_check_says_what_and_which_would_be_right(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "check", str(source), "--precision", "bf16"]) == 0
    assert main(["model", "check", str(source), "--precision", "fp8"]) == 4
    assert "fp8 was asked for" in capsys.readouterr().out
    assert main(["model", "check", str(source.with_name("minimax-m3"))]) == 4
    assert f"there is {source}: is that the one?" in capsys.readouterr().out


def test_a_runners_table_is_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["model", "list", "--runner", "b200-dgxc", "--state", str(tmp_path)]) == 0
    assert "minimaxm3/fp8" in capsys.readouterr().out


def test_gc_looks_at_the_directories_that_are_named_and_at_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = tmp_path / "M.staging.0123456789ab"
    dead.mkdir()
    (tmp_path / "named").mkdir()
    argv = ["model", "gc", str(tmp_path / "named"), "--runner", "b200-dgxc", "--state", str(tmp_path / "state")]
    assert main(argv) == 0
    assert dead.name not in capsys.readouterr().out
    assert main(["model", "gc", "--apply"]) == 2


def test_what_is_there_gets_its_manifest(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "verify", str(source)]) == 4
    assert f"launcher model stage {source}" in capsys.readouterr().err
    assert main(["model", "stage", str(source)]) == 0
    assert main(["model", "verify", str(source), "--deep"]) == 0


def test_a_signal_ends_a_staging_that_can_go_on(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "archive" / "M")
    (source / "more").mkdir()
    for number in range(40):
        (source / "more" / str(number)).write_bytes(os.urandom(1 << 20))
    destination = tmp_path / "fast" / "M"
    argv = [sys.executable, "-m", "launcher", "model", "stage", str(destination), "--from", str(source)]
    child = subprocess.Popen([*argv, "--workers", "1"], stderr=subprocess.PIPE, text=True)
    while not list(destination.parent.glob("*/more/1*")):
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    printed = child.communicate(timeout=60)[1]
    assert (child.returncode, "the same command goes on from here" in printed) == (143, True), printed
    assert not destination.exists()
    again = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "were there" in again.stdout
    assert "going on with what pid" in again.stderr


def test_lines_say_bytes_rate_and_what_remains() -> None:
    now, printed = [0.0], io.StringIO()
    lines = ProgressLines(printed, "staging", clock=lambda: now[0])
    lines.begin(2, 40 * 10**9)
    lines.advance("a", 10 * 10**9, 10 * 10**9, resumed=True)
    now[0] = 29.0
    lines.advance("b", 30 * 10**9, 10**9)
    assert printed.getvalue() == ""
    now[0] = 30.0
    lines.advance("b", 30 * 10**9, 14 * 10**9)
    assert printed.getvalue() == "staging: 25.0 of 40.0 GB (62 %), 0.50 GB/s, 30 s left, 1 of 2 files\n"
    now[0] = 31.0
    lines.advance("b", 30 * 10**9, 15 * 10**9)
    assert printed.getvalue().endswith("staging: 40.0 of 40.0 GB (100 %), 0.97 GB/s, 2 of 2 files\n")


def test_bars_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with show_progress(stream) as progress:
        progress.begin(30, 3000)
        for number in range(30):
            progress.advance(f"shard-{number}", 100, 50)
        time.sleep(0.3)
        for number in range(30):
            progress.advance(f"shard-{number}", 100, 50)
        progress.advance("shard-0", 100, 0)  # a bar that is gone does not end a copy
    assert "staging, 30 files" in stream.getvalue()
    assert "shard-0" in stream.getvalue()


def test_a_table_whose_paths_hold_the_models_name_has_the_checkpoints_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["model", "check", "--runner", "local", "--state", str(tmp_path / "st*te")]
    assert main(command) == 4
    assert "no checkpoint was looked at" in capsys.readouterr().out
    for name in ("one", "other"):
        (tmp_path / "st*te/models" / name).mkdir(parents=True)
    assert main(command) == 4
    shown = " ".join(capsys.readouterr().out.split())
    assert "models/one: not whole" in shown and "models/other: not whole" in shown
