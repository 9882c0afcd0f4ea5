"""A console whose clock the caller moves, and what it printed at which time."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launcher.cli.console import Console, ConsoleInputs, OutputOptions
from launcher.core.process import RunningProgram
from launcher.run.record import Event


class AsTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Scene:
    """A console, its clock, and what it printed at which time."""

    stream: io.StringIO
    options: OutputOptions = field(default_factory=OutputOptions)
    programs: list[RunningProgram] = field(default_factory=list)
    now: float = 0.0
    written: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sys.stdout = self.stream
        clock = lambda: self.now  # noqa: E731
        inputs = ConsoleInputs(clock, clock, lambda: self.programs, lambda run: ", 2 of 5 (conc 16)")
        self.console = Console({"r": "1P1D"}, None, options=self.options, inputs=inputs)

    def until(self, end: float) -> None:
        """Let time pass, as the console's own thread would see it."""
        while self.now < end:
            self.now += 0.5
            self.console.refresh()
            self.note()

    def event(self, kind: str, text: str, **data: object) -> None:
        self.console.event(Event(self.now, "r", kind, text, data))
        self.note()

    def note(self) -> None:
        if text := self.stream.getvalue():
            self.written.append((self.now, text))
            self.stream.seek(0)
            self.stream.truncate()

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.written)

    def longest_silence(self) -> float:
        times = [0.0, *(at for at, _ in self.written), self.now]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


def longest_silence(events: Path) -> float:
    """The longest time in which a terminal's line did not change, of a run whose recorded events happen again."""
    scene = Scene(AsTerminal())
    began = None
    for line in events.read_text().splitlines():
        event = json.loads(line)
        time, kind, text = (event.pop(name) for name in ("time", "kind", "text"))
        began = time if began is None else began
        scene.until(time - began)
        scene.event(kind, text, **event)
        if kind == "end":
            break
    return scene.longest_silence()


@pytest.fixture
def never_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What every run of a test says, it says within 2 s, whatever fault it met."""
    yield
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    for events in tmp_path.rglob("runs/*/events.jsonl"):
        assert longest_silence(events) <= 2.0, events
