"""What Slurm's programs and its controller's library answer, as records of jobs and of their steps.

The formats are those that 20.02 and later share; they were tried on 22.05. ``--json`` is not used: with it 22.05
ignores every filter, and its shape changes with each release.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from launcher.slurm.client import (
    OUT_OF_MEMORY,
    OUT_OF_MEMORY_CODE,
    SUBMIT_TIME_TOLERANCE,
    SUCCESS,
    JobKey,
    JobState,
    Phase,
    bare_word,
    phase_of,
)

SACCT_FIELDS = "JobIDRaw,State,ExitCode,DerivedExitCode,Submit,Start,End,NodeList,Reason,Comment"
"""The fields that sacct prints of jobs and of their steps. The comment is last: it is free text, and may contain the
separator."""

SQUEUE_FORMAT = "%A|%T|||%V|%S|%e|%N|%r|%k"
"""The same fields by squeue, which has no exit codes."""

_ID = re.compile(r"[0-9]+(?:\..*)?")
_EMPTY_VALUES = frozenset({"", "N/A", "None", "(null)", "Unknown", "None assigned", "NONE"})
_SCONTROL_PAIR = re.compile(r"(?:^| )([A-Z][\w/:&]*)=(\S*)")
_SCONTROL_KEYS = (
    *("JobId", "JobState", "ExitCode", "DerivedExitCode"),
    *("SubmitTime", "StartTime", "EndTime", "NodeList", "Reason"),
)
_SCONTROL_COMMENT = re.compile(r" Comment=(.*?)(?= +[A-Z]\w*=|$)")


@dataclass(frozen=True)
class Record:
    """One job as one source shows it, or one of its steps. A requeued or reused id has several records in accounting.

    ``step`` is the step's number, ``batch`` or ``extern``; "" for the job's own record.
    """

    id: str
    state: JobState
    comment: str
    step: str = ""

    @property
    def ended(self) -> bool:
        return self.step == "extern" or self.state.phase is Phase.TERMINAL


@dataclass(frozen=True)
class Answer:
    """What one source answered: its records of jobs and of ``steps``, by the jobs' ids; or why it gave no answer
    (``error``, "" when it gave one). ``source`` names it, and ``error`` begins with that name."""

    source: str
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    steps: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def from_records(cls, source: str, records: Iterable[Record]) -> Answer:
        jobs: dict[str, list[Record]] = defaultdict(list)
        steps: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            (steps if record.step else jobs)[record.id].append(record)
        return cls(source, jobs, steps)

    def state(self, job: JobKey) -> JobState | None:
        """The state in the record of this very job, the latest one when it was requeued; None without such a record.

        Other records may have its id. The record that follows one that ends in REQUEUED belongs to the same job: its
        submit time is another, and its comment may not be shown (`JobKey.matches`).
        """
        state: JobState | None = None
        for record in sorted(self.records.get(job.id, ()), key=lambda r: r.state.submitted or 0.0):
            requeued = state is not None and state.word == "REQUEUED"
            if requeued or job.matches(record.state.submitted, record.comment):
                state = record.state
        return state

    def shows_another_job(self, job: JobKey) -> bool:
        """Whether a record with this job's id is certainly another job's."""
        records = self.records.get(job.id, ())
        return any(job.matches(record.state.submitted, record.comment) is False for record in records)

    def describe(self, job: JobKey) -> str:
        """What the source says about the job, for a message."""
        if self.error:
            return self.error
        if (state := self.state(job)) is not None:
            return f"{self.source}: says {state.word}"
        if self.records.get(job.id):
            return f"{self.source}: knows another job with this id"
        return f"{self.source}: does not know the job"


def parse_records(text: str, source: str) -> list[Record]:
    """The records in what ``squeue -h -o SQUEUE_FORMAT`` or ``sacct -D -n -P -o SACCT_FIELDS`` printed.

    A record is a line that begins with the id of a job or a step and has all fields. Others are skipped: sites print
    banners.
    """
    rows = (line.strip().split("|", 9) for line in text.splitlines())
    return [make_record(source, *row) for row in rows if len(row) == 10 and _ID.fullmatch(row[0])]


def parse_scontrol(text: str, source: str = "scontrol") -> list[Record]:
    """The records in what ``scontrol show job -d -o ID`` printed."""
    records = []
    for line in text.splitlines():
        pairs = scontrol_pairs(line)
        if pairs["JobId"].isdigit() and pairs["JobState"]:
            words = [pairs[key] for key in _SCONTROL_KEYS]
            comment = _SCONTROL_COMMENT.search(line)
            records.append(make_record(source, *words, comment[1].strip() if comment else ""))
    return records


def scontrol_pairs(line: str) -> defaultdict[str, str]:
    """The ``Key=value`` pairs of one line of ``scontrol show … -o``, "" for a key that is not there.

    When a key occurs twice the first one counts: free text (comment, reason) comes later. A value ends at a space.
    """
    pairs: defaultdict[str, str] = defaultdict(str)
    for key, value in _SCONTROL_PAIR.findall(line):
        pairs.setdefault(key, value)
    return pairs


def make_record(source: str, *fields: str) -> Record:
    """A record of id, state, exit code, derived exit code, submit, start and end time, nodes, reason and comment, in
    this order (`SACCT_FIELDS`)."""
    full_id, word, code, derived, submit, start, end, nodes, reason, comment = fields
    phase, word = phase_of(word), bare_word(word)
    ended = phase is Phase.TERMINAL
    state = JobState(
        phase,
        word,
        exit_code=parse_exit_code(code) if ended else None,
        reason="" if reason in _EMPTY_VALUES else reason,
        # While a job is COMPLETING the controller names only the nodes that are not free yet (22.05).
        nodes="" if nodes in _EMPTY_VALUES or word == "COMPLETING" else nodes,
        submitted=parse_time(submit),
        started=None if word == "PENDING" else parse_time(start),
        expected=parse_time(start) if word == "PENDING" else None,  # as `squeue --start` has it, at no cost
        ended=parse_time(end) if ended else None,
        source=source,
        derived=parse_exit_code(derived) if ended else None,
    )
    job, _, step = full_id.partition(".")
    return Record(job, state, "" if comment in _EMPTY_VALUES else comment, step)


def parse_exit_code(text: str) -> tuple[int, int] | None:
    """(exit status, signal) from Slurm's form ``3:0``; None for any other text."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def parse_time(text: str) -> float | None:
    """Seconds since the epoch, from that number (the clients are asked for ``%s``) or from Slurm's local ISO form."""
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def may_lack_codes(state: JobState) -> bool:
    """Whether an ended job's accounting record may lack the exit code of a step, or of its script: it keeps 0:0 for
    ever where the step's end reached the controller after the job's (22.05, 6 of 25 jobs under load)."""
    if state.word == SUCCESS:
        return state.exit_code == (0, 0) and state.derived in (None, (0, 0))
    return state.word == "FAILED" and state.exit_code in (None, (0, 0))


