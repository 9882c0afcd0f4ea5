"""How runs stand, by their events: pure text for a line of a terminal, and for whoever asks what is waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core.process import RunningProgram

if TYPE_CHECKING:
    from launcher.run.record import Event

_STEPS = {
    "images": "looking for the images",
    "model": "looking at the checkpoint",
    "workspace": "preparing the checkout",
    "submit": "submitting the job",
    "collect": "collecting results",
}


def age(seconds: float) -> str:
    """``12 s``, ``3:05``, ``1:02:03``."""
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@dataclass
class Standing:
    """How one run stands: what it is at, since when (seconds since the epoch), for how many seconds at most."""

    label: str
    at: str = "waiting to begin"
    since: float = 0.0
    at_most: float | None = None
    step: str = "preparing"
    job: str = ""
    ended: bool = False

    def take(self, event: Event) -> None:
        """Note an event of the run."""
        data, text = event.data, event.text.partition("\n")[0]
        if event.kind == "stage" and data.get("state") == "running":
            name = str(data.get("stage"))
            self._begin(event, _STEPS.get(name, name), "collecting" if name == "collect" else "preparing")
        elif event.kind == "job":
            self.job = f"job {data['job']}" if data.get("job") else self.job
            word = str(data.get("state") or "")
            named = text if self.job and self.job in text else f"{self.job}: {text}" if self.job else text
            self._begin(event, named, word.lower() or "submitted")
        elif event.kind in ("note", "wait") and self.step in ("preparing", "collecting"):
            self._begin(event, text, self.step)
        elif event.kind == "end":
            self._begin(event, text, "ended")
            self.ended = True

    def _begin(self, event: Event, at: str, step: str) -> None:
        self.at, self.since, self.step = at, event.time, step
        self.at_most = event.data.get("at_most")

    def line(self, now: float, more: str, width: int) -> str:
        """The run in one line of a terminal: what it is at, since when, for how long at most."""
        tail = f"  {age(now - self.since)}{f' of {age(self.at_most)}' if self.at_most else ''}"
        return cut(f"{self.label}  {self.at}{more}".lstrip(), width - len(tail)) + tail

    def waiting(self, now: float, more: str = "") -> str:
        """What is waited for, since when, and for how long at most."""
        bound = f" of at most {age(self.at_most)}" if self.at_most else ""
        return f"{self.at}{more}, for {age(now - self.since)}{bound}"


def cut(text: str, width: int) -> str:
    """The text, or its beginning and ``…``, in so many columns."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def programs_in_words(programs: Sequence[RunningProgram], now: float, size_of: Callable[[str], int]) -> str:
    """The two programs that are waited for longest, those of a second or more: since when, for how long at most, and
    how fast the file grows that one writes (``-o FILE``). ``now`` is of the monotonic clock."""
    shown = []
    for program in programs[:2]:
        seconds = now - program.since
        if seconds < 1.0:
            continue
        text = f"{program.name} for {age(seconds)} of at most {age(program.at_most)}"
        size = size_of(program.argv[program.argv.index("-o") + 1]) if "-o" in program.argv[:-1] else 0
        shown.append(text + (f", {size / 1e6:.0f} MB, {size / 1e6 / seconds:.1f} MB/s" if size else ""))
    return "; ".join(shown)


def together(standings: Sequence[Standing], now: float) -> str:
    """Many runs in one line: how many are at what, and how long the oldest of them."""
    steps: dict[str, list[float]] = {}
    for standing in standings:
        steps.setdefault(standing.step, []).append(standing.since)
    return ", ".join(f"{len(since)} {step} (for {age(now - min(since))})" for step, since in steps.items())
