"""Standard output that holds up nobody: pipes that nobody reads are real ones."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launcher.cli.output import ROOM, Output
from launcher.cli.render import Console
from launcher.core.github import GitHub
from launcher.run.record import Event


def test_everything_is_written_in_order() -> None:
    stream = io.StringIO()
    output = Output(stream)
    for number in range(1000):
        output.write(f"{number}\n")
    assert output.close()
    assert stream.getvalue() == "".join(f"{number}\n" for number in range(1000))


def test_a_pipe_that_nobody_reads_holds_up_no_event_and_logs_wait() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = Output(stream)
        output.write("x" * (ROOM + 1))
        for _ in range(10_000):
            output.write("an event\n")
        waited = threading.Thread(target=output.wait_for_room, daemon=True)
        waited.start()
        waited.join(0.2)
        assert waited.is_alive()
        assert not output.close(patience=0.2)
        waited.join(30)
        assert not waited.is_alive(), "who waits for room is let go at the end"
        os.close(reading)


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        output = Output(stream)
        output.write("x")
        assert output.close()
        output.write("y")
        output.wait_for_room()


def test_a_process_ends_though_nobody_reads_what_it_says() -> None:
    """A thread that hangs in a write must not be waited for by the interpreter, nor end it with a fault."""
    script = (
        "import sys\nfrom launcher.cli.output import Output\n"
        "out = Output(sys.stdout)\nout.write('x' * 1000000)\nout.close(0.2)\nsys.exit(7)"
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
