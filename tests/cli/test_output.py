"""Standard output that holds up nobody: pipes that nobody reads are real ones."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.cli.console import Console
from launcher.cli.output import BUFFER_LIMIT, BackgroundOutput
from launcher.core.github import GitHub
from launcher.image.squash import sidecar_path
from launcher.run.record import Event, RecordedJob
from tests.run.runs import a_run


def test_everything_is_written_in_order() -> None:
    stream = io.StringIO()
    output = BackgroundOutput(stream)
    for number in range(1000):
        output.write(f"{number}\n")
    assert output.close()
    assert stream.getvalue() == "".join(f"{number}\n" for number in range(1000))


def test_a_pipe_that_nobody_reads_holds_up_no_event_and_logs_wait() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = BackgroundOutput(stream)
        output.write("x" * (BUFFER_LIMIT + 1))
        for _ in range(10_000):
            output.write("an event\n")
        waited = threading.Thread(target=output.wait_for_room, daemon=True)
        waited.start()
        waited.join(0.2)
        assert waited.is_alive()
        assert not output.close(timeout=0.2)
        waited.join(30)
        assert not waited.is_alive(), "who waits for room is let go at the end"
        os.close(reading)


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        output = BackgroundOutput(stream)
        output.write("x")
        assert output.close()
        output.write("y")
        output.wait_for_room()


def test_a_process_ends_though_nobody_reads_what_it_says() -> None:
    """A thread that hangs in a write must not be waited for by the interpreter, nor end it with a fault."""
    script = (
        "import sys\nfrom launcher.cli.output import BackgroundOutput\n"
        "out = BackgroundOutput(sys.stdout)\nout.write('x' * 1000000)\nout.close(0.2)\nsys.exit(7)"
    )
    reading, writing = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stderr) == (7, b"")


def test_a_job_s_log_is_shown_without_secrets_commands_and_controls(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "https://example.org/abcdef")
    console = Console({"r": "r"}, None)
    console.log("r", ["to https://example.org/abcdef", "::set-output name=a::b", "\x1b[31mred\x1b[0m \x1b]0;t\x07", ""])
    console.event(Event(0.0, "r", "warning", "two\nlines \x1b[2J", {}))
    assert capsys.readouterr().out.splitlines() == [
        "  | to ***",
        "  | ::set-output name=a::b",
        "  | red \\x1b]0;t\\x07",
        "  | ",
        "    0.0s  warning: two",
        "          lines \\x1b[2J",
    ]


def test_a_block_of_lines_has_one_pair_of_marks(tmp_path: Path) -> None:
    stream = io.StringIO()
    with GitHub({"GITHUB_ACTIONS": "true"}, stream) as github:
        Console({"r": "r"}, github).log("r", ["::error::x"] * 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1002 and lines[0].startswith("::stop-commands::") and lines[-1] == f"::{lines[0][17:]}::"


def test_launcher_logs_shows_what_run_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = a_run(tmp_path).record
    log = tmp_path / "log"
    log.write_text("login s3cr3t-value\n::set-output name=x::y\n\x1b[2J\x1b[32mready\x1b[0m\nDEPLOY_KEY=abcdefgh12")
    record.update(state="failed", job=RecordedJob("7", 1.0, str(tmp_path), str(log)))
    monkeypatch.setenv("LAUNCHER_STATE", str(tmp_path))
    monkeypatch.setenv("REGISTRY_PASSWORD", "s3cr3t-value")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["logs", "r1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "login ***",
        "\\::set-output name=x::y",
        "\\x1b[2Jready",
        "DEPLOY_KEY=***",
    ]


def test_a_neighbour_s_sidecar_gives_the_runner_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared directory of images anybody may write a name of two lines, and a record beside it."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    name = tmp_path / "x\n::set-output name=a::b\x1b[2J.sqsh"
    name.write_bytes(b"hsqs")
    sidecar_path(name).write_text('{"reference": "r\\n::error::x"}')
    main(["image", "list", "--directory", str(tmp_path)])
    main(["image", "verify", "--offline", "--directory", str(tmp_path)])
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if line.strip().startswith("::")]
    assert [line for line in lines if "set-output" in line.split("::")[1] or "::error::x" in line] == []
    assert "\x1b" not in printed.out + printed.err and "set-output" in printed.out + printed.err
