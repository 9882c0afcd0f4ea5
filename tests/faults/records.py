"""Damaged records: `scripts/faults records [--trials N] [--seed N]`.

A run whose launcher is dead has a job that runs (of the embedded scheduler, a process). Its directory is damaged as
disks, people and other programs damage it: files torn, emptied, changed, of other types, gone, pipes, directories. Then
COMMANDS are given, one after the other. Each time:

* each ends by itself within SECONDS, with no traceback;
* `status` lists the run, and `image list` does not say that its image is free;
* `cleanup`, or `ci` of the same GitHub runner, ends the job, or names the run;
* in the end the job is over: `cleanup RUN` finds it, whatever lies in the record.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.cli import main as launcher
from launcher.core.process import ProcessIdentity
from launcher.project import Project
from launcher.run.record import RecordedJob, RunRecord
from launcher.slurm.client import JobKey, Phase
from launcher.slurm.local import LocalScheduler, submit
from tests.run.driving import LauncherUser, github_environment

SECONDS = 60.0
RUN, OTHER = "77-1-0123456789ab", "78-1-ba9876543210"
READING: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("status", "--json"),
    ("status", RUN),
    ("logs", RUN),
    ("image", "list", "--runner", "local"),
)
ENDING: tuple[tuple[str, ...], ...] = (("cleanup",), ("ci", "--run-id", OTHER))
NAMED: tuple[tuple[str, ...], ...] = (("cleanup", RUN), ("cancel", RUN), ("collect", RUN), ("status",))
COMMANDS = (*READING, *ENDING, *NAMED)

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\0", "\x1b[2J\n::error::x", "\ud800"),
    *([], {}, [[]], [None], {"x": []}, {"id": 7}, {"id": "../../x"}, ["x"] * 1000, "é" * 10_000, "/dev/zero"),
)
FILES = ("run.json", "run.json", "run.json", "plan.json", "events.jsonl", "driver.lock", "submit.lock")


def damage(directory: Path, chance: random.Random) -> str:
    """Damage one file of a run's directory; what was done."""
    path = directory / chance.choice(FILES)
    if not os.path.lexists(path):
        path.write_bytes(b"")
    if path.is_symlink() or not path.is_file():
        return f"nothing more of {path.name}"
    content = path.read_bytes()
    kind = chance.choice(("torn", "empty", "bytes", "value", "value", "value", "key", "gone", "odd", "other"))
    if kind == "torn":
        path.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind == "empty":
        path.write_bytes(b"\0" * chance.choice((0, 1, 4096)))
    elif kind == "bytes":
        changed = bytearray(content or b"x")
        for _ in range(chance.randint(1, 8)):
            # Not a digit: one job's number made another's is what no record can tell.
            at = chance.randrange(len(changed))
            if not chr(changed[at]).isdigit():
                changed[at] = chance.choice((0, 10, 34, 44, 123, 128, 255))
        path.write_bytes(changed)
    elif kind in ("value", "key") and path.suffix == ".json" and content.startswith(b"{\n"):
        with contextlib.suppress(ValueError):
            path.write_text(json.dumps(_with_damage(json.loads(content), kind, chance)))
    elif kind == "gone":
        path.unlink()
    elif kind == "odd":
        path.unlink()
        chance.choice(
            (
                path.mkdir,
                functools.partial(os.mkfifo, path),
                functools.partial(path.symlink_to, path),
                functools.partial(path.symlink_to, "/dev/zero"),
                functools.partial(path.symlink_to, "/proc/self/mem"),
            )
        )()
    else:
        others = (
            b"[" * 100_000,
            b"[]",
            b"null",
            b'{"schema": 2, "id": "x"}',
            b"7" * 5000,
            b"\xff\xfe{\0}\0",
            b'{"a": 1,' * 9000,
        )
        path.write_bytes(chance.choice(others))
    return f"{kind} {path.name}"


def _with_damage(value: Any, kind: str, chance: random.Random) -> Any:
    """A JSON document with another value somewhere, or without a key."""
    spots: list[tuple[Any, Any]] = []

    def walk(held: Any) -> None:
        for key, inner in held.items() if isinstance(held, dict) else enumerate(held):
            spots.append((held, key))
            if isinstance(inner, (dict, list)):
                walk(inner)

    walk(value)
    held, key = chance.choice([spot for spot in spots if spot[0] is value] if chance.random() < 0.4 else spots)
    if kind == "key" and isinstance(held, dict):
        del held[key]
    else:
        held[key] = chance.choice(VALUES)
    return value


