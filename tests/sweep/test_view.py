"""The live view: what it draws at 80 and at 140 columns, what it rewrites, and its keys through a pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.text import Text

from launcher.cli.sweep_status import SweepWatcher
from launcher.cli.sweep_status import show_overview as sweep_lines
from launcher.cli.sweep_view import KEYS, Screen, View
from launcher.core import lines
from launcher.sweep.attempts import Records
from launcher.sweep.ledger import Ledger
from launcher.sweep.overview import JobLine, Overview, age
from launcher.sweep.schema import Policy, Requested
from scripts.measure_sweeps.emulation import drive, make_sweep
from tests.run.driving import KEY
from tests.sweep.test_crash import Seen, driver, row

NOW = 1_000_000.0


def a_line(number: int, state: str = "running", **more: object) -> JobLine:
    given = {
        "key": f"minimaxm3-1024x1024-{number}p1d-dep4-tep8-abcdef-c4-4096",
        "runner": "gb200-nv",
        "topology": f"{number}P1D DEP4/TEP8",
        "measures": "1024/1024",
        "concurrencies": (4, 16),
        "state": state,
        "reason": "",
        "ok": 1,
        "since": NOW - 600.0 * number,
    }
    return JobLine(**{**given, **more})  # type: ignore[arg-type]


def an_overview(*jobs: JobLine, **more: object) -> Overview:
    given = {
        "id": "m3-weekend",
        "driver": "pid 1 on login",
        "asked": "",
        "points": {"ok": 12, "running": 3, "failed": 2, "planned": 30},
        "runners": {"gb200-nv": {"running": 3, "queued": 2, "planned": 5}, "h100": {"queued": 1}},
        "jobs": jobs,
        "spent": 12.5,
        "reserved": 44.0,
        "budget": 400.0,
        "rate": 2.1,
        "end": NOW,
        "excluded": ("gb200-003 of gb200-nv: Xid 79",),
        "held": (),
    }
    return Overview(**{**given, **more})  # type: ignore[arg-type]


HOSTILE = "\x1b[2J\x1b]0;title\x07::set-output name=x::y\u202e"
JOBS = (
    a_line(1, now=64, throughput="[conc 64] throughput: 3120.55 tok/s"),
    a_line(2, "queued", reason="PENDING (Resources)"),
    a_line(3, "failed", reason=f"server: out of memory {HOSTILE}"),
    a_line(4, "ok"),
)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (40, 10)])
def test_no_line_is_wider_than_the_terminal_and_what_lives_comes_first(width: int, height: int) -> None:
    drawn = View().lines(an_overview(*JOBS), width, height, NOW)
    plain = [Text.from_ansi(line).plain for line in drawn]
    assert len(drawn) <= height and all(len(line) <= width for line in plain)
    assert "\x07" not in "".join(drawn) and "\x1b]" not in "".join(drawn) and "\x1b[2J" not in "".join(drawn)
    order = [next(n for n, line in enumerate(plain) if state in line.split()) for state in ("running", "queued")]
    assert order == sorted(order) or width < 80
    if width >= 80:
        text = "\n".join(plain)
        assert "12/47 ok" in text and "12.5 spent, 44.0 reserved of 400" in text and "2.1 points/h" in text
        assert "gb200-nv 3 running 2 queued" in text and "h100 1 queued" in text
        assert "throughput" in text and " 64 " in text and "10m" in text
        assert "gb200-003" in text and plain[-1].startswith(KEYS[:20])


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_key_and_no_reason_is_cut_at_any_width(width: int) -> None:
    text = " ".join(" ".join(sweep_lines(an_overview(*JOBS), lines.Terminal(width))).split())
    assert all(job.key in text for job in JOBS) and "PENDING (Resources)" in text


def test_plain_lines_have_the_same_values_and_one_line_a_job() -> None:
    shown = list(sweep_lines(an_overview(*JOBS), lines.Terminal()))
    assert shown[0].startswith("m3-weekend  12/47 ok") and "pid 1 on login" in shown
    assert sum(line.startswith(("running", "queued", "failed", "ok")) for line in shown) == 4


def test_only_lines_that_changed_are_written_again() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.draw(["a", "b", "c"], (80, 24))
    stream.truncate(0)
    screen.draw(["a", "x", "c"], (80, 24))
    assert re.findall(r"\x1b\[(\d+);1H", stream.getvalue()) == ["2"]
    before = screen.written
    screen.draw(["a", "x", "c"], (80, 24))
    assert screen.written == before
    screen.draw(["a", "x", "c"], (100, 24))
    assert screen.written > before, "another size is drawn anew"


@pytest.mark.parametrize(("minutes", "shown"), [(0, "0m"), (99, "99m"), (100, "1h"), (5999, "99h"), (7200, "5d")])
def test_ages(minutes: int, shown: str) -> None:
    assert age(NOW - minutes * 60, NOW) == shown


class Terminal:
    """`launcher sweep` on a pseudo-terminal of 80 columns."""

    def __init__(self, root: Path, *words: str, **more: str) -> None:
        self.pid, self._number = pty.fork()
        if self.pid == 0:
            os.environ.update(LAUNCHER_STATE=str(root / "state"), HOME=str(root), TERM="xterm", **more)
            os.execv(sys.executable, [sys.executable, "-m", "launcher", "sweep", *words])
        fcntl.ioctl(self._number, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.seen = ""

    def until(self, text: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen[-2000:]!r}"
            if select.select([self._number], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._number, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert text in self.seen
                    return

    def press(self, key: str) -> None:
        self.seen = ""
        os.write(self._number, key.encode())

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_view_of_a_sweep_that_nobody_drives_closes(tmp_path: Path) -> None:
    make_sweep(tmp_path, "s", [row(1, 4)], Policy())
    terminal = Terminal(tmp_path, "status", "s", "--watch")
    terminal.until("nobody drives it")
    assert terminal.end() == 0


def test_errors_while_the_view_is_open_are_shown_in_it_and_said_afterwards(tmp_path: Path) -> None:
    """Here a program of --notify that is none, in the driver's own terminal."""
    program = tmp_path / "notify"
    program.write_bytes(b"\0no program")
    program.chmod(0o755)
    selected = ("-k", KEY, "--runner", "local", "--seq", "1k1k", "--topology", "1P1D DEP4/TP4", "--conc", "4")
    words = ("start", *selected, "--name", "s", "--notify", str(program))
    terminal = Terminal(tmp_path, *words, LAUNCHER_REHEARSAL_SECONDS="0.01")
    terminal.until("sweep s  1/1 ok")
    shown, _, after = terminal.seen.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in shown and "Exec format error" in after and "error: --notify" in shown
    assert terminal.end() == 0


