"""SharedPoller: who asks, who reads the others' answer, and that no answer is believed that does not count."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.core.process import ProcessIdentity
from launcher.slurm import shared
from launcher.slurm.client import JobKey, JobState, Phase, SchedulerUnreachable, unknown_state
from launcher.slurm.shared import SharedPoller
from tests.slurm.fakes import Clock

ROOT = Path(__file__).resolve().parents[2]

RUNNING = JobState(Phase.ALIVE, "RUNNING", nodes="node01", submitted=5.0, started=6.0, source="squeue")
DONE = JobState(Phase.TERMINAL, "COMPLETED", (0, 0), submitted=5.0, started=6.0, ended=9.0, source="sacct")


def key(number: int, token: str = "t") -> JobKey:
    return JobKey(str(number), 5.0, token)


class Slurm:
    """A scheduler that keeps what it was asked."""

    name = "slurm"

    def __init__(self) -> None:
        self.states: dict[JobKey, JobState] = {}
        self.asked: list[set[JobKey]] = []
        self.before: Callable[[], None] = lambda: None
        self.refuses = False

    def poll(self, jobs: Sequence[JobKey]) -> dict[JobKey, JobState]:
        self.asked.append(set(jobs))
        self.before()
        return {job: self.states.get(job, RUNNING) for job in jobs}

    def find(self, token: str) -> list[JobKey]:
        return [key(7, token)]

    def cancel(self, jobs: Sequence[JobKey]) -> None:
        if self.refuses:
            raise SchedulerUnreachable("no")

    def release(self, job: JobKey) -> None:
        raise NotImplementedError

    def describe(self, job: JobKey) -> dict[str, str]:
        return {"slurm": str(job)}


class Machine:
    """Launchers on one machine, in one process, with one clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.slurm = Slurm()

    def launcher(self, **options: object) -> SharedPoller:
        return SharedPoller(self.slurm, self.directory, clock=self.clock, **options)  # type: ignore[arg-type]

    def news(self) -> list[set[JobKey]]:
        """What Slurm was asked since the last call."""
        asked, self.slurm.asked = self.slurm.asked, []
        return asked


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "poller")


def test_one_question_serves_all(machine: Machine) -> None:
    launchers = [machine.launcher() for _ in range(20)]
    for n, launcher in enumerate(launchers):
        launcher.poll([key(n)])
        machine.clock.wait(0.1)
    machine.news()
    for _ in range(10):
        machine.clock.wait(10)
        for n, launcher in enumerate(launchers):
            assert launcher.poll([key(n)]) == {key(n): RUNNING}
        assert machine.news() == [{key(n) for n in range(20)}]


def test_a_launcher_alone_asks_each_time(machine: Machine) -> None:
    launcher = machine.launcher()
    for _ in range(5):
        launcher.poll([key(1), key(2)])
        machine.clock.wait(0.5)
    assert machine.news() == [{key(1), key(2)}] * 5