class Trials:
    """A user whose run is damaged again and again."""

    def __init__(self, root: Path) -> None:
        self.user = LauncherUser(root)
        self.environment = {**self.user.environment(), **github_environment(self.user)}
        project = Project.open(self.environment, workspace=str(self.user.workspace))
        self.plans = {key: project.plan_from_environment(key) for key in (RUN, OTHER)}
        self.runs, self.jobs = self.user.state / "runs", self.user.state / "jobs"

    def begin(self) -> JobKey:
        """A run whose launcher is dead, and whose job runs."""
        shutil.rmtree(self.user.state, ignore_errors=True)
        for plan in self.plans.values():
            record = RunRecord.create(self.runs, plan)
            record.release()
        image = Path(self.plans[RUN].images[0].squash)
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"hsqs")
        self.jobs.mkdir(exist_ok=True)
        key = submit(self.jobs, functools.partial(time.sleep, 300), name="local_0", token=RUN, log=self.jobs / "log")
        dead = replace(ProcessIdentity.current(), pid=2**22 + 1)
        record = RunRecord.load(self.runs, RUN)
        job = RecordedJob(key.id, key.submitted, str(self.jobs), str(self.jobs / "log"))
        record.set_step("images", "done", images=[{"planned": str(image), "squash": str(image)}])
        record.set_step("submit", "done")
        record.update(state="running", results="workspace", job=job, owner=dead)
        record.event("job", "job submitted", job=key.id)
        other = RunRecord.load(self.runs, OTHER)
        other.update(state="succeeded", owner=dead)
        return key

    def run(self, seed: str) -> list[str]:
        """One trial; what was wrong."""
        chance = random.Random(seed)
        key = self.begin()
        done = damage(self.runs / RUN, chance)
        if chance.random() < 0.3:
            done += f", {damage(self.runs / RUN, chance)}"
        wrong: list[str] = []
        kept = any((self.runs / RUN).iterdir())
        try:
            for command in READING:
                said = self._command(command, wrong)
                if command[0] == "status" and RUN not in said:
                    wrong.append(f"{' '.join(command)} hides the run")
            said = self._command(chance.choice(ENDING), wrong)
            if kept and self._alive(key) and RUN not in said:
                wrong.append("the job is left, and its run not named")
            for command in NAMED:
                self._command(command, wrong)
            if self._alive(key):
                wrong.append("the job still runs in the end")
        finally:
            LocalScheduler(self.jobs).cancel([key])
        return [f"{seed}: {done}: {text}" for text in wrong]

    def _alive(self, key: JobKey) -> bool:
        return LocalScheduler(self.jobs).poll([key])[key].phase is Phase.ALIVE

    def _command(self, arguments: tuple[str, ...], wrong: list[str]) -> str:
        ended, said = in_process(arguments, self.environment, self.user.workspace, SECONDS)
        if ended:
            wrong.append(f"launcher {' '.join(arguments)}: {ended}\n{said[-2000:]}")
        return said


def in_process(
    arguments: tuple[str, ...], environment: Mapping[str, str], directory: Path, seconds: float
) -> tuple[str, str]:
    """Run one command in this process: how it ended where that was not by itself, and what it said."""
    out, before, wrong = io.StringIO(), dict(os.environ), ""

    def too_long(*_: object) -> None:
        raise TimeoutError("the trial's own")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    began = time.monotonic()
    there = Path.cwd()
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            launcher(arguments)
    except SystemExit as error:
        wrong = f"exit {error.code}"
    except BaseException:  # noqa: BLE001  # whatever it is, a person would have seen it as a traceback
        wrong = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        os.environ.clear()
        os.environ.update(before)
        os.chdir(there)
    if time.monotonic() - began > seconds:
        wrong = wrong or "too long"
    return wrong, out.getvalue()


def run_trials(count: int, seed: int, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """What was wrong in so many trials."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name))
        for number in range(count):
            found += trials.run(f"{seed}-{number}")
            say(f"{number + 1} of {count}, {len(found)} wrong")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/faults records")
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the seed of one trial, as a list of wrong ones names it")
    arguments = parser.parse_args(argv)
    if arguments.only:
        with tempfile.TemporaryDirectory() as name:
            found = Trials(Path(name)).run(arguments.only)
    else:
        found = run_trials(arguments.trials, arguments.seed, lambda text: print(text, file=sys.stderr, flush=True))
    print("\n".join(found))
    print(f"{1 if arguments.only else arguments.trials} records, {len(COMMANDS)} commands: {len(found)} wrong")
    return bool(found)