def steps_of_job(steps: Sequence[Record], state: JobState) -> list[Record]:
    """The steps that ran during this job: Slurm reuses ids, and accounting shows the newest steps of an id."""
    first = -math.inf if state.started is None else state.started - SUBMIT_TIME_TOLERANCE
    last = math.inf if state.ended is None else state.ended + SUBMIT_TIME_TOLERANCE
    return [step for step in steps if step.state.started is None or first <= step.state.started <= last]


def with_nodes_and_start(state: JobState, shown: JobState | None, steps: Sequence[Record]) -> JobState:
    """An end by accounting, with the nodes and start time that the controller shows (``shown``), where it shows them.

    For up to 5 s (22.05; half the jobs that take a second) accounting does not have the job's start yet, and shows a
    record made from a step, with the nodes of that step: mostly the script's single node. Where the controller shows
    nothing and other steps ran on other nodes, the nodes are unknown ("").
    """
    if shown is not None and shown.phase is Phase.TERMINAL and shown.nodes and shown.submitted == state.submitted:
        return replace(state, nodes=shown.nodes, started=shown.started or state.started)
    nodes = {step.step: step.state.nodes for step in steps_of_job(steps, state) if step.state.nodes}
    are_of_script = nodes.get("batch") == state.nodes and len(set(nodes.values())) > 1
    return replace(state, nodes="") if are_of_script else state


def may_lack_ends(steps: Sequence[Record], state: JobState) -> bool:
    """Whether the steps of an ended job (`may_lack_codes`) may leave an exit code unknown: there is no step, one seems
    to run still, or the record of one may be copied from the job's.

    For a step whose end is missing accounting shows the word and the end of the job, and 0:0
    (as_mysql_jobacct_process.c). This was seen for 0.4 s after jobs whose step failed (22.05).
    """
    ended = [step for step in steps if step.ended]
    hides_code = [s for s in ended if s.step != "extern" and (s.step == "batch") == (state.word == "FAILED")]
    job_end = (state.word, state.ended, (0, 0))
    return (
        not steps
        or len(ended) < len(steps)
        or any((s.state.word, s.state.ended, s.state.exit_code) == job_end for s in hides_code)
    )


def has_all_codes(shown: JobState) -> bool:
    """Whether the codes that the controller shows of an ended job are final. It counts cancelled steps too, and only
    accounting tells their codes from a failed step's. An array's task may have no exit code of its own."""
    if shown.word == SUCCESS:
        return shown.derived in (None, (0, 0))
    return shown.exit_code not in (None, (0, 0))


def with_step_codes(state: JobState, steps: Sequence[Record]) -> JobState:
    """A state with the exit codes of its failed steps. Cancelled steps do not count: jobs end their servers so."""
    failed = [step for step in steps if step.state.word in ("FAILED", OUT_OF_MEMORY)]
    codes = {step.step: step.state.exit_code for step in failed if step.state.exit_code is not None}
    script = codes.pop("batch", None)
    if state.word == "FAILED":
        return replace(state, exit_code=script or state.exit_code)
    return replace(state, derived=max([*codes.values(), state.derived or (0, 0)]))


def with_memory_limit(state: JobState, steps: Sequence[Record]) -> JobState:
    """The state, with `OUT_OF_MEMORY_CODE` as derived code where the memory limit ended a step. The job's own derived
    code is the highest one, so that any exit code of another step hides the limit."""
    out_of_memory = any(step.state.word == OUT_OF_MEMORY for step in steps_of_job(steps, state))
    return replace(state, derived=OUT_OF_MEMORY_CODE) if out_of_memory and state.phase is Phase.TERMINAL else state


def with_controller_codes(state: JobState, shown: JobState, steps: Sequence[Record]) -> JobState:
    """A state with the codes that the controller shows (``shown``). The controller counts cancelled steps too: a
    derived code that a cancelled step has is left out."""
    cancelled = {step.state.exit_code for step in steps if step.state.word == "CANCELLED"}
    derived = state.derived if shown.derived in cancelled else shown.derived
    code = state.exit_code if shown.exit_code in (None, (0, 0)) else shown.exit_code
    return replace(state, exit_code=code, derived=derived)
