"""What a run leaves when it ends: its verdict with the evidence for it, and the logs where a workflow looks for them.

Nothing of it holds a secret of the environment, or the shape of one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.core.errors import Cancelled, LauncherError
from launcher.core.publish import write_bytes, write_json, write_text
from launcher.core.redact import redact, redact_bytes
from launcher.result.logs import TARBALL, bundle_logs, keep_logs
from launcher.run.kind import Run
from launcher.run.verdict import Failure, Verdict, first_failures, tail, verdict
from launcher.slurm.client import JobState

FOLDER = "launcher-evidence"
"""Where the evidence lies in a tarball of logs: no workflow takes what is below it for a result."""

LARGEST = 512 * 1024
"""Bytes that are kept of any one file: of a text its beginning, of a log and of the events the end. With the twelve
names that there are, evidence has at most 6 MiB."""

SEARCH_SECONDS = 10.0
"""How long logs are searched for what failed first."""

STOP_SECONDS = 2.0
"""How long logs are packed, and how long the scheduler is waited for, when we were asked to stop."""


def judge(run: Run, error: LauncherError | None, state: JobState | None) -> Verdict:
    """The verdict on a run's end, with its evidence written down. ``state`` is how the job ended, if it did.

    After a request to stop the logs are not searched: a workflow's cancel leaves little time.
    """
    failures: list[Failure] = []
    job = run.record.job
    if error is not None and job is not None and not isinstance(error, Cancelled):
        failures = first_failures(Path(job.log).parent, seconds=SEARCH_SECONDS)
    found = verdict(error, state, failures)
    found = Verdict(found.layer, redact(found.text, run.services.environ))
    with contextlib.suppress(OSError):  # a full disk must not change how the run ends
        _keep(run, found, failures, error)
    return found


def _keep(run: Run, found: Verdict, failures: Sequence[Failure], error: LauncherError | None) -> None:
    """Write verdict.txt, first-failure.txt, job.log (its end), events.txt and the job's own files. Raises OSError."""
    directory, environ, job = run.evidence_directory, run.services.environ, run.record.job
    directory.mkdir(exist_ok=True)
    ended = f"job {job.id}: {job.says}" if job is not None and job.says else ""
    texts = {"verdict.txt": "".join(f"{line}\n" for line in (str(found), ended) if line)}
    if failures:
        first = [f"{failures[0].file}:", *failures[0].lines, ""]
        others = [f"then {f.file}: {f.text}" for f in failures[1:20]]
        texts["first-failure.txt"] = "\n".join([*first, *others, ""])
    elif error is not None:
        texts["first-failure.txt"] = f"{error}\n"
    if job is not None and (lines := tail(Path(job.log))):
        texts["job.log"] = "\n".join([*lines, ""])
    for name, text in texts.items():
        write_text(directory / name, redact(text, environ)[:LARGEST])
    _keep_events(run)
    for name, source in run.kind.evidence(run).items():
        content = _beginning(source) if isinstance(source, Path) else source.encode()
        if content is not None:
            write_bytes(directory / name, redact_bytes(content, environ)[:LARGEST])


def _keep_events(run: Run) -> None:
    """Write events.txt. Raises OSError."""
    run.evidence_directory.mkdir(exist_ok=True)
    write_text(run.evidence_directory / "events.txt", redact(_shown(run.record.events()), run.services.environ))


def _shown(events: Iterable[Mapping[str, Any]]) -> str:
    """What happened to the run and its job as we saw it, a line each, with local times; the last LARGEST bytes."""
    lines = []
    for event in events:
        if event.get("kind") in ("job", "stage", "warning", "error"):
            when = datetime.fromtimestamp(float(event["time"])).isoformat(sep=" ", timespec="milliseconds")
            lines.append(f"{when}  {event.get('text', '')}\n")
    text = "".join(lines)
    return text if len(text) <= LARGEST else text[-LARGEST:].partition("\n")[2]


def _beginning(path: Path) -> bytes | None:
    """A file up to its last whole line within LARGEST bytes; None when it cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError:
        return None
    return content if len(content) <= LARGEST else content[: content.rfind(b"\n", 0, LARGEST) + 1]


def keep_answers(run: Run, *, soon: bool = False) -> None:
    """Keep what the scheduler says of the job now, by who says it, and the events until now.

    With ``soon`` a scheduler that hangs is left to itself after a while.
    """
    job, environ = run.record.job_key, run.services.environ
    if job is None:
        return

    def answers() -> None:
        with contextlib.suppress(LauncherError, OSError):
            said = run.services.scheduler.describe(job)
            run.evidence_directory.mkdir(exist_ok=True)
            shown = {name: redact(text, environ)[:LARGEST] for name, text in said.items()}
            write_json(run.evidence_directory / "scheduler.json", shown)

    if soon:
        asking = threading.Thread(target=answers, daemon=True, name="evidence")
        asking.start()
        asking.join(STOP_SECONDS)
    else:
        answers()
    with contextlib.suppress(OSError):
        _keep_events(run)


def deliver(run: Run, *, soon: bool = False) -> bool:
    """Put the tarball of logs and evidence, and a copy of the logs, where results go; whether they are all there.

    A run that has no job leaves a tarball of its evidence to a workflow, and nothing to a person, who has the record.
    ``soon`` is for when we were asked to stop: the tarball alone, and of that what can be had in time.
    """
    job, into, environ = run.record.job, run.results_directory, run.services.environ
    if job is None and run.record.fields.results != "workspace":
        return False
    logs = Path(job.log).parent if job is not None else run.evidence_directory / "no logs"
    files = [(f"{FOLDER}/{path.name}", path) for path in sorted(run.evidence_directory.glob("*"))]
    if soon:
        with contextlib.suppress(OSError):
            bundle_logs(logs, into / TARBALL, seconds=STOP_SECONDS, extra=files, environ=environ)
        return False
    job_id, began = (job.id, job.submitted or 0.0) if job is not None else ("", 0.0)
    bundle, doubts = keep_logs(logs, into, job_id, began, papers=files, environ=environ)
    for doubt in doubts:
        run.record.event("warning", doubt)
    return bundle is not None
