"""Slurm by its own commands: squeue, sacct and scontrol show their states, scancel ends them.

Options and messages are those that 20.02 and later share; they were tried on 22.05 (answers.py has the formats).
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from launcher.core.errors import JobError
from launcher.core.process import CommandRunner, Completed, clean_environment, run
from launcher.core.waiting import retry_until
from launcher.slurm.answers import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    Answer,
    Record,
    has_all_codes,
    may_lack_codes,
    may_lack_ends,
    parse_records,
    parse_scontrol,
    steps_of_job,
    with_controller_codes,
    with_memory_limit,
    with_nodes_and_start,
    with_step_codes,
)
from launcher.slurm.client import (
    MAY_BE_REQUEUED,
    SUCCESS,
    JobKey,
    JobState,
    Phase,
    SchedulerUnreachable,
    has_token,
    unknown_state,
)

IDS_PER_CALL = 2000
"""Job ids in one argv. Two thousand seven-digit ids are 16 kB; the kernel takes 128 kB for one argument."""

SCONTROL_CALLS_PER_POLL = 20
"""At most so many calls of `scontrol show job` for one question: each call takes one id."""

STEP_REPEATS, STEP_PAUSE = 3, 0.5
"""How often accounting is asked again for the ends of an ended job's steps, and the pause in seconds before each."""

OWNER_CHECK_TIMEOUT = 1.0
"""Seconds that squeue may take before scancel to show which jobs have the ids. scancel must be sent at most two seconds
after a cancel."""

_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_JOB_HAS_ENDED = re.compile(r"invalid job id|already (completing or completed|finished)", re.IGNORECASE)
_PERMISSION_DENIED = re.compile(r"access/permission denied|invalid user", re.IGNORECASE)


