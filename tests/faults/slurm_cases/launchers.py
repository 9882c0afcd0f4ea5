"""Launchers that are killed, cancelled, or started twice."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.faults.slurm_cases.fault_cluster import FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally
from tests.faults.slurm_cases.user import RUN, ClusterUser

LIFE = 5.0
"""Seconds from a run's record to its end, on an idle machine: moments are chosen within."""

EARLY = 0.1
"""The share of moments before there is a record: Python starts, and plans."""

SENT_WITHIN = 2.0
"""Seconds from the first signal, or from Slurm's taking the job when that is later, to scancel."""


def _killed(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """SIGKILL at a random moment, then `launcher resume` by another process; `run` again where no record was made."""
    user = ClusterUser.at(fault_cluster).prepared()
    rng = random.Random(trials)
    moments = [_moment(rng) for _ in range(trials)]
    before: list[str] = []

    def one(number: int) -> Sequence[str]:
        run_id = user.new_id()
        process = user.start("run", *RUN, "--run-id", run_id)
        _wait_until(user, run_id, process, moments[number])
        process.kill()
        process.communicate()
        if user.has_record(run_id):
            state = user.record(run_id)["state"]
            before.append(state)
            user.launcher("resume", run_id)
        else:
            before.append("no record")
            user.run("--conc", "4", run_id=run_id)
        return [f"{c} (killed after {moments[number]:.2f} s)" for c in user.one_good_job(run_id)]

    tally = Tally("launcher SIGKILLed at a random moment, and resumed").each(trials, one, fault_cluster.at_once)
    tally.note = ", ".join(f"{before.count(s)} {s}" for s in dict.fromkeys(before))
    return [tally]


def _cancelled(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """As GitHub cancels: SIGINT, SIGTERM after 7.5 s, SIGKILL after 2.5 s more; then its clean-up step."""
    user = ClusterUser.at(fault_cluster).prepared()
    rng = random.Random(trials)
    moments = [_moment(rng) for _ in range(trials)]
    delays: list[float] = []
    killed: list[str] = []

    def one(number: int) -> Sequence[str]:
        run_id = user.new_id()
        process = user.start("run", *RUN, "--run-id", run_id, LAUNCHER_REHEARSAL_FAULTS="hang")
        _wait_until(user, run_id, process, moments[number])
        asked = time.time()
        if not _github_cancels(process):
            killed.append(run_id)
        complaints = []
        if user.has_record(run_id):
            user.launcher("cleanup", run_id)
            complaints += _sent_in_time(user, run_id, asked, delays)
        if left := user.alive(run_id):
            complaints.append(f"{run_id}: jobs {left} are left (SIGINT after {moments[number]:.2f} s)")
        return complaints

    tally = Tally("cancelled as GitHub does at a random moment, then cleanup").each(trials, one, fault_cluster.at_once)
    delays.sort()
    if delays:
        middle, last = delays[len(delays) // 2], delays[-1]
        tally.note = f"{len(delays)} scancels sent {middle:.2f} s after (median; most {last:.2f} s)"
    tally.note += f", {len(killed)} needed SIGKILL"
    return [tally]


def _moment(rng: random.Random) -> float:
    """Seconds after the run's record is there; negative: after its process was started."""
    return -rng.uniform(0.05, 1.0) if rng.random() < EARLY else rng.uniform(0.0, LIFE)


def _wait_until(user: ClusterUser, run_id: str, process: subprocess.Popen[str], moment: float) -> None:
    """The start of Python and of Slurm's answers takes longer on a busy machine; moments within a run must not."""
    deadline = time.monotonic() + 60
    while moment >= 0 and not user.has_record(run_id) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(abs(moment))


def _github_cancels(process: subprocess.Popen[str]) -> bool:
    """False when it had to be killed."""
    for number, patience in ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5)):
        process.send_signal(number)
        try:
            process.communicate(timeout=patience)
            return True
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.communicate()
    return False


def _sent_in_time(user: ClusterUser, run_id: str, asked: float, delays: list[float]) -> list[str]:
    jobs = user.fault_cluster.jobs_of(run_id)
    if len(jobs) > 1:
        return [f"{run_id} has {len(jobs)} jobs"]
    if not jobs:
        return []
    job, calls = jobs[0][0], user.fault_cluster.programs.calls(asked - 60)
    mine = [c.time for c in calls if c.name == "scancel" and job in c.arguments.split()]
    taken = next((c.time for c in calls if c.name == "accepted" and c.arguments.endswith(f" {job}")), asked)
    if not mine:
        return [f"{run_id}: no scancel of job {job}"]
    delays.append(mine[0] - max(asked, taken))
    late = delays[-1] > SENT_WITHIN
    return [f"{run_id}: scancel of job {job} came {delays[-1]:.2f} s after"] if late else []


def _terminal(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """The terminal is closed: SIGHUP, and every further word is an error (EIO)."""
    user = ClusterUser.at(fault_cluster).prepared()

    def one(number: int) -> Sequence[str]:
        run_id = user.new_id()
        ours, theirs = pty.openpty()
        argv = [sys.executable, "-c", _IN_TERMINAL, "run", *RUN, "--run-id", run_id]
        environ = user.environment(LAUNCHER_REHEARSAL_FAULTS="hang")
        process = subprocess.Popen(
            argv, cwd=user.workspace, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        user.wait_for(lambda r: bool(r.get("job")), run_id)
        os.close(ours)
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        wrong = [] if code == 129 else [f"{run_id} ended with exit code {code}"]
        if left := user.alive(run_id):
            wrong.append(f"{run_id}: jobs {left} are left")
        return wrong

    return [Tally("terminal closed").each(trials, one, fault_cluster.at_once)]


_IN_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("launcher", run_name="__main__")
"""


def _twice(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """Two launchers begin one run id at the same moment: by one state directory, by two, and by two resumes."""
    user, other = ClusterUser.at(fault_cluster), ClusterUser.at(fault_cluster, "other")

    def both(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> list[str]:
        said = [p.communicate(timeout=120)[0] for p in (first, second)]
        good = [p.returncode for p in (first, second)].count(0)
        if good == 1:
            return []
        ends = [f"exit {p.returncode}: {s.strip()[-300:]}" for p, s in zip((first, second), said, strict=True)]
        return [f"{good} of two launchers succeeded: {' | '.join(ends)}"]

    def same(number: int) -> Sequence[str]:
        run_id = user.new_id()
        start = ("run", *RUN, "--run-id", run_id)
        return [*both(user.start(*start), user.start(*start)), *user.one_good_job(run_id)]

    def apart(number: int) -> Sequence[str]:
        run_id = user.new_id()
        start = ("run", *RUN, "--run-id", run_id)
        complaints = both(user.start(*start), other.start(*start))
        good = [d for d in (user, other) if d.record(run_id)["state"] == "succeeded"]
        ended = [job for job, state in fault_cluster.jobs_of(run_id) if state == "COMPLETED"]
        if len(good) != 1 or len(ended) != 1:
            complaints.append(f"{run_id}: {len(good)} runs succeeded, jobs {fault_cluster.jobs_of(run_id)}")
        return complaints

    def resumed(number: int) -> Sequence[str]:
        run_id = user.new_id()
        process = user.start("run", *RUN, "--run-id", run_id)
        user.wait_for(lambda r: "submit" in r.get("stages", {}) or "workspace" in r.get("stages", {}), run_id)
        process.kill()
        process.communicate()
        complaints = both(user.start("resume", run_id), user.start("resume", run_id))
        return [*complaints, *user.one_good_job(run_id)]

    ways = {
        "two launchers, one run id, one state directory": same,
        "two launchers, one run id, two state directories": apart,
        "two launchers resume one run": resumed,
    }
    each = max(1, trials // len(ways))
    with ThreadPoolExecutor(len(ways)) as pool:  # six launchers at once
        list(pool.map(ClusterUser.prepared, (user, other)))
        return list(pool.map(lambda name: Tally(name).each(each, ways[name], 1), ways))


CASES = (
    Case("launcher killed and resumed", _killed, trials=200, short=3, alone=False),
    Case("cancelled as GitHub does", _cancelled, trials=200, short=3, alone=False),
    Case("terminal closed", _terminal, trials=20, short=1, alone=False),
    Case("two launchers of one run", _twice, trials=60, short=3, alone=False),
)
