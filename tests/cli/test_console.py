"""What people see while runs go on, by a clock that the test moves: lines, silences, a terminal's block, JSON."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.cli.command import CommandRewriter
from launcher.cli.console import OutputOptions
from launcher.core.errors import Cancelled, JobError, LauncherError, ResultError
from launcher.core.process import RunningProgram, run, running_programs
from launcher.run.fields import Verdict
from launcher.run.finish import Outcome
from launcher.slurm.client import JobState, Phase
from tests.cli.scenes import AsTerminal, Scene

HINT = "look at launcher logs r"


@pytest.fixture(autouse=True)
def _streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back whatever a scene has put there
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def _run_of(scene: Scene, phases: Sequence[tuple[str, str, dict[str, object], float]]) -> None:
    for kind, text, data, seconds in phases:
        scene.event(kind, text, **data)
        scene.until(scene.now + seconds)


PHASES: list[tuple[str, str, dict[str, object], float]] = [
    ("stage", "images …", {"stage": "images", "state": "running"}, 1.0),
    ("note", "waiting for x.sqsh: pid 3 on vm", {}, 40.0),
    ("stage", "submit …", {"stage": "submit", "state": "running", "at_most": 300.0}, 45.0),
    ("job", "job 7 submitted", {"job": "7"}, 0.5),
    ("job", "PENDING (Resources), expected to start Thu 14:05", {"job": "7", "state": "PENDING"}, 610.0),
    ("job", "RUNNING on n1", {"job": "7", "state": "RUNNING", "at_most": 3600.0}, 20.0),
    ("job", "COMPLETED on n1 after 20 s", {"job": "7", "state": "COMPLETED"}, 0.0),
    ("stage", "collect …", {"stage": "collect", "state": "running", "at_most": 60.0}, 12.0),
    ("end", "failed: results: 1 of 2 is missing\n  concurrency 16", {"layer": "results"}, 0.0),
    ("verdict", "results: 1 of 2 is missing", {}, 0.0),
]


def test_a_terminal_is_never_silent_for_two_seconds_and_has_one_line_for_the_run() -> None:
    scene = Scene(AsTerminal())
    _run_of(scene, PHASES)
    assert scene.longest_silence() <= 2.0
    drawn = [line for line in scene.text.splitlines() if line and not line.startswith("\x1b[1m")]
    assert all(len(re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", line)) < 80 for line in drawn)
    for printed in (
        "1P1D  waiting for x.sqsh: pid 3 on vm  40 s",
        "1P1D  submitting the job  45 s of 5:00",
        "1P1D  job 7: PENDING (Resources), expected to start Thu 14:05  10:10",
        "1P1D  job 7: RUNNING on n1, 2 of 5 (conc 16)  20 s of 1:00:00",
        "1P1D  collecting results  12 s of 60 s",
    ):
        assert printed in scene.text, printed
    assert scene.text.count("\x1b[1A\r\x1b[J") >= 600, "each line replaces the one before"


def test_elsewhere_what_is_waited_for_is_said_within_two_seconds_and_then_ever_less_often() -> None:
    scene = Scene(io.StringIO())
    _run_of(scene, PHASES)
    lines = scene.text.splitlines()
    assert [line for line in lines if "waiting: job 7: PENDING" in line] == [
        f"{86.5 + at:7.1f}s  waiting: job 7: PENDING (Resources), expected to start Thu 14:05, for {printed}"
        for at, printed in (
            (2, "2 s"),
            (10, "10 s"),
            (30, "30 s"),
            (60, "60 s"),
            (120, "2:00"),
            (300, "5:00"),
            (600, "10:00"),
        )
    ]
    assert "waiting: submitting the job, for 2 s of at most 5:00" in scene.text
    assert [line[10:] for line in lines if "waiting" not in line] == [
        "job 7 submitted",
        "job 7: PENDING (Resources), expected to start Thu 14:05",
        "job 7: RUNNING on n1",
        "job 7: COMPLETED on n1 after 20 s",
        "failed: results",
    ]
    for (began, text), (later, _) in itertools.pairwise(scene.written):
        if "waiting" not in text:
            assert later - began <= 2.0 or began == later, text


def test_programs_that_are_waited_for_are_named_with_their_bound_and_the_rate_of_what_they_write(
    tmp_path: Path,
) -> None:
    squash = tmp_path / "x.sqsh"
    squash.write_bytes(b"x" * 3_000_000)
    scene = Scene(io.StringIO())
    scene.event("stage", "images …", stage="images", state="running")
    scene.programs = [
        RunningProgram(("/usr/bin/enroot", "import", "-o", str(squash), "docker://x"), 0.0, 3600.0),
        RunningProgram(("squeue", "-h"), 1.5, 30.0),
    ]
    scene.until(2.0)
    assert scene.text == (
        "    2.0s  waiting: looking for the images, for 2 s; enroot import for 2 s of at most 1:00:00, 3 MB, 1.5 MB/s\n"
    )


def test_what_a_program_is_waited_for_is_known_while_it_runs() -> None:
    seen: list[str] = []

    def look() -> bool:
        seen.extend(
            f"{waited.name} {waited.at_most:.0f}" for waited in running_programs() if waited.argv == ("sleep", "0.3")
        )
        return False

    assert run(["sleep", "0.3"], timeout=20, should_stop=look).ok
    assert seen and set(seen) == {"sleep 20"}
    assert [waited for waited in running_programs() if waited.argv == ("sleep", "0.3")] == []


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (OutputOptions(quiet=True), []),
        (OutputOptions(many=True), ["    0.0s  1P1D  warning: w"]),
        (OutputOptions(verbose=True), ["    0.0s  note n", "    0.0s  warning: w", "    0.0s  job 7 submitted"]),
        (OutputOptions(), ["    0.0s  warning: w", "    0.0s  job 7 submitted"]),
    ],
)
def test_how_much_is_said(options: OutputOptions, shown: list[str]) -> None:
    scene = Scene(io.StringIO(), options)
    for kind, text in (("note", "note n"), ("warning", "w"), ("job", "job 7 submitted"), ("verdict", "v")):
        scene.event(kind, text)
    assert scene.text.splitlines() == shown


def test_events_are_lines_of_json() -> None:
    scene = Scene(io.StringIO(), OutputOptions(as_json=True))
    _run_of(scene, PHASES[2:5])
    scene.console.log("r", ["a line", "::x"])
    scene.console.outcomes(Path("/none"), [Outcome("r", "failed", error=JobError("m", where="w"))])
    scene.note()
    values = [json.loads(line) for line in scene.text.splitlines()]
    assert [value["event"] for value in values if value["event"] != "waiting"] == [
        "stage",
        "job",
        "job",
        "log",
        "outcome",
    ]
    assert values[-1] == {
        "event": "outcome",
        "run": "r",
        "state": "failed",
        "exit_code": 6,
        "error": "w: m",
        "points": [],
    }
    waiting = next(value for value in values if value["event"] == "waiting")
    assert waiting == {
        "event": "waiting", "time": 2.0, "run": "r", "text": "submitting the job", "since": 0.0, "at_most": 300.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "verdict", "shown"),
    [
        (Cancelled("by SIGINT"), Verdict("cancelled", "by SIGINT"), "cancelled: by SIGINT"),
        (ResultError("1 is missing:\n  c 16", hint=HINT), Verdict("results", "1 is missing: c 16"),
         f"results: 1 is missing:\n  c 16\n  hint: {HINT}"),
        (JobError("the job ended as FAILED", where="job 7", hint=HINT),
         Verdict("server", "worker 0 was killed (the job ended as FAILED)"),
         f"server: worker 0 was killed (the job ended as FAILED)\n  hint: job 7, {HINT}"),
        (JobError("it is over", where="job 7"), Verdict("node", "n1 went down"),
         "node: n1 went down\n  job 7: it is over"),
    ],
)  # fmt: skip
def test_an_error_is_shown_once_in_full(error: LauncherError, verdict: Verdict, shown: str) -> None:
    scene = Scene(io.StringIO(), OutputOptions(state=Path("/s")))
    scene.console.outcomes(
        Path("/s/runs"),
        [Outcome("r", "cancelled" if isinstance(error, Cancelled) else "failed", error=error, verdict=verdict)],
    )
    scene.note()
    assert scene.text == (
        f"\n{shown}\n\n0 of 1 runs succeeded. Records and results: /s/runs/r\n"
        "Next: launcher status r\n  or: launcher logs r\n"
    )


def test_when_a_job_is_expected_to_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    state = JobState(Phase.ALIVE, "PENDING", reason="Priority", expected=51_900.0)
    assert state.describe() == "PENDING (Priority), expected to start Thu 14:25"


def test_a_printed_command_has_this_program_and_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin dir" / "launcher"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    text = "Next: launcher status r; the launcher left, launcher's own"
    plain = argparse.Namespace()
    there = argparse.Namespace(state="s", recipes=None, on="lab")
    monkeypatch.delenv("LAUNCHER_STATE", raising=False)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert CommandRewriter(plain)(text) == f"Next: '{program}' status r; the launcher left, launcher's own"
    assert f"'{program}' --state s --on lab status r" in CommandRewriter(there)(text), "a directory there"
    here = argparse.Namespace(state="s", recipes=None)
    assert f"'{program}' --state {Path('s').absolute()} status r" in CommandRewriter(here)(text)
    assert CommandRewriter(there)("launcher remote list") == f"'{program}' remote list"
    monkeypatch.setenv("PATH", str(program.parent))
    assert CommandRewriter(plain)(text) == text
    monkeypatch.setenv("LAUNCHER_STATE", "/x y")
    assert "launcher --state '/x y' status r" in CommandRewriter(plain)(text)
    monkeypatch.setattr(sys, "argv", ["/some/__main__.py"])
    assert f"{sys.executable} -m launcher --state '/x y' status r" in CommandRewriter(plain)(text)
