"""What a person or a CI log sees of runs while they go on: plain lines, prefixed when there are several."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from launcher.core.github import GitHub
from launcher.core.redact import redact
from launcher.run.finish import Outcome
from launcher.run.record import Event

Writer = Callable[[str], None]


class Console:
    """Writes events and job logs to a stream. Job logs go between ``::stop-commands::`` marks where GitHub reads.

    ``labels`` names runs for people; with a single run no label is shown.
    """

    def __init__(
        self,
        stream: TextIO,
        environ: Mapping[str, str],
        *,
        labels: Mapping[str, str],
        quiet: bool = False,
        github: GitHub | None = None,
    ) -> None:
        self._stream = stream
        self._environ = environ
        self._quiet = quiet
        self._github = github
        self._labels = labels
        self._colour = stream.isatty() and not environ.get("NO_COLOR")
        self._began: float | None = None
        self._gone = False

    def event(self, event: Event) -> None:
        """Show an event as a line: seconds since the first one, run, text."""
        self._began = event.time if self._began is None else self._began
        if event.kind == "verdict" or (event.kind == "stage" and event.data.get("state") == "done"):
            return
        run = self._label(event.run, "  ")
        mark = {"error": "error: ", "warning": "warning: "}.get(event.kind, "")
        self._line(f"{event.time - self._began:7.1f}s  {run}{mark}{redact(event.text, self._environ)}", event.kind)

    def log(self, run: str, lines: Sequence[str]) -> None:
        """Show new lines of a job's log."""
        if self._quiet or not lines:
            return
        prefix = self._label(run, "") + "  | "
        with self._raw() as write:
            for line in lines:
                write(redact(f"{prefix}{line}", self._environ))

    def outcomes(self, runs: Path, outcomes: Sequence[Outcome]) -> None:
        """Show how runs ended: the table of results, where they are, and what to try next."""
        from launcher.result.summary import write_table

        paths = [runs / o.run / "summary.json" for o in outcomes]
        summaries = [json.loads(p.read_text()) for p in paths if p.is_file()]
        with self._unheard():
            self._stream.write("\n")
            write_table(summaries, self._stream, self._environ)
        for outcome in outcomes:
            if outcome.error is not None:
                label = self._label(outcome.run, ": ").lstrip()
                self._line(f"{label}{redact(str(outcome.error), self._environ)}", "error")
                self._line(f"{label}verdict: {outcome.verdict}", "end")
        good = [o for o in outcomes if o.error is None]
        self._say(f"\n{len(good)} of {len(outcomes)} runs succeeded. Records and results: {runs}\n")
        if outcomes:
            chosen = next((o for o in outcomes if o.error is not None), outcomes[0])
            self._say(f"Next: launcher status {chosen.run}   (or: launcher logs {chosen.run})\n")

    def _label(self, run: str, after: str) -> str:
        if len(self._labels) < 2:
            return ""
        width = max(len(label) for label in self._labels.values())
        return f"{self._labels.get(run, run):{width}}{after}"

    @contextlib.contextmanager
    def _raw(self) -> Iterator[Writer]:
        if self._github is not None:
            with self._unheard(), self._github.job_log() as write:
                yield write
        else:
            yield self._plain

    def _plain(self, line: str) -> None:
        self._say(f"\033[2m{line}\033[0m\n" if self._colour else f"{line}\n")

    def _line(self, text: str, kind: str) -> None:
        colour = {"error": "31", "warning": "33", "job": "36", "end": "1"}.get(kind) if self._colour else None
        self._say(f"\033[{colour}m{text}\033[0m\n" if colour else f"{text}\n")

    def _say(self, text: str) -> None:
        with self._unheard():
            if not self._gone:
                self._stream.write(text)
                self._stream.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        """A terminal that was closed, or a reader that has gone, must not end a run: its job has to be watched, or
        cancelled, and what is said is in its record. A full disk behind standard output is the same to us."""
        try:
            yield
        except OSError:
            self._gone = True
