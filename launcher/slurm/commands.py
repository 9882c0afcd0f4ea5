"""Slurm by its own commands: squeue, sacct and scontrol tell how jobs stand, scancel ends them.

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
"""Seconds that squeue may take, before scancel, to say whose the ids are: scancel has to be sent two seconds after a
cancel at the latest."""

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
        found: dict[JobKey, JobState] = {}
        for start in range(0, len(jobs), IDS_PER_CALL):
            found.update(self._poll(jobs[start : start + IDS_PER_CALL]))
        return found

    def _poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        queue = self.query_controller([job.id for job in jobs])
        # squeue shows no exit codes, so that an end by it is not enough; the controller's own library shows them.
        seen = {job: state for job in jobs if (state := queue.state(job))}
        found = {job: state for job, state in seen.items() if state.phase is Phase.ALIVE or state.exit_code}
        if not (rest := [job for job in jobs if job not in found]):
            return found
        accounts = self._query_accounting(rest)
        for job in rest:
            # Accounting is believed about ends only: it says PENDING or RUNNING for ever of a job that the controller
            # lost, and lags behind by a second and more (22.05): an end without its time lacks its exit codes too.
            state = _end_by_accounting(job, queue, accounts)
            if state and state.ended is not None:
                found[job] = with_nodes_and_start(state, seen.get(job), accounts.steps.get(job.id, ()))
        rest = [job for job in rest if job not in found]
        shown = self._query_scontrol(rest)
        found |= {job: _state_without_squeue(job, queue, accounts, shown.get(job)) for job in rest}
        return self._with_steps(found, accounts, queue)

    def _query_accounting(self, jobs: Sequence[JobKey]) -> Answer:
        """What accounting says of the jobs and of their steps: with -j it looks at all times, not only at today."""
        return self._sacct("-j", ",".join(job.id for job in jobs))

    def _query_scontrol(self, jobs: Sequence[JobKey]) -> dict[JobKey, Answer]:
        """What scontrol shows of the first of these jobs, until it gives no answer: then each call takes 9 s."""
        shown: dict[JobKey, Answer] = {}
        for job in jobs[:SCONTROL_CALLS_PER_POLL]:
            shown[job] = self._query(["scontrol", "show", "job", "-d", "-o", job.id], parse_scontrol)
            if shown[job].error:
                break
        return shown

    def _with_steps(self, states: dict[JobKey, JobState], accounts: Answer, queue: Answer) -> dict[JobKey, JobState]:
        """The states, with the exit codes that an ended job's steps have and its own record lacks (`may_lack_codes`).

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
        records = [record for answer in (accounts, queue) for some in answer.records.values() for record in some]
        ours = [record for record in records if has_token(record.comment, token)]
        keys = {record.id: JobKey(record.id, record.state.submitted, token) for record in ours}
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
        queue = self.query_controller([job.id for job in jobs], timeout=min(OWNER_CHECK_TIMEOUT, self._timeout))
        ended = {job for job in jobs if (state := queue.state(job)) and state.phase is Phase.TERMINAL}
        foreign = {job for job in jobs if queue.state(job) is None and queue.shows_another_job(job)}
        ids = [job.id for job in jobs if job not in ended | foreign]
        for start in range(0, len(ids), IDS_PER_CALL):
            some = ids[start : start + IDS_PER_CALL]
            self._run_until_done(["scancel", *some], f"job {','.join(some)}", [0.5] * 2)

    def release(self, job: JobKey) -> None:
        """Call `scontrol release`, ten times and for 20 s at most. The leader's id releases all of an array or of
        a heterogeneous job (22.05)."""
        self._run_until_done(["scontrol", "release", job.id], str(job), [1.0] * 9, within=20.0, timeout=10.0)

    def describe(self, job: JobKey) -> dict[str, str]:
        """What scontrol and sacct (with all steps) print of the job, for a person: times are local."""
        fields = (
            "JobID,JobName,State,ExitCode,DerivedExitCode,Submit,Start,End,Elapsed,Timelimit,NodeList,Reason,Comment"
        )
        asked = {
            "scontrol": ["scontrol", "show", "job", "-d", job.id],
            "sacct": ["sacct", "-D", "-P", "-j", job.id, "-o", fields],
        }
        answered = {name: self._runner(argv, timeout=self._timeout, env=self._plain) for name, argv in asked.items()}
        return {name: done.stdout if done.ok else str(done) for name, done in answered.items()}

    def query_controller(self, ids: Sequence[str] = (), *, user: str = "", timeout: float | None = None) -> Answer:
        """What the controller says of these jobs, or of all jobs of a user."""
        which = ["-u", user] if user else ["-j", ",".join(ids)]
        return self._query(["squeue", "-h", "--states=all", *which, "-o", SQUEUE_FORMAT], timeout=timeout)

    def _sacct(self, *which: str) -> Answer:
        # -D shows every record of an id that was given out twice, or of a job that was requeued.
        return self._query(["sacct", "-D", "-n", "-P", *which, "-o", SACCT_FIELDS])

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
        """Run a command until Slurm does what it asks for, has nothing to do for it, or refuses."""
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
    """The end of a job by accounting, where the controller does not speak against it."""
    state = accounts.state(job)
    if state is None or state.phase is not Phase.TERMINAL or (queue.error and state.word in MAY_BE_REQUEUED):
        return None
    return state


def _state_without_squeue(job: JobKey, queue: Answer, accounts: Answer, shown: Answer | None) -> JobState:
    """The state of a job that squeue does not show alive, and for whose end accounting has no record (yet)."""
    state = shown.state(job) if shown is not None else None
    if state is not None and state.phase is not Phase.UNKNOWN:
        return state
    last = queue.state(job)
    if last is not None and last.phase is Phase.TERMINAL and last.word != SUCCESS:
        return last  # a failure without its exit code; a success needs one
    if (told := _end_by_accounting(job, queue, accounts)) is not None:
        return told
    scontrol = "scontrol: not asked" if shown is None else shown.describe(job)
    reason = "; ".join([queue.describe(job), accounts.describe(job), scontrol])
    return unknown_state(reason, source="squeue, sacct, scontrol")


def _is_done(done: Completed) -> bool:
    """Whether a request was taken, or was about jobs only that have ended."""
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    return done.ok or (bool(complaints) and all(_JOB_HAS_ENDED.search(line) for line in complaints))