def test_nobody_is_told_the_same_twice(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    for launcher in (one, two):
        launcher.poll([key(1)])
        machine.clock.wait(1)
    machine.news()
    one.poll([key(1)])
    assert machine.news() == [], "the other's answer"
    machine.clock.wait(1)
    one.poll([key(1)])
    assert len(machine.news()) == 1, "it was told that one already"


def test_an_answer_from_before_the_first_question_does_not_count(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    machine.slurm.states[key(1)] = DONE
    assert one.poll([key(1)]) == {key(1): DONE}
    machine.clock.wait(1)
    machine.slurm.states[key(1)] = RUNNING
    assert two.poll([key(1)]) == {key(1): RUNNING}
    assert len(machine.news()) == 2


def test_an_answer_about_a_job_with_the_same_id_does_not_count(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    machine.slurm.states[key(1, "theirs")] = DONE
    two.poll([key(1)])
    machine.clock.wait(1)
    one.poll([key(1, "theirs"), key(2)])
    answer = json.loads((two.directory / "answer.json").read_text())
    assert {job["token"] for job, _ in answer["states"]} == {"t", "theirs"}
    machine.clock.wait(1)
    assert two.poll([key(1)]) == {key(1): RUNNING}


def test_an_old_answer_does_not_count(machine: Machine) -> None:
    one, two = machine.launcher(max_age=15.0), machine.launcher(max_age=15.0)
    for launcher in (one, two):
        launcher.poll([key(1)])
        machine.clock.wait(1)
    machine.news()
    machine.clock.wait(14.5)
    one.poll([key(1)])
    assert len(machine.news()) == 1


def test_an_answer_of_the_future_does_not_count(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    for launcher in (one, two):
        launcher.poll([key(1)])
        machine.clock.wait(1)
    machine.news()
    machine.clock.now -= 500
    one.poll([key(1)])
    assert len(machine.news()) == 1


def test_what_nobody_knew_is_not_shared(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    machine.slurm.states[key(1)] = unknown_state("squeue: timed out")
    for launcher in (one, two):
        launcher.poll([key(1)])
        machine.clock.wait(1)
    machine.news()
    assert one.poll([key(1)])[key(1)].phase is Phase.UNKNOWN
    assert len(machine.news()) == 1


def test_ended_jobs_are_asked_for_no_more(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    one.poll([key(1), key(2)])
    machine.slurm.states[key(1)] = DONE
    one.poll([key(1), key(2)])
    machine.news()
    two.poll([key(3)])
    assert machine.news() == [{key(2), key(3)}]
    machine.slurm.states[key(2)] = DONE
    machine.clock.wait(1)
    one.poll([key(2)])
    machine.news()
    two.poll([key(3)])
    two.poll([key(3)])
    assert machine.news()[-1] == {key(3)}
    assert len(list((one.directory / "wants").iterdir())) == 1


def test_after_a_cancel_it_asks_at_once_and_for_itself(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    for launcher, job in ((one, 1), (two, 2), (one, 1)):
        launcher.poll([key(job)])
        machine.clock.wait(1)
    machine.slurm.refuses = True
    with pytest.raises(SchedulerUnreachable):
        one.cancel([key(1)])
    machine.news()
    two.poll([key(2)])
    for _ in range(3):
        one.poll([key(1)])
    assert machine.news()[-3:] == [{key(1)}] * 3
    machine.clock.wait(shared.ALONE_AFTER_CANCEL + 1)
    one.poll([key(1)])
    assert machine.news() == [{key(1), key(2)}]


def test_all_else_goes_straight_to_slurm(machine: Machine) -> None:
    launcher = machine.launcher()
    assert launcher.name == "slurm"
    assert launcher.find("x") == [key(7, "x")]
    assert launcher.describe(key(1)) == {"slurm": "job 1"}
    assert launcher.poll([]) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"asked": 1, "states": [], "schema": 2}', b'{"asked": 1, "states": [[{"id": "x"}]]}'],
)
def test_what_cannot_be_read_is_asked(machine: Machine, content: bytes) -> None:
    one, two = machine.launcher(), machine.launcher()
    two.poll([key(2)])
    (one.directory / "answer.json").write_bytes(content)
    (one.directory / "wants" / "0-0.json").write_bytes(content)
    machine.clock.wait(1)
    assert one.poll([key(1)]) == {key(1): RUNNING}
    assert machine.news()[-1] == {key(1), key(2)}
    machine.clock.wait(1)
    two.poll([key(2)])
    assert machine.news() == [], "the file is a good one again"


def test_where_nothing_can_be_written_everybody_asks(machine: Machine) -> None:
    machine.directory.write_text("a file in the place of the directory")
    one, two = machine.launcher(), machine.launcher()
    for launcher in (one, two, one):
        assert launcher.poll([key(1)]) == {key(1): RUNNING}
    assert machine.news() == [{key(1)}] * 3


def test_a_directory_of_another_user_is_not_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = machine.launcher()
    launcher.directory.mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert launcher.poll([key(1)]) == {key(1): RUNNING}
    assert not (launcher.directory / "answer.json").exists()


def test_clusters_do_not_mix(machine: Machine) -> None:
    one, two = machine.launcher(cluster="/etc/a.conf"), machine.launcher(cluster="/etc/b.conf")
    for launcher in (one, two, one, two):
        launcher.poll([key(1)])
        machine.clock.wait(1)
    assert len(machine.news()) == 4


def test_an_older_answer_does_not_replace_a_newer_one(machine: Machine) -> None:
    launcher = machine.launcher()
    launcher.poll([key(1)])
    newer = shared._Answer(machine.clock.now + 2, [(key(1), RUNNING)])

    def meanwhile() -> None:
        machine.clock.wait(5)
        shared._write(launcher.directory / "answer.json", newer)

    machine.clock.wait(1)
    machine.slurm.before = meanwhile
    launcher.poll([key(1)])
    assert shared._read(launcher.directory / "answer.json", shared._Answer) == newer


def test_a_wish_that_nobody_renews_is_forgotten(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    two.poll([key(2)])
    machine.clock.wait(shared.REQUEST_LIFETIME + 1)
    machine.news()
    one.poll([key(1)])
    assert machine.news() == [{key(1)}]
    assert len(list((one.directory / "wants").iterdir())) == 1


def test_a_launcher_in_another_pid_namespace_is_asked_for_too(machine: Machine) -> None:
    """Whether it lives cannot be told from here; its wish counts until it is too old."""
    one, two, dead = machine.launcher(), machine.launcher(), machine.launcher()
    for launcher, number in ((two, 2), (dead, 3)):
        launcher.poll([key(number)])
    for launcher, process in (
        (two, replace(ProcessIdentity.current(), pid_namespace="pid:[1]")),
        (dead, replace(ProcessIdentity.current(), started="1")),
    ):
        wants = shared._read(launcher._request_file, shared._Request)
        assert wants is not None
        shared._write(launcher._request_file, replace(wants, process=process))
    machine.news()
    one.poll([key(1)])
    assert machine.news() == [{key(1), key(2)}]


def test_who_waits_too_long_asks_alone(machine: Machine) -> None:
    slow, quick = machine.launcher(), machine.launcher(patience=0.3)
    release, inside = threading.Event(), threading.Event()

    def hang() -> None:
        if not inside.is_set():
            inside.set()
            release.wait(120)

    machine.slurm.before = hang
    thread = threading.Thread(target=slow.poll, args=([key(1)],))
    thread.start()
    assert inside.wait(60)
    assert quick.poll([key(2)]) == {key(2): RUNNING}
    assert thread.is_alive(), "nobody waited for the first to be answered"
    assert machine.slurm.asked == [{key(1)}, {key(2)}]
    assert not (quick.directory / "answer.json").exists(), "an answer for one launcher is not published"
    release.set()
    thread.join()


def test_who_waited_takes_the_answer_that_came_meanwhile(machine: Machine) -> None:
    one, two = machine.launcher(), machine.launcher()
    for launcher, job in ((one, 1), (two, 2), (one, 1)):
        launcher.poll([key(job)])
        machine.clock.wait(1)
    machine.news()
    inside, release = threading.Event(), threading.Event()

    def slowly() -> None:
        inside.set()
        release.wait(120)

    machine.slurm.before = slowly
    machine.clock.wait(shared.MAX_AGE)
    threads = [threading.Thread(target=one.poll, args=([key(1)],)), threading.Thread(target=two.poll, args=([key(2)],))]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    while threads[1].is_alive() and not (two.directory / "lease").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert threads[1].is_alive()
    release.set()
    for thread in threads:
        thread.join()
    assert machine.news() == [{key(1), key(2)}]


# With real processes: each is a launcher whose Slurm is a clock. Job n ends n/10 s after the start.

LAUNCHER = """
import os, sys, time, random
from pathlib import Path
from launcher.slurm import shared
from launcher.slurm.client import JobKey, JobState
from launcher.slurm.poller import JobPoller, Pace
from launcher.slurm.shared import SharedPoller
from launcher.slurm.client import Phase
from tests.slurm.following import rounds

shared.LEASE = 60.0  # waiting for a lease of the dead to expire would be seen

directory, start, first, count, pause, hang = sys.argv[1:7]
directory, start, pause = Path(directory), float(start), float(pause)

class Slurm:
    name = "slurm"
    find = release = describe = None
    def poll(self, jobs):
        with open(directory / "asked", "a") as file:
            file.write(f"{os.getpid()} {len(jobs)}\\n")
        now = time.monotonic()
        if hang != "0":
            print("asking", flush=True)
            time.sleep(float(hang))
        time.sleep(0.02)
        return {job: self.state(job, now) for job in jobs}
    def state(self, job, now):
        if now - start < int(job.id) / 10:
            return JobState(Phase.ALIVE, "RUNNING", submitted=1.0)
        return JobState(Phase.TERMINAL, "COMPLETED", (0, 0), submitted=1.0)

jobs = [JobKey(str(n), 1.0, "t") for n in range(int(first), int(first) + int(count))]
late = []
watching = time.monotonic()
scheduler = SharedPoller(Slurm(), directory / "poller", patience=60.0)
poller = JobPoller(scheduler, pace=Pace(first=pause, running=pause))
for job in jobs:
    poller.watch(job)
for answer in rounds(poller):
    for change in answer.changes:
        if change.ended:
            assert change.state.succeeded, change
            late.append(time.monotonic() - max(start + int(change.job.id) / 10, watching))
assert len(late) == len(jobs), late
print(min(late), max(late), flush=True)
"""


def start(
    directory: Path, began: float, first: int, *, count: int = 5, pause: float = 0.3, hang: float = 0
) -> Launcher:
    arguments = [str(directory), str(began), str(first), str(count), str(pause), str(hang)]
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)


Launcher = subprocess.Popen[str]

HELD_UP = 30.0
"""Seconds after which an end that is known so late was held up: by far more than two pauses on a busy machine, and by
less than a lease that expires (`LEASE` in the script above)."""


def delays(launcher: Launcher) -> tuple[float, float]:
    out, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0
    first, last = out.split()[-2:]
    return float(first), float(last)


def questions(directory: Path) -> int:
    return len((directory / "asked").read_text().splitlines())


def test_four_launchers_ask_as_often_as_one(tmp_path: Path) -> None:
    counts = {}
    for number in (1, 4):
        place = tmp_path / str(number)
        place.mkdir()
        began = time.monotonic()
        launchers = [start(place, began, 6 + 6 * n, count=6) for n in range(4 - number, 4)]
        for launcher in launchers:
            earliest, latest = delays(launcher)
            assert earliest >= 0, "no end is told before it is there"
            assert latest < HELD_UP
        counts[number] = questions(place)
    assert counts[4] <= counts[1] * 1.5 + 4, counts


def test_killed_launchers_hold_up_nobody(tmp_path: Path) -> None:
    began = time.monotonic()
    launchers = [start(tmp_path, began, 20 + n) for n in range(6)]
    victims = random.sample(launchers, 3)
    for victim in victims:
        time.sleep(random.uniform(0.1, 0.6))
        victim.kill()
    for launcher in launchers:
        if launcher in victims:
            launcher.communicate(timeout=60)
            continue
        earliest, latest = delays(launcher)
        assert earliest >= 0 and latest < HELD_UP


def asking(directory: Path) -> Launcher:
    """A launcher that holds the lease, and will for a minute."""
    launcher = start(directory, time.monotonic(), 1, hang=60)
    assert launcher.stdout is not None and launcher.stdout.readline() == "asking\n"
    return launcher


def test_a_lease_of_the_dead_is_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LEASE", 60.0)
    dead = asking(tmp_path)
    dead.kill()
    dead.communicate()
    slurm = Slurm()
    began = time.monotonic()
    SharedPoller(slurm, tmp_path / "poller", patience=60.0).poll([key(50)])
    assert time.monotonic() - began < HELD_UP
    assert slurm.asked == [{key(50)}], "nor are its wishes"


def test_a_lease_of_the_stopped_costs_one_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LEASE", 3.0)
    stopped = asking(tmp_path)
    try:
        stopped.send_signal(signal.SIGSTOP)
        poller = SharedPoller(Slurm(), tmp_path / "poller", patience=60.0)
        waits = []
        for _ in range(3):
            began = time.monotonic()
            poller.poll([key(50)])
            waits.append(time.monotonic() - began)
        assert 3.0 <= waits[0] < HELD_UP
        assert max(waits[1:]) < 3.0
    finally:
        stopped.kill()
        stopped.communicate()
