"""Slurm by its own commands: squeue, sacct and scontrol tell how jobs stand, scancel ends them.

The formats, options and messages are those that 20.02 and later share; they were tried on 22.05. ``--json`` is not
used: with it 22.05 ignores every filter, and its shape changes with each release.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from launcher.core import retry
from launcher.core.errors import JobError
from launcher.core.process import CommandRunner, Completed, clean_environment, run
from launcher.slurm import answers, states
from launcher.slurm.answers import Answer, Record
from launcher.slurm.client import JobKey, JobState, SchedulerUnreachable, carries, unknown
from launcher.slurm.states import Phase

IDS_A_CALL = 2000
"""Job ids in one argv. Two thousand seven-digit ids are 16 kB; the kernel takes 128 kB for one argument."""

SHOWN_A_ROUND = 20
"""At most so many calls of `scontrol show job` for one question: each call takes one id."""

LOOK_BEFORE_CANCEL = 1.0
"""Seconds that squeue may take, before scancel, to say whose the ids are: scancel has to be sent two seconds after a
cancel at the latest."""

RELEASE_TRIES, RELEASE_WITHIN = 10, 20.0
"""`scontrol release` is tried this often, and for this many seconds, at most."""

_NOT_KNOWN = re.compile(r"invalid job id", re.IGNORECASE)
_NOTHING_TO_CANCEL = re.compile(r"invalid job id|already completing or completed", re.IGNORECASE)
_NOTHING_TO_RELEASE = re.compile(r"invalid job id|already finished", re.IGNORECASE)
_REFUSED = re.compile(r"access/permission denied|invalid user", re.IGNORECASE)
_FINAL = re.compile(f"{_NOTHING_TO_RELEASE.pattern}|{_REFUSED.pattern}", re.IGNORECASE)


class SlurmCommands:
    """The Scheduler over Slurm's command line tools. It holds no state; several threads may use it."""

    name = "slurm"

    def __init__(
        self,
        *,
        runner: CommandRunner = run,
        environ: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``timeout``: seconds for each call. ``environ``: that of the commands, by default os.environ."""
        self._runner = runner
        self._timeout = timeout
        self._now = now
        self._sleep = sleep
        self._plain = _client_environment(os.environ if environ is None else environ)
        # With this squeue, sacct and scontrol (22.05) print times as seconds since the epoch, free of time zones.
        self._environment = {**self._plain, "SLURM_TIME_FORMAT": "%s"}

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """One squeue for all jobs; then sacct, and then scontrol, for those that squeue does not show alive."""
        found: dict[JobKey, JobState] = {}
        for start in range(0, len(jobs), IDS_A_CALL):
            found.update(self._poll(jobs[start : start + IDS_A_CALL]))
        return found

    def _poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        queue = self._squeue([job.id for job in jobs])
        found = {job: state for job in jobs if (state := queue.state(job)) and _is_definite(state)}
        rest = [job for job in jobs if job not in found]
        if not rest:
            return found
        accounts = self._sacct([job.id for job in rest])
        for job in rest:
            state = accounts.state(job)
            if state is not None and _is_end(state, controller_answered=not queue.error):
                found[job] = state
        rest = [job for job in rest if job not in found]
        shown = self._scontrol([job.id for job in rest[:SHOWN_A_ROUND]])
        for job in rest:
            found[job] = _settle(job, queue, accounts, shown.get(job.id))
        return found

    def find(self, token: str) -> list[JobKey]:
        """Look for the token in the comments that squeue and sacct show, of jobs since yesterday.

        An answer of squeue alone is enough to say "none": it shows every job for MinJobAge, and the question comes
        moments after the submission. An empty answer of sacct is not enough: it lags, and may hold no comments.
        """
        # The token is not in the job's name: that has to be the runner's name, by which workflows cancel the jobs that
        # a dead launcher left behind.
        user = str(os.getuid())
        queue = self._queue_of(user)
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self._now() - 86400))
        accounts = self._ask(
            ["sacct", "-X", "-D", "-n", "-P", "-u", user, "-S", since, "-o", answers.SACCT_FIELDS],
            answers.sacct_records,
        )
        keys: dict[str, JobKey] = {}
        for answer in (accounts, queue):
            for job_id, records in answer.records.items():
                for record in records:
                    if carries(record.comment, token):
                        keys[job_id] = JobKey(job_id, record.state.submitted, token)
        if not keys and queue.error:
            raise SchedulerUnreachable(
                f"nobody could say whether a job with the token {token} exists: {queue.error}",
                hint="look with `squeue --me -o '%i %k'` before submitting again",
            )
        return sorted(keys.values(), key=lambda key: key.submitted or 0.0)

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Ask squeue whose the ids are, then call scancel, three times at most.

        An id is left out only when squeue shows it as another job's, or its job as ended. Ids that squeue does not show
        are cancelled, and all of them when it gives no answer: a running job must not be left because of a bad answer,
        scancel of an unknown id does nothing (exit 0, no message in 22.05), and other users' jobs cannot be cancelled.
        Raises JobError when Slurm refuses.
        """
        queue = self._squeue([job.id for job in jobs], timeout=min(LOOK_BEFORE_CANCEL, self._timeout))
        ids = [job.id for job in jobs if _may_cancel(job, queue)]
        for start in range(0, len(ids), IDS_A_CALL):
            self._scancel(ids[start : start + IDS_A_CALL])

    def release(self, job: JobKey) -> None:
        """Call `scontrol release`, again every second until it succeeds. The leader's id releases all of an array or of
        a heterogeneous job (22.05)."""
        from tenacity import stop_after_attempt, stop_after_delay, wait_fixed

        argv = ["scontrol", "release", job.id]
        done = retry.until(
            lambda answer: answer.ok or _FINAL.search(answer.stderr) is not None,
            lambda: self._runner(argv, timeout=min(10.0, self._timeout), env=self._plain),
            stop=stop_after_attempt(RELEASE_TRIES) | stop_after_delay(RELEASE_WITHIN),
            wait=wait_fixed(1.0),
            sleep=self._sleep,
        )
        if _REFUSED.search(done.stderr):
            raise JobError(
                f"Slurm refuses to release the job: {done}",
                where=str(job),
                hint=f"see who holds it: scontrol show job {job.id}",
            )
        if not done.ok and not _NOTHING_TO_RELEASE.search(done.stderr):
            raise SchedulerUnreachable(
                f"the release did not go through: {done}",
                where=str(job),
                hint=f"it is tried again while the run is watched; by hand: scontrol release {job.id}",
            )

    def describe(self, job: JobKey) -> dict[str, str]:
        """What squeue, scontrol and sacct (with all steps) print of the job, for a person: times are local."""
        fields = (
            "JobID,JobName,State,ExitCode,DerivedExitCode,Submit,Start,End,Elapsed,Timelimit,NodeList,Reason,Comment"
        )
        asked = {
            "squeue": ["squeue", "--states=all", "-j", job.id],
            "scontrol": ["scontrol", "show", "job", "-d", job.id],
            "sacct": ["sacct", "-D", "-P", "-j", job.id, "-o", fields],
        }
        answered = {name: self._runner(argv, timeout=self._timeout, env=self._plain) for name, argv in asked.items()}
        return {name: done.stdout if done.ok else str(done) for name, done in answered.items()}

    def _squeue(self, ids: Sequence[str], timeout: float | None = None) -> Answer:
        argv = ["squeue", "-h", "--states=all", "-j", ",".join(ids), "-o", answers.SQUEUE_FORMAT]
        return self._ask(argv, answers.squeue_records, timeout)

    def _queue_of(self, user: str) -> Answer:
        argv = ["squeue", "-h", "--states=all", "-u", user, "-o", answers.SQUEUE_FORMAT]
        return self._ask(argv, answers.squeue_records)

    def _sacct(self, ids: Sequence[str]) -> Answer:
        # -D shows every record of an id that was given out twice, or of a job that was requeued. With -j sacct looks at
        # all times, not only at today.
        argv = ["sacct", "-X", "-D", "-n", "-P", "-j", ",".join(ids), "-o", answers.SACCT_FIELDS]
        return self._ask(argv, answers.sacct_records)

    def _scontrol(self, ids: Sequence[str]) -> dict[str, Answer]:
        """One call for each id, until one gets no answer: while the controller is down each call takes 9 s."""
        shown: dict[str, Answer] = {}
        for job_id in ids:
            shown[job_id] = self._ask(["scontrol", "show", "job", "-d", "-o", job_id], answers.scontrol_records)
            if shown[job_id].error:
                break
        return shown

    def _ask(self, argv: list[str], read: Callable[[str], list[Record]], timeout: float | None = None) -> Answer:
        done = self._runner(argv, timeout=timeout or self._timeout, env=self._environment)
        if done.ok:
            return Answer.of(argv[0], read(done.stdout))
        if not done.timed_out and _NOT_KNOWN.search(done.stderr):
            # For an unknown id squeue (when it is the only one) and scontrol exit with 1, as when the controller is
            # away; only this message tells the two apart.
            return Answer(argv[0])
        return Answer(argv[0], error=str(done))

    def _scancel(self, ids: Sequence[str]) -> None:
        from tenacity import stop_after_attempt, wait_fixed

        done = retry.until(
            lambda answer: _cancelled(answer) or _REFUSED.search(answer.stderr) is not None,
            lambda: self._runner(["scancel", *ids], timeout=self._timeout, env=self._plain),
            stop=stop_after_attempt(3),
            wait=wait_fixed(0.5),
            sleep=self._sleep,
        )
        where = f"job {','.join(ids)}"
        if _REFUSED.search(done.stderr):
            raise JobError(
                f"Slurm refuses to cancel: {done}", where=where, hint=f"see whose it is: squeue -j {','.join(ids)}"
            )
        if not _cancelled(done):
            raise SchedulerUnreachable(
                f"the cancel did not go through: {done}", where=where, hint=f"run `scancel {' '.join(ids)}` later"
            )


def _client_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that change what the clients ask or print: ``SQUEUE_FORMAT``,
    ``SLURM_CLUSTERS``…"""
    prefixes = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")
    return {k: v for k, v in clean_environment(environ).items() if not k.startswith(prefixes)}


def _is_definite(state: JobState) -> bool:
    """Whether the controller's word is enough. squeue shows no exit codes, so that an end by it is not; the
    controller's own library shows them."""
    return state.phase is Phase.ALIVE or (state.phase is Phase.TERMINAL and state.exit_code is not None)


def _is_end(state: JobState, *, controller_answered: bool) -> bool:
    """Whether an accounting record tells the job's end. Accounting is believed about ends only: it says PENDING or
    RUNNING for ever of a job that the controller lost, and lags behind by a second and more (22.05)."""
    if state.phase is not Phase.TERMINAL:
        return False
    return controller_answered or state.word not in states.MAY_BE_REQUEUED


def _settle(job: JobKey, queue: Answer, accounts: Answer, shown: Answer | None) -> JobState:
    """The state of a job that squeue does not show alive, and for whose end accounting has no record (yet)."""
    state = shown.state(job) if shown is not None else None
    if state is not None and state.phase is not Phase.UNKNOWN:
        return state
    last = queue.state(job)
    if last is not None and last.phase is Phase.TERMINAL and last.word != states.SUCCESS:
        return last  # a failure without its exit code; a success needs one
    scontrol = "scontrol: not asked" if shown is None else shown.describe(job)
    reason = "; ".join([queue.describe(job), accounts.describe(job), scontrol])
    return unknown(reason, source="squeue, sacct, scontrol")


def _may_cancel(job: JobKey, queue: Answer) -> bool:
    state = queue.state(job)
    return not queue.shows_another(job) if state is None else state.phase is not Phase.TERMINAL


def _cancelled(done: Completed) -> bool:
    if done.ok:
        return True
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    return bool(complaints) and all(_NOTHING_TO_CANCEL.search(line) for line in complaints)
