"""A run's record on disk: what it is, what it did, and what it holds, so that any other process can take over.

``runs/<run id>/`` holds ``run.json`` (replaced atomically), ``plan.json``, ``events.jsonl`` (appended), and what the
stages keep there. A stage's outcome is in the record before the next stage begins; the job's id is there before
anything waits for the job.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, SubmissionError
from launcher.core.process_identity import ProcessIdentity
from launcher.core.publish import temporary_name, write_json
from launcher.core.suggest import closest
from launcher.plan.plan import Plan

SCHEMA = 1

ENDED = ("succeeded", "failed", "cancelled")
"""States of a run after which nothing more happens by itself."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run: when (epoch seconds), which kind (``stage``, ``job``, ``note``, …), what."""

    time: float
    run: str
    kind: str
    text: str
    data: Mapping[str, Any]


SUBMISSION_PATIENCE = 330.0
"""Seconds to wait for the submission of a launcher that was killed: its srtctl goes on for 300 at most."""

Listener = Callable[[Event], None]
"""Sees every event as it is recorded: a terminal, a CI log, a test."""


class RunRecord:
    """One run's directory. Fields are read with `get` and changed with `update`; each change is on disk at once."""

    def __init__(self, directory: Path, fields: dict[str, Any], clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._fields = fields
        self._clock = clock
        self.listeners: list[Listener] = []
        self.hide: Callable[[str], str] = str
        """Takes secrets out of a text before it is an event; whoever knows the environment sets it."""
        self._held: int | None = None

    @classmethod
    def create(cls, runs: Path, plan: Plan, *, clock: Callable[[], float] = time.time) -> RunRecord:
        """Make the record of a new run.

        Raises ConfigError when a run with this id is there already: the caller resumes that one instead.
        """
        directory = runs / check_run_id(plan.run_key)
        taken = ConfigError(
            f"run {plan.run_key} exists already", where=str(directory), hint=f"launcher resume {plan.run_key}"
        )
        if (directory / "run.json").exists():
            raise taken
        # Made whole under another name: a run whose launcher was killed here could neither be begun nor be resumed.
        temporary = temporary_name(directory)
        try:
            temporary.mkdir(parents=True)
            write_json(temporary / "plan.json", plan.as_dict())
            record = cls(temporary, {"schema": SCHEMA, "id": plan.run_key, "runner": plan.runner}, clock)
            record.update(state="new", created=clock(), stages={}, owner=owner())
            record.take()
            temporary.rename(directory)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise taken from None
            raise ConfigError(f"the run's record cannot be made: {error.strerror}", where=str(directory)) from None
        record.directory = directory
        return record

    @classmethod
    def load(cls, runs: Path, run_id: str, *, clock: Callable[[], float] = time.time) -> RunRecord:
        """Read a run's record. Raises ConfigError naming the nearest run, or what is wrong with the file."""
        directory = runs / check_run_id(run_id)
        path = directory / "run.json"
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            known = [p.name for p in runs.iterdir()] if runs.is_dir() else []
            near = closest(run_id, known)
            hint = f"did you mean {near}?" if near else f"launcher status lists the runs below {runs}"
            raise ConfigError(f"there is no run {run_id}", where=str(runs), hint=hint) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"the run's record cannot be read: {error}", where=str(path)) from None
        if fields.get("schema") != SCHEMA:
            raise ConfigError(f"record schema {fields.get('schema')!r} is not {SCHEMA}", where=str(path))
        return cls(directory, fields, clock)

    @property
    def id(self) -> str:
        return str(self._fields["id"])

    @property
    def plan(self) -> Plan:
        """The plan of this run. Raises ConfigError when it cannot be read."""
        return Plan.read(self.directory / "plan.json")

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def replan(self, plan: Plan) -> None:
        """Replace the plan, as when the recipe was read from the checkout."""
        write_json(self.directory / "plan.json", plan.as_dict())

    def update(self, **fields: Any) -> None:
        """Change fields, durably."""
        self._fields = {**self._fields, **fields, "updated": self._clock()}
        write_json(self.directory / "run.json", self._fields)

    def stage(self, name: str) -> Mapping[str, Any]:
        """What is known of a stage: ``state`` (running, done, failed; of a submission also unknown), ``at``, what it
        kept. Empty if not begun."""
        found: Mapping[str, Any] = self._fields.get("stages", {}).get(name, {})
        return found

    def set_stage(self, name: str, state: str, **kept: Any) -> None:
        """Write a stage's state and what later stages and other processes need of it."""
        now = self._clock()
        before = self.stage(name)
        entry = {"began": now, **before, **kept, "state": state, "at": now}
        if state == "running":
            entry["began"] = now
        self.update(stages={**self._fields.get("stages", {}), name: entry})

    def event(self, kind: str, text: str, **data: Any) -> None:
        """Append an event, and show it to the listeners: that, too, when the file cannot be written (a full disk)."""
        text = self.hide(text)
        event = Event(self._clock(), self.id, kind, text, data)
        line = json.dumps({"time": event.time, "kind": kind, "text": text, **data}, ensure_ascii=False, default=str)
        try:
            with (self.directory / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            event = replace(event, text=f"{text} (not recorded: {error.strerror})")
        for listener in self.listeners:
            listener(event)

    def events(self) -> Iterator[dict[str, Any]]:
        """The recorded events; a last line that a killed launcher left unfinished is passed over."""
        try:
            lines = (self.directory / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def take(self) -> None:
        """Make this process the one that drives the run, until it ends, and read what the record says by then.

        Of two processes on one machine that try, one succeeds. Raises ConfigError when another one drives it.
        """
        if self._held is None:
            self._held = _locked(self.directory / "driver.lock")
        if self._held is None or self.owned_by_another:
            raise ConfigError("another launcher drives this run", where=f"run {self.id}", hint="launcher logs -f RUN")
        self.reload()
        self.update(owner=owner())

    def reload(self) -> None:
        """Read the fields again, as another process may have written them."""
        self._fields = json.loads((self.directory / "run.json").read_text())

    @contextlib.contextmanager
    def submitting(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
        """Hold what only one submission of this run may hold; gives its descriptor, for srtctl to hold it too.

        A srtctl whose launcher was killed goes on, and may submit at any moment: whoever asks Slurm for the run's job
        before it has ended is told that there is none. Raises SubmissionError when that lasts too long.
        """
        deadline = time.monotonic() + SUBMISSION_PATIENCE
        while (handle := _locked(self.directory / "submit.lock")) is None:
            if time.monotonic() > deadline:
                raise SubmissionError("an earlier submission of this run still goes on", where=f"run {self.id}")
            sleep(0.2)
        try:
            yield handle
        finally:
            os.close(handle)

    @property
    def ended(self) -> bool:
        return self.get("state") in ENDED

    @property
    def settled(self) -> bool:
        """Whether the run has ended, and so has its job: one that was cancelled in vain, or submitted while its
        launcher left, is still to be ended."""
        job = self.get("job")
        return self.ended and bool(job.get("over", False) if job else not self.in_doubt)

    @property
    def in_doubt(self) -> bool:
        """Whether a submission was begun and nobody wrote down how it ended: there may be a job."""
        return not self.get("job") and self.stage("submit").get("state") in ("running", "unknown")

    @property
    def owned_by_another(self) -> bool:
        """Whether another launcher process that still lives drives this run (as far as this host can tell)."""
        its = self.get("owner")
        return its is not None and its != owner() and ProcessIdentity(**its).alive() is True

    @property
    def abandoned(self) -> bool | None:
        """Whether the run may hold a job and nobody drives it; None when only its launcher's own host could say."""
        its = self.get("owner")
        if self.settled:
            return False
        alive = ProcessIdentity(**its).alive() if its is not None else False
        return None if alive is None else not alive


def owner() -> dict[str, Any]:
    """The calling process, as a record names it."""
    return asdict(ProcessIdentity.mine())


def _locked(path: Path) -> int | None:
    """A descriptor that holds ``path`` for itself; None when another process does. Where the file system knows no
    locks, everybody gets one: the record's ``owner`` and the job's comment are what is then left to tell."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return handle
        os.close(handle)
        return None
    return handle


def records(runs: Path) -> list[RunRecord]:
    """All readable runs, oldest first. A directory that holds no record (yet) is passed over."""
    found = []
    for directory in sorted(runs.iterdir()) if runs.is_dir() else ():
        if (directory / "run.json").is_file():
            try:
                found.append(RunRecord.load(runs, directory.name))
            except ConfigError:
                continue
    return sorted(found, key=lambda r: r.get("created", 0.0))


def check_run_id(run_id: str) -> str:
    """The id itself, if it can be a directory's name and a job's comment. Raises ConfigError when not."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", run_id):
        raise ConfigError(f"{run_id!r} cannot be a run's id", hint="letters, digits, '.', '_' and '-', at most 120")
    return run_id
