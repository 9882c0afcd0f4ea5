"""Slurm's daemons ended and started again under running jobs."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.slurm.client import JobKey, JobState, Phase
from launcher.slurm.poller import JobPoller
from launcher.srtctl.kind import end_markers
from tests.faults.slurm_cases.fault_cluster import BAD, FATES, GOOD, QUICK, Fate, FaultCluster
from tests.faults.slurm_cases.tally import Case, Tally
from tests.slurm.following import rounds


def _controller(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """Jobs that ran for a while before: what was accepted within the last seconds may be lost by Slurm itself."""
    tally = Tally("slurmctld killed by -9 and restarted")
    while tally.trials < trials:
        jobs = [fault_cluster.submit(12 + n % 4, FATES[n % 3]) for n in range(min(10, trials - tally.trials))]
        time.sleep(7)  # it saves its state every five seconds
        fault_cluster.kill("slurmctld")
        time.sleep(1)
        fault_cluster.restart()
        for complaints in fault_cluster.watch(jobs).values():
            tally.trial(*complaints)
    return [tally]


def _just_accepted(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """A job that the controller forgets, its id given to the next one: unknown, or its own end, never the other's."""
    tally = Tally("slurmctld killed by -9 within a second of an sbatch")
    lost = 0
    for number in range(trials):
        job = fault_cluster.submit(4, GOOD)
        time.sleep(0.2 * (number % 5))
        fault_cluster.kill("slurmctld")
        fault_cluster.restart()
        other = fault_cluster.submit(1, BAD)
        state = fault_cluster.until(other, lambda s: s.phase is Phase.TERMINAL or s.hopeless, seconds=30)
        # Slurm may hold the second job: the node still runs the first one under the same id.
        fitting = state.hopeless or (state.word, state.exit_code) in (("FAILED", (3, 0)), ("FAILED", None))
        wrong = "" if fitting else f"{other}: {state.describe()}"
        state = fault_cluster.until(job, lambda s: s.phase is Phase.TERMINAL, seconds=10)
        lost += state.phase is Phase.UNKNOWN
        fitting = state.phase is not Phase.TERMINAL or state.succeeded or state.word == "REQUEUED"
        tally.trial(wrong, "" if fitting else f"{job} (its id went to {other}): {state.describe()}")
        fault_cluster.command("scancel", "-u", fault_cluster.command("id", "-un"))
        fault_cluster.command("scontrol", "update", "nodename=ALL", "state=resume", check=False)
    tally.note = f"{lost} jobs were lost by Slurm itself, and said to be unknown"
    return [tally]


def _lost(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """A job that ends while the controller that forgets it is away: known by the end of its log, and never as good."""
    tally = Tally("jobs that slurmctld -9 lost, by their own exit marker")
    lost = 0
    for number in range(trials):
        code = (0, 3)[number % 2]
        said = "✓ Sweep completed successfully" if code == 0 else f"✗ Sweep failed (exit code: {code})"
        log = fault_cluster.directory / f"lost-{number}.log"
        fate = Fate(f"printf '%s\\nEnd: %s\\n====\\n' '{said}' \"$(date)\" > {log}; exit {code}", "LOST", (code, 0))
        job = fault_cluster.submit(2, fate)
        time.sleep(0.4 + 0.2 * (number % 4))
        fault_cluster.kill("slurmctld")
        time.sleep(4)
        ended = fault_cluster.marked(job)
        fault_cluster.restart()
        state = _watched(fault_cluster, job, log, 40 if ended else 10)
        lost += state.word == "LOST"
        # Slurm may also have kept it, or never begun it; and it kills what it does not know when it comes back.
        wrong = ended and state.phase is not Phase.TERMINAL
        wrong = wrong or (state.word == "LOST" and (state.exit_code != (code, 0) or state.succeeded or not ended))
        tally.trial(f"{job}: {state.describe()}" if wrong else "")
        fault_cluster.command("scancel", "-u", fault_cluster.command("id", "-un"))
        fault_cluster.command("scontrol", "update", "nodename=ALL", "state=resume", check=False)
    tally.note = f"{lost} were lost by Slurm"
    return [tally]


def _watched(fault_cluster: FaultCluster, job: JobKey, log: Path, seconds: float) -> JobState:
    markers = end_markers()
    poller = JobPoller(fault_cluster.scheduler(), pace=replace(QUICK, marker=6.0))
    poller.watch(job)

    def marked() -> dict[JobKey, JobState]:
        end = markers.read(job, log)
        return {} if end is None else {job: end}

    return [answer.states[job] for answer in rounds(poller, markers=marked, seconds=seconds)][-1]


def _database(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    tally = Tally("slurmdbd down for the whole life of the jobs")
    with fault_cluster.without("slurmdbd", signal.SIGTERM):
        while tally.trials < trials:
            jobs = [fault_cluster.submit(1 + n % 3, FATES[n % 3]) for n in range(min(20, trials - tally.trials))]
            for complaints in fault_cluster.watch(jobs).values():
                tally.trial(*complaints)
    return [tally]


def _munge(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    tally = Tally("munge down for five seconds and more")
    while tally.trials < trials:
        jobs = [fault_cluster.submit(3 + n % 3, FATES[n % 3]) for n in range(min(10, trials - tally.trials))]
        time.sleep(1)
        fault_cluster.kill("munged", signal.SIGTERM)
        state = fault_cluster.scheduler().poll(jobs)
        told = [f"{job} without munge: {s.describe()}" for job, s in state.items() if s.phase is Phase.TERMINAL]
        time.sleep(5)
        fault_cluster.restart()
        for complaints in fault_cluster.watch(jobs).values():
            tally.trial(*complaints, *told)
            told = []
    return [tally]


def _node(fault_cluster: FaultCluster, trials: int) -> Sequence[Tally]:
    """The node's slurmd is killed with its job: a job that must not be requeued ends as NODE_FAIL."""
    tally = Tally("slurmd of the job's node killed")
    fate = Fate("exit 0", "NODE_FAIL", (1, 0))
    for _ in range(trials):
        job = fault_cluster.submit(600, fate, "--no-requeue", "--nodes=1")
        node = fault_cluster.until(job, lambda s: s.word == "RUNNING" and bool(s.nodes)).nodes
        fault_cluster.kill(node)
        state = fault_cluster.until(job, lambda s: s.phase is Phase.TERMINAL, seconds=90)
        said = "" if state.word == "NODE_FAIL" and not state.succeeded else f"{job} on {node}: {state.describe()}"
        tally.trial(said)
        fault_cluster.restart()
        fault_cluster.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    return [tally]


CASES = (
    Case("slurmctld killed and restarted", _controller, trials=20, short=0),
    Case("slurmctld killed right after an sbatch", _just_accepted, trials=10),
    Case("lost by slurmctld", _lost, trials=10),
    Case("slurmdbd down", _database, trials=60, short=3),
    Case("munge down", _munge, trials=20),
    Case("slurmd killed", _node, trials=5, cluster=("--nodes", "3", "--set", "SlurmdTimeout=5", "MessageTimeout=2")),
)
