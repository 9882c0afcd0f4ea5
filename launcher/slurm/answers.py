"""What squeue, sacct and scontrol print, read into records. Lines of another form are skipped: sites print banners."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from launcher.slurm import states
from launcher.slurm.client import JobKey, JobState
from launcher.slurm.states import Phase

# The comment is last in both: it is free text, and may hold the separator.
SQUEUE_FORMAT = "%A|%T|%V|%S|%e|%r|%N|%k"
SACCT_FIELDS = "JobIDRaw,State,ExitCode,DerivedExitCode,Submit,Start,End,NodeList,Reason,Comment"

_NOTHING = frozenset({"", "N/A", "None", "(null)", "Unknown", "None assigned", "NONE"})
_SCONTROL_PAIR = re.compile(r"(?:^| )([A-Z][\w/:&]*)=(\S*)")
_SCONTROL_KEYS = (
    *("JobId", "JobState", "ExitCode", "DerivedExitCode"),
    *("SubmitTime", "StartTime", "EndTime", "NodeList", "Reason"),
)
_SCONTROL_COMMENT = re.compile(r" Comment=(.*?)(?= +[A-Z]\w*=|$)")


@dataclass(frozen=True)
class Record:
    """One job as one source shows it. A requeued or reused id has several records in accounting."""

    id: str
    state: JobState
    comment: str


@dataclass(frozen=True)
class Answer:
    """What one source answered: its records by job id, or why it gave no answer (``error``, "" when it gave one).

    ``by`` names the source, and ``error`` begins with that name.
    """

    by: str
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of(cls, by: str, records: Iterable[Record]) -> Answer:
        by_id: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            by_id[record.id].append(record)
        return cls(by, by_id)

    def state(self, job: JobKey) -> JobState | None:
        """The state in the record of this very job, the latest one when it was requeued; None without such a record.

        Other records may have its id. The record that follows one that ends in REQUEUED belongs to the same job: its
        submit time is another, and its comment may not be shown (`JobKey.matches`).
        """
        own: JobState | None = None
        for record in sorted(self.records.get(job.id, ()), key=lambda r: r.state.submitted or 0.0):
            again = own is not None and own.word == "REQUEUED"
            if again or job.matches(record.state.submitted, record.comment):
                own = record.state
        return own

    def shows_another(self, job: JobKey) -> bool:
        """Whether a record with this job's id is certainly another job's."""
        records = self.records.get(job.id, ())
        return any(job.matches(record.state.submitted, record.comment) is False for record in records)

    def describe(self, job: JobKey) -> str:
        """What the source says of the job, for a message."""
        if self.error:
            return self.error
        if (state := self.state(job)) is not None:
            return f"{self.by}: says {state.word}"
        if self.records.get(job.id):
            return f"{self.by}: knows another job with this id"
        return f"{self.by}: does not know the job"


def squeue_records(text: str) -> list[Record]:
    """The records in what ``squeue -h -o SQUEUE_FORMAT`` printed."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|", 7)
        if len(fields) == 8 and fields[0].isdigit():
            job, word, submit, start, end, reason, nodes, comment = fields
            found.append(_record("squeue", job, word, "", "", submit, start, end, nodes, reason, comment))
    return found


def sacct_records(text: str) -> list[Record]:
    """The records in what ``sacct -X -D -n -P -o SACCT_FIELDS`` printed."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|", 9)
        if len(fields) == 10 and fields[0].isdigit():
            found.append(_record("sacct", *fields))
    return found


def scontrol_records(text: str) -> list[Record]:
    """The records in what ``scontrol show job -d -o ID`` printed."""
    found = []
    for line in text.splitlines():
        pairs = scontrol_pairs(line)
        if pairs["JobId"].isdigit() and pairs["JobState"]:
            words = [pairs[key] for key in _SCONTROL_KEYS]
            comment = _SCONTROL_COMMENT.search(line)
            found.append(_record("scontrol", *words, comment[1].strip() if comment else ""))
    return found


def scontrol_pairs(line: str) -> defaultdict[str, str]:
    """The ``Key=value`` pairs of one line of ``scontrol show … -o``, "" for a key that is not there.

    The first counts when a key occurs twice: free text (comment, reason) comes later. A value ends at a space.
    """
    pairs: defaultdict[str, str] = defaultdict(str)
    for key, value in _SCONTROL_PAIR.findall(line):
        pairs.setdefault(key, value)
    return pairs


def controller_records(rows: Iterable[Sequence[str]], source: str) -> list[Record]:
    """The records in rows of `launcher.slurm.native_worker`: the fields of SACCT_FIELDS, in that order."""
    return [_record(source, *row) for row in rows]


def timestamp(text: str) -> float | None:
    """Seconds since the epoch, from that number (the clients are asked for ``%s``) or from Slurm's local ISO form."""
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _record(source: str, *fields: str) -> Record:
    """A record of id, state, exit code, derived exit code, submit, start and end time, nodes, reason and comment, in
    this order (`SACCT_FIELDS`)."""
    job, word, code, derived, submit, start, end, nodes, reason, comment = fields
    phase = states.phase(word)
    bare = states.normal(word)
    state = JobState(
        phase,
        bare,
        exit_code=_code(code) if phase is Phase.TERMINAL else None,
        reason="" if reason in _NOTHING else reason,
        nodes="" if nodes in _NOTHING else nodes,
        submitted=timestamp(submit),
        started=None if bare == "PENDING" else timestamp(start),  # for a pending job the scheduler guesses
        ended=timestamp(end) if phase is Phase.TERMINAL else None,
        source=source,
        derived=_code(derived) if phase is Phase.TERMINAL else None,
    )
    return Record(job, state, "" if comment in _NOTHING else comment)


def _code(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None