class SlurmCommands:
    """The Scheduler over Slurm's command line tools. It holds no state; several threads may use it."""

    name = "slurm"

    def __init__(
        self,
        *,
        runner: CommandRunner = run,
        environ: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        cluster: str = "",
    ) -> None:
        """``timeout``: seconds for each call. ``environ``: that of the commands, by default os.environ.
        ``cluster``: the one that is spoken to, by default this host's."""
        self._runner = runner
        self._timeout = timeout
        self._sleep = sleep
        # Without variables that change what the clients ask or print: SQUEUE_FORMAT, SLURM_CLUSTERS…
        prefixes = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")
        clean = clean_environment(os.environ if environ is None else environ)
        self._plain = {name: value for name, value in clean.items() if not name.startswith(prefixes)}
        if cluster:
            self._plain["SLURM_CLUSTERS"] = cluster
        # With this squeue, sacct and scontrol (22.05) print times as seconds since the epoch, free of time zones.
        self._environment = {**self._plain, "SLURM_TIME_FORMAT": "%s"}

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        """One squeue for all jobs; then sacct, and then scontrol, for those that squeue does not show alive."""
        states: dict[JobKey, JobState] = {}
        for start in range(0, len(jobs), IDS_PER_CALL):
            states.update(self._poll_chunk(jobs[start : start + IDS_PER_CALL]))
        return states

    def _poll_chunk(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        queue = self.query_controller([job.id for job in jobs])
        # squeue shows no exit codes, so the end of a job by squeue alone is not enough; pyslurm shows them.
        by_squeue = {job: state for job in jobs if (state := queue.state(job))}
        states = {job: state for job, state in by_squeue.items() if state.phase is Phase.ALIVE or state.exit_code}
        if not (missing := [job for job in jobs if job not in states]):
            return states
        accounts = self._query_accounting(missing)
        for job in missing:
            # Accounting is believed about ends only: it shows a job that the controller lost as PENDING or RUNNING for
            # ever, and lags by a second or more (22.05). An end without its time lacks its exit codes too.
            state = _end_by_accounting(job, queue, accounts)
            if state and state.ended is not None:
                states[job] = with_nodes_and_start(state, by_squeue.get(job), accounts.steps.get(job.id, ()))
        missing = [job for job in missing if job not in states]
        shown = self._query_scontrol(missing)
        states |= {job: _state_without_squeue(job, queue, accounts, shown.get(job)) for job in missing}
        return self._with_steps(states, accounts, queue)

    def _query_accounting(self, jobs: Sequence[JobKey]) -> Answer:
        """The accounting records of the jobs and of their steps. With -j sacct searches all times, not only today."""
        return self._sacct("-j", ",".join(job.id for job in jobs))

    def _query_scontrol(self, jobs: Sequence[JobKey]) -> dict[JobKey, Answer]:
        """What scontrol shows of the first `SCONTROL_CALLS_PER_POLL` jobs. It stops at the first call without an
        answer: each further one would take 9 s."""
        shown: dict[JobKey, Answer] = {}
        for job in jobs[:SCONTROL_CALLS_PER_POLL]:
            shown[job] = self._query(["scontrol", "show", "job", "-d", "-o", job.id], parse_scontrol)
            if shown[job].error:
                break
        return shown

    def _with_steps(self, states: dict[JobKey, JobState], accounts: Answer, queue: Answer) -> dict[JobKey, JobState]:
        """Add the exit codes that an ended job's steps have and its own record lacks (`may_lack_codes`).

        The step's own record has the code. Where that record may not be complete yet, the controller knows the codes
        once it shows the job no more as COMPLETING (22.05, all of 5,423 answers about jobs with a failed step).
        Accounting is asked again only where the controller's answer is not enough, since each question of it may take
        seconds where slurmdbd is busy.
        """
        steps = dict(accounts.steps)

        def steps_of(job: JobKey) -> list[Record]:
            return steps_of_job(steps.get(job.id, ()), states[job])

        def lacks_ends(job: JobKey) -> bool:
            return not steps_of(job) or not all(step.ended for step in steps_of(job))

        ended = [
            job for job, state in states.items() if state.source in ("sacct", "scontrol") and may_lack_codes(state)
        ]
        shown = {job: states[job] for job in ended if states[job].source == "scontrol"}
        if not queue.error:  # a controller that gives no answer is asked last, since each call then takes 9 s
            unclear = [job for job in ended if job not in shown and may_lack_ends(steps_of(job), states[job])]
            shown |= self._show_states(unclear, states)
            for job in unclear[SCONTROL_CALLS_PER_POLL:]:  # nobody has seen its codes yet: the next poll asks
                ended.remove(job)
                states[job] = unknown_state("scontrol: not asked for its exit codes yet", source="sacct, scontrol")
        waiting = [job for job in ended if lacks_ends(job) and not (job in shown and has_all_codes(shown[job]))]
        for _ in range(STEP_REPEATS if waiting else 0):
            self._sleep(STEP_PAUSE)
            steps.update(self._query_accounting(waiting).steps)
            if not (waiting := [job for job in waiting if lacks_ends(job)]):
                break
        shown |= self._show_states([job for job in waiting if job not in shown], states)
        for job in ended:
            states[job] = with_step_codes(states[job], steps_of(job))
        for job, state in shown.items():
            states[job] = with_controller_codes(states[job], state, steps.get(job.id, ()))
        return {job: with_memory_limit(state, steps.get(job.id, ())) for job, state in states.items()}

    def _show_states(self, jobs: Sequence[JobKey], states: Mapping[JobKey, JobState]) -> dict[JobKey, JobState]:
        """The states that scontrol shows of these jobs, where their word is the one that is known already."""
        answers = {job: answer.state(job) for job, answer in self._query_scontrol(jobs).items()}
        return {job: state for job, state in answers.items() if state is not None and state.word == states[job].word}

    def find(self, token: str) -> list[JobKey]:
        """Look for the token in the comments that squeue and sacct show, of jobs since yesterday.

        An answer of squeue alone is enough to say "none": it shows every job for MinJobAge, and the question comes
        moments after the submission. An empty answer of sacct is not enough: it lags, and may hold no comments.
        """
        # The token is not in the job's name: that has to be the runner's name, by which workflows cancel the jobs that
        # a dead launcher left behind.
        user = str(os.getuid())
        queue = self.query_controller(user=user)
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 86400))
        accounts = self._sacct("-X", "-u", user, "-S", since)
        records = [record for answer in (accounts, queue) for rows in answer.records.values() for record in rows]
        ours = [record for record in records if has_token(record.comment, token)]
        keys = {record.id: JobKey(record.id, record.state.submitted, token) for record in ours}
        if not keys and queue.error:
            raise SchedulerUnreachable(
                f"nobody could say whether a job with the token {token} exists: {queue.error}",
                hint="look with `squeue --me -o '%i %k'` before submitting again",
            )
        return sorted(keys.values(), key=lambda key: key.submitted or 0.0)

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        """Ask squeue which jobs have the ids, then call scancel, three times at most.

        An id is left out only when squeue shows that it is another job's, or that its job has ended. All others are
        cancelled, also when squeue gives no answer: a bad answer must not leave a job running, scancel of an unknown id
        does nothing (exit 0, no message in 22.05), and nobody can cancel other users' jobs. Raises JobError when Slurm
        refuses.
        """
        queue = self.query_controller([job.id for job in jobs], timeout=min(OWNER_CHECK_TIMEOUT, self._timeout))
        ended = {job for job in jobs if (state := queue.state(job)) and state.phase is Phase.TERMINAL}
        foreign = {job for job in jobs if queue.state(job) is None and queue.shows_another_job(job)}
        ids = [job.id for job in jobs if job not in ended | foreign]
        for start in range(0, len(ids), IDS_PER_CALL):
            chunk = ids[start : start + IDS_PER_CALL]
            self._run_until_done(["scancel", *chunk], f"job {','.join(chunk)}", [0.5] * 2)

    def release(self, job: JobKey) -> None:
        """Call `scontrol release`, ten times and for 20 s at most. The leader's id releases all of an array or of
        a heterogeneous job (22.05)."""
        self._run_until_done(["scontrol", "release", job.id], str(job), [1.0] * 9, within=20.0, timeout=10.0)

    def describe(self, job: JobKey) -> dict[str, str]:
        """What scontrol and sacct (with all steps) print of the job, for a person: times are local."""
        fields = (
            "JobID,JobName,State,ExitCode,DerivedExitCode,Submit,Start,End,Elapsed,Timelimit,NodeList,Reason,Comment"
        )
        commands = {
            "scontrol": ["scontrol", "show", "job", "-d", job.id],
            "sacct": ["sacct", "-D", "-P", "-j", job.id, "-o", fields],
        }
        results = {name: self._runner(argv, timeout=self._timeout, env=self._plain) for name, argv in commands.items()}
        return {name: result.stdout if result.ok else str(result) for name, result in results.items()}

    def query_controller(self, ids: Sequence[str] = (), *, user: str = "", timeout: float | None = None) -> Answer:
        """What the controller says of these jobs, or of all jobs of a user."""
        selection = ["-u", user] if user else ["-j", ",".join(ids)]
        return self._query(["squeue", "-h", "--states=all", *selection, "-o", SQUEUE_FORMAT], timeout=timeout)

    def _sacct(self, *selection: str) -> Answer:
        # -D shows every record of an id that was given out twice, or of a job that was requeued.
        return self._query(["sacct", "-D", "-n", "-P", *selection, "-o", SACCT_FIELDS])

    def _query(
        self, argv: list[str], read: Callable[[str, str], list[Record]] = parse_records, timeout: float | None = None
    ) -> Answer:
        done = self._runner(argv, timeout=timeout or self._timeout, env=self._environment)
        if done.ok:
            return Answer.from_records(argv[0], read(done.stdout, argv[0]))
        if not done.timed_out and _UNKNOWN_JOB.search(done.stderr):
            # For an unknown id squeue (when it is the only one) and scontrol exit with 1, as when the controller is
            # away; only this message tells the two apart.
            return Answer(argv[0])
        return Answer(argv[0], error=str(done))

    def _run_until_done(
        self,
        argv: list[str],
        where: str,
        pauses: Sequence[float],
        *,
        within: float = math.inf,
        timeout: float = math.inf,
    ) -> None:
        """Run a command until Slurm takes the request, has nothing to do for it, or refuses."""
        done = retry_until(
            lambda answer: _is_done(answer) or _PERMISSION_DENIED.search(answer.stderr) is not None,
            lambda: self._runner(argv, timeout=min(timeout, self._timeout), env=self._plain),
            pauses,
            within=within,
            sleep=self._sleep,
        )
        if _PERMISSION_DENIED.search(done.stderr):
            hint = "see whose it is, and who holds it: scontrol show job"
            raise JobError(f"Slurm refuses: {done}", where=where, hint=hint)
        if not _is_done(done):
            hint = f"by hand, later: {' '.join(argv)}"
            raise SchedulerUnreachable(f"the request did not go through: {done}", where=where, hint=hint)