def test_a_second_look_reads_new_events_and_no_run_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4)], Policy())
    drive(tmp_path, "s")
    ledger = Ledger.load(tmp_path / "state/sweeps", "s")
    sight, read = SweepWatcher(tmp_path / "state/runs", ledger), list[str]()
    facts = Records.facts
    monkeypatch.setattr(Records, "facts", lambda self, run: read.append(run) or facts(self, run))
    first = sight.overview()
    assert first.points == {"ok": 2} and set(read) == {point.run for point in first.states}
    read.clear()
    ledger.append(Requested(time=0.0, verb="pause", by="me"))
    with (ledger.directory / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "ask", "time": 0, "verb": "dra')
    second = sight.overview()
    assert second.asked == "pause" and second.points == first.points and not read
    assert second.notes[0].endswith("events.jsonl is cut"), "said, since nobody is at it"
    ledger.append(Requested(time=0.0, verb="drain", by="me"))
    assert sight.overview().asked == "drain"


def test_keys(tmp_path: Path) -> None:
    """p pauses, g goes on, l shows a job's log, d drains, q leaves the view and nothing else."""
    said = {"SECONDS": "600", "LOG": "[conc 16] throughput: 4321.0 tok/s\n"}
    make_sweep(tmp_path, "s", [row(1, 4, 16, **said), row(2, 4)], Policy(max_jobs=1, order="given"))
    process = driver(tmp_path)
    while Seen(tmp_path).state.began is None:
        assert process.poll() is None
        time.sleep(0.05)
    terminal = Terminal(tmp_path, "status", "s", "--watch")
    try:
        terminal.until("throughput")
        assert "\x1b[?1049h" in terminal.seen
        asked = {"p": {"": "pause"}, "g": {}, "d": {"": "drain"}}
        for key, state in asked.items():
            terminal.press(key)
            terminal.until("asked to")
            deadline = time.monotonic() + 30
            while Seen(tmp_path).state.requested != state:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        terminal.press("l")
        terminal.until("q back to the jobs")
        assert "4321.0" in terminal.seen
        terminal.press("q")
        terminal.until("done")
        terminal.press("q")
        terminal.until("\x1b[?1049l")
        assert terminal.end() == 0 and process.poll() is None, "the driver goes on"
        verbs = [event.verb for event in Seen(tmp_path).events if isinstance(event, Requested)]
        assert verbs == ["pause", "go-on", "drain"]
    finally:
        process.kill()
        process.wait()
