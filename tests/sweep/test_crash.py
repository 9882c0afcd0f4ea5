"""A driver killed at any moment: what lies there, what a later one finds, and what never happens.

The driver is a process of its own on an emulated cluster (scripts/measure_sweeps/emulation.py), whose jobs are files.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.core.errors import ConfigError
from launcher.sweep.attempts import Records
from launcher.sweep.ledger import Ledger, dead_creations, names
from launcher.sweep.schema import Began, Policy, Requested, Retried, Started, Voided
from launcher.sweep.state import State, point_states
from scripts.measure_sweeps.emulation import StandInController, drive, make_sweep
from tests.benchmarks import a_benchmark

ROOT = Path(__file__).resolve().parents[2]
FINAL = {"ok", "failed", "missing", "not started", "cancelled"}


def row(number: int, *concurrencies: int, **settings: str) -> Benchmark:
    said = {"CONFIG_FILE": "recipes/r.yaml", **settings}
    image = (
        f"failing/image:{number}" if {"END", "LOST"} & settings.keys() else "an/image:1"
    )  # the breaker is tested elsewhere
    return a_benchmark(prefill=Role(number, 4), concurrencies=concurrencies or (4, 16), settings=said, image=image)


def driver(root: Path, *words: str) -> subprocess.Popen[bytes]:
    """A driver of sweep ``s`` in a process of its own."""
    argv = [sys.executable, "-m", "scripts.measure_sweeps.emulation", str(root), "s", *words]
    return subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)


class Seen:
    """A sweep as it lies on the disk."""

    def __init__(self, root: Path, name: str = "s") -> None:
        self.ledger = Ledger.load(root / "state" / "sweeps", name)
        self.events = self.ledger.events()
        self.state = State(self.ledger.sweep, self.events)
        self.records = Records(root / "state" / "runs", self.state)
        self.points = point_states(self.state, self.records.facts)
        self.controller = StandInController(root / "controller")
        self.jobs = self.controller.jobs()

    @property
    def words(self) -> Counter[str]:
        return Counter(point.state for point in self.points)

    def check(self) -> None:
        """What holds at every moment."""
        tokens = Counter(job["token"] for job in self.jobs.values())
        assert all(count == 1 for count in tokens.values()), "never a second job of one run"
        started = {event.run: event for event in self.events if isinstance(event, Started)}
        assert tokens.keys() <= started.keys(), "never a start without a line"
        granted = Counter(event.job for event in self.events if isinstance(event, Retried))
        asked = Counter(e.job for e in started.values() if e.why in ("missing", "failed"))  # once a later driver
        assert max(asked.values(), default=0) <= max(0, sum(isinstance(event, Began) for event in self.events) - 1)
        submitted = Counter(started[token].job for token in tokens)
        for key, count in submitted.items():
            assert count <= 1 + granted[key] + asked[key], f"{key}: {count} jobs"
        for point in self.points:
            if point.state == "ok":
                assert (self.records._runs / point.run / "results" / f"c{point.concurrency}.json").is_file()
        budget, state = self.ledger.sweep.policy.max_gpu_hours, State(self.ledger.sweep)
        for event in self.events:
            state.apply(event)
            assert budget is None or state.reserved + state.spent <= budget + 1e-6
        assert State(self.ledger.sweep, self.ledger.events()).__dict__ == self.state.__dict__
        self.check_alive()

    def check_alive(self) -> None:
        """Jobs that lived at one time were never more than the limit."""
        times = []
        for job, value in self.jobs.items():
            end = self.controller.state(job, now=1e12).ended
            times += [(value["submitted"], 1), (end or 1e12, -1)]
        alive = most = 0
        for _, change in sorted(times):
            alive += change
            most = max(most, alive)
        assert most <= self.ledger.sweep.policy.max_jobs

    def check_over(self) -> None:
        """After a driver that came to its end: every point is in a final state, and no job lives."""
        assert set(self.words) <= FINAL, self.words
        assert all(self.controller.state(job).ended for job in self.jobs)


CRASHES = {
    # where it is killed: what the points then are, attempts that are void, jobs in all once another driver has ended
    "before:begin": ("planned", 0, 1),
    "after:begin": ("planned", 0, 1),
    "after:start": ("planned", 1, 1),
    "before:record": ("planned", 1, 1),
    "after:record": ("preparing", 0, 1),
    "before:submit": ("unknown", 0, 1),
    "after:submit": ("unknown", 0, 1),
    "before:job": ("unknown", 0, 1),
    "after:job": ("queued", 0, 1),
    "after:release": ("queued", 0, 1),
    "before:collect": ("running", 0, 1),
    "after:collect": ("running", 0, 1),
    "before:end": ("ok", 0, 1),
    "after:end": ("ok", 0, 1),
}


@pytest.mark.parametrize("point", CRASHES)
def test_killed_at_any_point_the_next_driver_measures_each_point_once(tmp_path: Path, point: str) -> None:
    word, voids, jobs = CRASHES[point]
    make_sweep(tmp_path, "s", [row(1)], Policy())
    assert driver(tmp_path, point).wait(60) == 9
    assert set(Seen(tmp_path).words) == {word}
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    seen.check()
    seen.check_over()
    assert seen.words == {"ok": 2} and len(seen.jobs) == jobs
    assert sum(isinstance(event, Voided) for event in seen.events) == voids


@pytest.mark.parametrize("point", ["after:retry", "before:retry", "before:end"])
def test_killed_beside_a_retry_exactly_one_further_attempt_is_made(tmp_path: Path, point: str) -> None:
    make_sweep(tmp_path, "s", [row(1, 4, END_FIRST="PREEMPTED")], Policy())
    assert driver(tmp_path, point).wait(60) == 9
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    seen.check()
    assert seen.words == {"ok": 1} and len(seen.jobs) == 2
    assert len(seen.points[0].attempts) == 2, "the first failure is not hidden"


def test_killed_after_a_cancel_was_written_it_is_cancelled_again(tmp_path: Path) -> None:
    ledger = make_sweep(tmp_path, "s", [row(1, 4, SECONDS="600")], Policy())
    assert driver(tmp_path, "after:release").wait(60) == 9
    for words, code in ((("before:cancel",), 9), ((), 0)):
        before, process = begun(tmp_path), driver(tmp_path, *words)
        while begun(tmp_path) == before:
            time.sleep(0.02)
        ledger.add_request(Requested(time=0.0, verb="cancel", by="me"))
        assert process.wait(60) == code
        assert any("cancelled" in job for job in Seen(tmp_path).jobs.values()) is (code == 0)
    seen = Seen(tmp_path)
    seen.check()
    seen.check_over()
    assert seen.words == {"cancelled": 1}


def test_killed_while_it_is_made_there_is_no_sweep_and_the_rest_is_removed(tmp_path: Path) -> None:
    ledger = make_sweep(tmp_path, "s", [row(1)], Policy())
    sweeps = ledger.directory.parent
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    from launcher.core.process import host_label

    half = sweeps / f".other.{host_label()}.{dead.stdout.strip()}.0123abcd.part"
    shutil.copytree(ledger.directory, half)
    assert names(sweeps) == ["s"]
    with pytest.raises(ConfigError, match="there is no sweep other"):
        Ledger.load(sweeps, "other")
    assert dead_creations(sweeps) == [half] and names(sweeps) == ["s"]


def test_of_two_drivers_one_drives(tmp_path: Path) -> None:
    make_sweep(tmp_path, "s", [row(n, 4, SECONDS="1") for n in range(1, 4)], Policy(max_jobs=1))
    both = [driver(tmp_path), driver(tmp_path)]
    assert [one.wait(60) for one in both] == [0, 0]
    seen = Seen(tmp_path)
    seen.check()
    assert seen.words == {"ok": 3} and len(seen.jobs) == 3


def test_two_sweeps_of_one_point_measure_it_once_each_and_share_the_room_of_a_runner(tmp_path: Path) -> None:
    from launcher.runner.cluster_schema import Limits

    rows = [row(n, 4, SECONDS="0.3") for n in range(1, 4)]
    for name in ("s", "t"):
        make_sweep(tmp_path, name, rows, Policy(max_jobs=3))
    import threading

    threads = [
        threading.Thread(target=drive, args=(tmp_path, name), kwargs={"limits": {"emulated": Limits(max_jobs=2)}})
        for name in "st"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    one, other = Seen(tmp_path, "s"), Seen(tmp_path, "t")
    assert one.words == other.words == {"ok": 3} and len(one.jobs) == 6
    times = sorted(
        change
        for job, value in one.jobs.items()
        for change in ((value["submitted"], 1), (one.controller.state(job, now=1e12).ended or 0.0, -1))
    )
    alive = most = 0
    for _, change in times:
        alive += change
        most = max(most, alive)
    assert most <= 2, "over both drivers"
    assert not list((tmp_path / "state/sweeps/.slots").rglob("*.json"))


def begun(root: Path) -> int:
    """How many drivers have begun."""
    path = root / "state/sweeps/s/events.jsonl"
    return path.read_bytes().count(b'"event":"begin"') if path.exists() else 0


KILLS = int(os.environ.get("SWEEP_KILLS", "20"))


def test_killed_at_random_the_invariants_hold(tmp_path: Path) -> None:
    """20 kills here, 200 by hand (SWEEP_KILLS=200): nothing is submitted twice, nothing is lost, limits hold."""
    chance = random.Random(14)
    kinds: list[dict[str, str]] = [{}, {}, {}, {"END_FIRST": "PREEMPTED"}, {"LOST": "16"}, {"END": "FAILED"}]
    rows = [row(n, SECONDS=f"{chance.random() * 0.2:.2f}", **kinds[n % len(kinds)]) for n in range(1, 5 * KILLS + 1)]
    make_sweep(tmp_path, "s", rows, Policy(max_jobs=6, retries=KILLS, max_gpu_hours=60.0 * KILLS))
    for _ in range(KILLS):
        before, process = begun(tmp_path), driver(tmp_path)
        while process.poll() is None and begun(tmp_path) == before:
            time.sleep(0.02)
        time.sleep(chance.random() * 1.2)
        process.kill()
        process.wait()
        Seen(tmp_path).check()
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    seen.check()
    seen.check_over()
    wanted: Counter[str] = Counter()
    for n in range(1, len(rows) + 1):
        kind = kinds[n % len(kinds)]
        wanted.update({"failed": 2} if "END" in kind else {"ok": 1, "missing": 1} if "LOST" in kind else {"ok": 2})
    assert seen.words == wanted
