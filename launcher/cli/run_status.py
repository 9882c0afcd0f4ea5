"""The status of runs as text, made of their events: what each waits for, since when, and for how long at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core.process import RunningProgram

if TYPE_CHECKING:
    from launcher.run.record import Event

_STAGE_TEXTS = {
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
class RunStatus:
    """What a run does, since when (seconds since the epoch), and for how many seconds at most."""

    label: str
    activity: str = "waiting to begin"
    since: float = 0.0
    at_most: float | None = None
    step: str = "preparing"
    job: str = ""
    ended: bool = False

    def update(self, event: Event) -> None:
        """Take an event of the run into account."""
        data, text = event.data, event.text.partition("\n")[0]
        if event.kind == "stage" and data.get("state") == "running":
            name = str(data.get("stage"))
            self._begin(event, _STAGE_TEXTS.get(name, name), "collecting" if name == "collect" else "preparing")
        elif event.kind == "job":
            self.job = f"job {data['job']}" if data.get("job") else self.job
            state = str(data.get("state") or "")
            activity = text if not self.job or self.job in text else f"{self.job}: {text}"
            self._begin(event, activity, state.lower() or "submitted")
        elif event.kind in ("note", "wait") and self.step in ("preparing", "collecting"):
            self._begin(event, text, self.step)
        elif event.kind == "end":
            self._begin(event, text, "ended")
            self.ended = True

    def _begin(self, event: Event, activity: str, step: str) -> None:
        self.activity, self.since, self.step = activity, event.time, step
        self.at_most = event.data.get("at_most")

    def line(self, now: float, progress: str, width: int) -> str:
        """The run in one line of a terminal of ``width`` columns."""
        tail = f"  {age(now - self.since)}{f' of {age(self.at_most)}' if self.at_most else ''}"
        return truncate(f"{self.label}  {self.activity}{progress}".lstrip(), width - len(tail)) + tail

    def sentence(self, now: float, progress: str = "") -> str:
        """What the run waits for, since when, and for how long at most."""
        bound = f" of at most {age(self.at_most)}" if self.at_most else ""
        return f"{self.activity}{progress}, for {age(now - self.since)}{bound}"


def truncate(text: str, width: int) -> str:
    """The text, or its beginning and ``…``, in at most ``width`` columns."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def describe_programs(programs: Sequence[RunningProgram], now: float, size_of: Callable[[str], int]) -> str:
    """The two programs that have run longest, at least a second: for how long, for how long at most, and how fast the
    file of ``-o FILE`` grows. ``now`` is of the monotonic clock."""
    texts = []
    for program in programs[:2]:
        seconds = now - program.since
        if seconds < 1.0:
            continue
        text = f"{program.name} for {age(seconds)} of at most {age(program.at_most)}"
        size = size_of(program.argv[program.argv.index("-o") + 1]) if "-o" in program.argv[:-1] else 0
        texts.append(text + (f", {size / 1e6:.0f} MB, {size / 1e6 / seconds:.1f} MB/s" if size else ""))
    return "; ".join(texts)


def count_steps(statuses: Sequence[RunStatus], now: float) -> str:
    """Many runs in one line: how many do what, and for how long the oldest of them has."""
    steps: dict[str, list[float]] = {}
    for status in statuses:
        steps.setdefault(status.step, []).append(status.since)
    return ", ".join(f"{len(since)} {step} (for {age(now - min(since))})" for step, since in steps.items())