def _end_by_accounting(job: JobKey, queue: Answer, accounts: Answer) -> JobState | None:
    """The end of a job by accounting; None where there is none, or where the controller may requeue the job."""
    state = accounts.state(job)
    if state is None or state.phase is not Phase.TERMINAL or (queue.error and state.word in MAY_BE_REQUEUED):
        return None
    return state


def _state_without_squeue(job: JobKey, queue: Answer, accounts: Answer, shown: Answer | None) -> JobState:
    """The state of a job that squeue does not show alive, and whose end accounting does not record (yet)."""
    state = shown.state(job) if shown is not None else None
    if state is not None and state.phase is not Phase.UNKNOWN:
        return state
    by_squeue = queue.state(job)
    if by_squeue is not None and by_squeue.phase is Phase.TERMINAL and by_squeue.word != SUCCESS:
        return by_squeue  # a failure may lack its exit code; a success needs one
    if (end := _end_by_accounting(job, queue, accounts)) is not None:
        return end
    scontrol = "scontrol: not asked" if shown is None else shown.describe(job)
    reason = "; ".join([queue.describe(job), accounts.describe(job), scontrol])
    return unknown_state(reason, source="squeue, sacct, scontrol")


def _is_done(done: Completed) -> bool:
    """Whether Slurm took the request, or complained only that the jobs have ended."""
    messages = [line for line in done.stderr.splitlines() if line.strip()]
    return done.ok or (bool(messages) and all(_JOB_HAS_ENDED.search(line) for line in messages))
