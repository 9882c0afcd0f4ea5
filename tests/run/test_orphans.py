"""Ending what a run holds, from another process: whose it is, and a submission that still goes on."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError, LauncherError
from launcher.run.fields import Verdict
from launcher.run.kind import Run
from launcher.run.orphans import check_owner, end_run
from launcher.run.record import RecordedJob
from launcher.slurm.client import JobKey, JobState, Phase
from tests.run.runs import a_run, services

NOBODY = 65534


class Slurm:
    """Shows a job by its token from the start, and ends what it is asked to."""

    name = "slurm"

    def __init__(self) -> None:
        self.cancelled: list[float] = []

    def find(self, token: str) -> list[JobKey]:
        return [JobKey("7", time.time(), token)]

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        self.cancelled.append(time.monotonic())

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        ended = JobState(Phase.TERMINAL, "CANCELLED", exit_code=(0, 15), nodes="node01")
        return dict.fromkeys(jobs, ended if self.cancelled else JobState(Phase.ALIVE, "PENDING"))

    def describe(self, job: JobKey) -> dict[str, str]:
        return {}


def a_run_of(root: Path, scheduler: Slurm) -> Run:
    return a_run(root, given=services(scheduler))


def test_a_submission_that_goes_on_does_not_hold_up_the_cancel(tmp_path: Path) -> None:
    """srtctl of a killed launcher holds submit.lock for minutes; its job is ended as soon as Slurm shows it."""
    slurm = Slurm()
    run = a_run_of(tmp_path, slurm)
    run.record.set_step("submit", "running")
    submitting, cancelled_meanwhile = threading.Event(), list[float]()

    def srtctl() -> None:
        with run.record.submitting():
            submitting.set()
            until = time.monotonic() + 60
            while not slurm.cancelled and time.monotonic() < until:
                time.sleep(0.05)
            cancelled_meanwhile.extend(slurm.cancelled)

    thread = threading.Thread(target=srtctl)
    thread.start()
    submitting.wait()
    end_run(run, "launcher cancel", lambda text: None)
    thread.join()
    assert cancelled_meanwhile
    assert run.record.fields.state == "cancelled"
    assert run.record.fields.verdict == Verdict("cancelled", "launcher cancel")


def test_a_run_is_its_users_to_end(tmp_path: Path) -> None:
    record = a_run_of(tmp_path, Slurm()).record
    record.update(job=RecordedJob("7", 1.0, "/x", "/x/l"))
    check_owner(record, record.directory.stat().st_uid)
    check_owner(record, 0)
    with pytest.raises(ConfigError, match=r"the run belongs to .*, and so does its job") as told:
        check_owner(record, NOBODY)
    assert "scancel 7" in str(told.value)


@pytest.mark.parametrize("uid", [NOBODY] if os.getuid() == 0 else [])
def test_another_user_is_told_whose_run_it_is(uid: int) -> None:
    """In a process of that user, which may read all of the record and write none of it."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as name:  # pytest's own is nobody else's to read
        run = a_run_of(Path(name), Slurm())
        for path in (Path(name), run.record.directory.parent, run.record.directory):  # as older launchers left them
            path.chmod(0o755)
        run.record.update(job=RecordedJob("7", 1.0, "/x", "/x/l"))
        child = os.fork()
        if child == 0:
            try:
                os.setgid(uid)
                os.setuid(uid)
                end_run(run, "launcher cancel", lambda text: None)
            except (LauncherError, OSError) as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    assert text.startswith("ConfigError: ") and "the run belongs to root" in text and "scancel 7" in text
