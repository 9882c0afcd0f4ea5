"""A driver on an emulated cluster: what people do to a sweep, and to its files, while it goes on and afterwards.

Names of issues are of other tools, whose users were hurt there (../shared/reference/sweeps.md, §2).
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.core.errors import Cancelled, LauncherError
from launcher.core.stop import Stop
from launcher.run import threads
from launcher.runner.cluster_schema import Limits
from launcher.slurm.client import JobState, Phase
from launcher.sweep import driver as driving
from launcher.sweep import slots
from launcher.sweep.ledger import Ledger
from launcher.sweep.overview import overview
from launcher.sweep.schema import Added, Policy, Requested, Started
from scripts.measure_sweeps.emulation import PACE, EmulatedKind, StandInController, drive, make_sweep, project_in
from tests.sweep.test_crash import Seen, row

HANG = 60.0


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


class Driven:
    """A sweep that is driven in a thread of this process."""

    def __init__(self, root: Path, *rows: Any, stop: Stop | None = None, **policy: Any) -> None:
        self.root, self.said = root, list[tuple[str, str]]()
        if rows:
            make_sweep(root, "s", rows, Policy(**policy))
        self.ledger = Ledger.load(root / "state" / "sweeps", "s")
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._drive, args=(stop,), daemon=True)
        self._thread.start()

    def _drive(self, stop: Stop | None) -> None:
        try:
            drive(self.root, "s", stop, say=lambda kind, text: self.said.append((kind, text)))
        except BaseException as error:  # noqa: BLE001
            self.failed.append(error)

    def ask(self, verb: str, runner: str = "") -> None:
        self.ledger.add_request(Requested(time=0.0, verb=verb, by="me", runner=runner))  # type: ignore[arg-type]

    def wait(self) -> Seen:
        self._thread.join(HANG)
        assert not self._thread.is_alive() and not self.failed, self.failed
        seen = Seen(self.root)
        seen.check()
        return seen

    @property
    def words(self) -> dict[str, int]:
        return dict(Seen(self.root).words)

    def running(self, count: int) -> None:
        until(lambda: self.words.get("running", 0) >= count)


def test_pause_holds_starts_and_the_driver_stays_until_it_may_go_on(tmp_path: Path) -> None:
    driven = Driven(tmp_path, *[row(n, 4, SECONDS="1") for n in range(1, 5)], max_jobs=1)
    driven.running(1)
    driven.ask("pause")
    until(lambda: Seen(tmp_path).state.requested == {"": "pause"})
    until(lambda: driven.words.get("ok", 0) == 1)
    time.sleep(1.5)
    assert driven.words["ok"] == 1 and len(Seen(tmp_path).jobs) == 1
    driven.ask("go-on")
    assert driven.wait().words == {"ok": 4}


def test_drain_collects_what_runs_and_says_what_is_left(tmp_path: Path) -> None:
    """dvc #8165: the exit says what is left; ray #30584: that is no failure and no success."""
    driven = Driven(tmp_path, *[row(n, 4, SECONDS="1") for n in range(1, 5)], max_jobs=1)
    driven.running(1)
    driven.ask("drain")
    seen = driven.wait()
    assert seen.words == {"ok": 1, "not started": 3}
    assert overview(seen.state, seen.records.facts, 0.0).exit_code == 7
    assert {p.reason for p in seen.points if p.state == "not started"} == {"drained"}
    drive(tmp_path, "s")
    assert Seen(tmp_path).words == {"ok": 4}


def test_stop_leaves_jobs_alive_and_a_later_driver_takes_them_over(tmp_path: Path) -> None:
    driven = Driven(tmp_path, *[row(n, 4, SECONDS="3") for n in range(1, 4)], max_jobs=2)
    driven.running(2)
    driven.ask("stop")
    seen = driven.wait()
    assert seen.words["running"] == 2 and not any("cancelled" in job for job in seen.jobs.values())
    drive(tmp_path, "s")
    again = Seen(tmp_path)
    again.check()
    assert again.words == {"ok": 3} and len(again.jobs) == 3


def test_cancel_ends_all_jobs_and_a_later_driver_measures_them(tmp_path: Path) -> None:
    driven = Driven(tmp_path, *[row(n, 4, SECONDS="600") for n in range(1, 4)], max_jobs=2)
    driven.running(2)
    driven.ask("cancel")
    seen = driven.wait()
    seen.check_over()
    assert seen.words["cancelled"] == 2
    assert all("cancelled" in job for job in seen.jobs.values())


def test_a_signal_cancels_as_for_single_runs(tmp_path: Path) -> None:
    asked = threading.Event()
    stop = Stop(asked.wait, lambda: Cancelled("stopped by SIGINT"))
    driven = Driven(tmp_path, row(1, 4, SECONDS="600"), row(2, 4, SECONDS="600"), stop=stop, max_jobs=1)
    driven.running(1)
    asked.set()
    seen = driven.wait()
    assert seen.words["cancelled"] == 1 and "planned" not in seen.words
    assert all("cancelled" in job for job in seen.jobs.values())


def test_points_are_appended_while_it_is_driven_and_others_stay_as_they_are(tmp_path: Path) -> None:
    driven = Driven(tmp_path, row(1, 4, SECONDS="1"), max_jobs=1)
    driven.running(1)
    before = (driven.ledger.directory / "sweep.json").read_bytes()
    more = make_sweep(tmp_path, "more", [row(1, 64)], Policy()).sweep.jobs
    driven.ledger.add_request(Added(time=0.0, jobs=more, selection=()))
    driven.ledger.add_request(Added(time=0.0, jobs=more, selection=()))
    seen = driven.wait()
    assert {p.concurrency: p.state for p in seen.points} == {4: "ok", 64: "ok"}
    assert (driven.ledger.directory / "sweep.json").read_bytes() == before
    assert len(seen.jobs) == 2


def test_only_missing_concurrencies_are_submitted_again(tmp_path: Path) -> None:
    """submitit #1628: one failing result loses no other."""
    make_sweep(tmp_path, "s", [row(1, 4, 16, 64, LOST="16")], Policy())
    for _ in range(2):
        drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert {p.concurrency: p.state for p in seen.points} == {4: "ok", 16: "missing", 64: "ok"}
    starts = [event.concurrencies for event in seen.events if isinstance(event, Started)]
    assert starts == [(4, 16, 64), (16,)]


def test_a_record_or_a_result_that_somebody_removed_is_missing_and_is_measured_again(tmp_path: Path) -> None:
    """snakemake #3808: what is not there is not done."""
    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4), row(3, 4)], Policy())
    drive(tmp_path, "s")
    one, two, three = (point.run for point in Seen(tmp_path).points)
    shutil.rmtree(tmp_path / "state/runs" / one)
    (tmp_path / "state/runs" / two / "results/c4.json").unlink()
    (tmp_path / "state/runs" / three / "run.json").write_text("{")
    words = {point.run: (point.state, point.reason) for point in Seen(tmp_path).points}
    assert words[one] == ("missing", f"the record of run {one} was removed")
    assert words[two][0] == "missing" and "its result was removed" in words[two][1]
    assert words[three][0] == "failed" and "cannot be read" in words[three][1]
    drive(tmp_path, "s", retry_failed=True)
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 3} and len({point.run for point in seen.points} | {one, two, three}) == 6


def test_what_changed_since_the_sweep_was_made_is_not_measured_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4)], Policy())
    monkeypatch.setattr(EmulatedKind, "fingerprint", lambda self, plan: {"script": "another"})
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert seen.words == {"not started": 2} and not seen.jobs
    assert "what is measured has changed since the sweep was made: script is another, not 1" in seen.points[0].reason
    assert overview(seen.state, seen.records.facts, 0.0).exit_code == 7


def test_a_full_disk_under_the_ledger_stops_starts_and_lets_go_of_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = Ledger.append, threading.Event()

    def failing(ledger: Ledger, event: Any) -> None:
        if full.is_set():
            raise LauncherError("the sweep's ledger cannot be written: No space left on device")
        append(ledger, event)

    monkeypatch.setattr(Ledger, "append", failing)
    driven = Driven(tmp_path, *[row(n, 4, SECONDS="1") for n in range(1, 4)], max_jobs=1)
    driven.running(1)
    full.set()
    until(lambda: any("nothing new begins" in text for _, text in driven.said))
    time.sleep(1.0)
    assert len(Seen(tmp_path).jobs) <= 2, "what was prepared already, and no start without a line"
    full.clear()
    assert driven.wait().words == {"ok": 3}


def test_records_that_cannot_be_made_leave_their_jobs_to_a_later_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.run.record import RunRecord

    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4)], Policy())
    make = RunRecord.create
    monkeypatch.setattr(driving, "ASK_AGAIN", 0.1)

    def create(runs: Path, plan: Any, **fields: Any) -> RunRecord:
        if plan.benchmark.prefill.workers == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(runs, plan, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "create", create)
        drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 1, "not started": 1}
    drive(tmp_path, "s")
    assert Seen(tmp_path).words == {"ok": 2}


def test_clock_steps_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order is by line; waits are by a clock that does not step."""
    now, steps = time.time, iter([0.0, 86400.0, -86400.0, 3600.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: now() + next(steps))
    make_sweep(tmp_path, "s", [row(n, 4, END_FIRST="PREEMPTED") for n in range(1, 4)], Policy(retries=9))
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 3}
    assert [event.time for event in seen.events] != sorted(event.time for event in seen.events)


def test_ids_are_never_given_twice_and_failures_are_said_when_they_happen(tmp_path: Path) -> None:
    """hydra #1407, #3328: a second call numbered from 0 again; hydra #2824: errors were shown at the end only."""
    said: list[str] = []
    make_sweep(tmp_path, "s", [row(1, 4, END="FAILED"), row(2, 4), row(3, 4)], Policy(max_jobs=1, order="given"))
    drive(tmp_path, "s", say=lambda kind, text: said.append(text))
    failed = next(n for n, text in enumerate(said) if ": failed: " in text)
    assert any(": ok (4)" in text for text in said[failed:])
    for _ in range(2):
        drive(tmp_path, "s", retry_failed=True)
    runs = [event.run for event in Seen(tmp_path).events if isinstance(event, Started)]
    assert len(runs) == len(set(runs)) == 5


def test_a_finished_sweep_starts_nothing(tmp_path: Path) -> None:
    make_sweep(tmp_path, "s", [row(1, 4)], Policy())
    drive(tmp_path, "s")
    before = project_in(tmp_path).controller.jobs()
    drive(tmp_path, "s")
    assert project_in(tmp_path).controller.jobs() == before


def prepared_when(monkeypatch: pytest.MonkeyPatch, conditions: dict[int, Callable[[], bool]]) -> None:
    """Rows of these numbers are prepared once that is so."""
    prepare = EmulatedKind.prepare

    def waiting(self: EmulatedKind, run: Any) -> Any:
        until(conditions.get(run.plan.benchmark.prefill.workers, lambda: True))
        return prepare(self, run)

    monkeypatch.setattr(EmulatedKind, "prepare", waiting)


def test_fail_fast_with_cancel_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hydra #2551: some want to stop at once."""
    rows = [row(1, 4, END="FAILED"), row(2, 4, SECONDS="600"), row(3, 4, SECONDS="600")]
    jobs = project_in(tmp_path).controller.jobs
    prepared_when(monkeypatch, {1: lambda: len(jobs()) == 1, 3: lambda: len(jobs()) == 2})
    driven = Driven(tmp_path, *rows, max_jobs=2, order="given", fail_fast="1", fail_fast_cancel=True)
    seen = driven.wait()
    assert [point.state for point in seen.points] == ["failed", "cancelled", "not started"]
    assert overview(seen.state, seen.records.facts, 0.0).exit_code == 6


@pytest.mark.parametrize(
    ("settings", "policy", "begins", "then"),
    [
        ({"END": "FAILED"}, {"fail_fast": "1"}, False, "not started"),
        ({"END": "FAILED"}, {"fail_fast": "1", "fail_fast_cancel": True}, False, "not started"),
        ({"END": "TIMEOUT"}, {"fail_fast": "node"}, False, "ok"),  # whose layer it is was not known before
        ({"REFUSED": "no such account"}, {"fail_fast": "1"}, False, "not started"),
        ({"END_FIRST": "NODE_FAIL"}, {"fail_fast": "1", "fail_fast_cancel": True}, False, "ok"),  # is retried
        ({"END": "FAILED"}, {"fail_fast": "2"}, True, "ok"),
        ({"END": "FAILED"}, {}, True, "ok"),
        ({"LOST": "4"}, {"fail_fast": "1"}, True, "ok"),  # COMPLETED
    ],
)
def test_while_a_failure_is_looked_into_that_may_end_the_sweep_no_further_job_begins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    policy: dict[str, Any],
    begins: bool,
    then: str,
) -> None:
    """There is room for all of them. The end of the first lasts until the driver has said whether another one may be
    submitted, and has seen a point that was added meanwhile."""
    ledger = make_sweep(tmp_path, "s", [row(1, 4, **settings), row(2, 4)], Policy(order="given", **policy))
    answers, begun = list[bool | Cancelled](), list[bool]()
    added = make_sweep(tmp_path, "added", [row(3, 4)], Policy()).sweep.jobs
    ends, end, may_submit = threading.Event(), threads._finish_or_abort, driving.Driver.may_submit

    def seen_in_ledger(is_it: Callable[[Any], bool]) -> bool:
        return any(is_it(event) for event in ledger.events())

    def slow(run: Any, how: Any) -> Any:
        if run.plan.benchmark.prefill.workers == 1 and run.id.split("-")[-2] == "1":
            ends.set()
            ledger.add_request(Added(time=0.0, jobs=added, selection=()))
            until(lambda: bool(answers) and seen_in_ledger(lambda event: isinstance(event, Added)))
            before = len(answers)
            until(lambda: len(answers) > before + 1 or seen_in_ledger(starts_added))
            begun.append(seen_in_ledger(starts_added))
        return end(run, how)

    def starts_added(event: Any) -> bool:
        return isinstance(event, Started) and event.job == added[0].key

    def noted(self: driving.Driver, run: Any, ready: bool) -> bool | Cancelled:
        answer = may_submit(self, run, ready)
        if ready and run.plan.benchmark.prefill.workers == 2:
            answers.append(answer)
        return answer

    monkeypatch.setattr(threads, "_finish_or_abort", slow)
    monkeypatch.setattr(driving.Driver, "may_submit", noted)
    prepared_when(monkeypatch, {2: ends.is_set})
    seen = Driven(tmp_path).wait()
    assert (answers[0], begun) == (begins, [begins]) and [point.state for point in seen.points[1:]] == [then, then]


def test_results_of_another_image_than_the_first_are_none_of_this_sweep(tmp_path: Path) -> None:
    import json

    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4)], Policy())
    drive(tmp_path, "s")
    for number, point in enumerate(Seen(tmp_path).points):
        path = tmp_path / "state/runs" / point.run / "summary.json"
        document = json.loads(path.read_text())
        image = {"reference": "an/image:1", "digest": f"sha256:{number}"}
        path.write_text(json.dumps({**document, "images": [image]}))
    points = Seen(tmp_path).points
    assert [point.state for point in points] == ["ok", "missing"]
    assert "image digest is sha256:1, not sha256:0" in points[1].reason
    path = tmp_path / "state/sweeps/s/sweep.json"
    document = json.loads(path.read_text())
    document["jobs"][1]["kind"] = "docker"  # its digests are of other things, and say nothing about a squash file's
    path.write_text(json.dumps(document))
    assert Seen(tmp_path).words == {"ok": 2}


def test_an_end_that_cannot_be_written_is_left_for_a_later_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sweep(tmp_path, "s", [row(1, 4), row(2, 4)], Policy(order="given"))
    real, bad = EmulatedKind.collect, [True]

    def collect(self: EmulatedKind, run: Any, patience: float) -> Any:
        if run.plan.benchmark.prefill.workers == 1 and bad:
            raise RuntimeError("a fault of ours")
        return real(self, run, patience)

    monkeypatch.setattr(EmulatedKind, "collect", collect)
    said: list[str] = []
    drive(tmp_path, "s", say=lambda kind, text: said.append(text))
    assert Seen(tmp_path).words == {"running": 1, "ok": 1} and any("is left as it is" in text for text in said)
    bad.clear()
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 2} and len(seen.jobs) == 2


def full(*given: Any, **more: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_start_that_the_disk_does_not_take_is_tried_again_and_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, tries = Ledger.append, []

    def failing(ledger: Ledger, event: Any) -> None:
        if isinstance(event, Started):
            tries.append(event)
            if len(tries) < 4:
                raise LauncherError("the sweep's ledger cannot be written: No space left on device")
        append(ledger, event)

    monkeypatch.setattr(Ledger, "append", failing)
    began = time.monotonic()
    driven = Driven(tmp_path, row(1, 4))
    assert driven.wait().words == {"ok": 1} and len(tries) == 4 and time.monotonic() - began > driving.CHECK_SECONDS
    assert sum("nothing new begins" in text for _, text in driven.said) == 1


def test_room_that_cannot_be_taken_is_said_once_and_no_job_is_ended_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.sweep.slots import Slots

    monkeypatch.setattr(slots, "ROOM_AGAIN", 0.1)
    make_sweep(tmp_path, "s", [row(1, 4, SECONDS="1"), row(2, 4)], Policy(order="given"))
    take, said, times = Slots._take, list[str](), iter(range(99))

    def failing(self: Slots, *given: Any, **more: Any) -> bool:
        return full() if 0 < next(times) < 4 else take(self, *given, **more)

    monkeypatch.setattr(Slots, "_take", failing)
    drive(tmp_path, "s", limits={"emulated": Limits(max_jobs=2)}, say=lambda kind, text: said.append(text))
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 2} and len(seen.jobs) == 2
    assert sum("room on emulated cannot be taken" in text for text in said) == 1


def test_a_slot_of_which_nothing_could_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.sweep.slots import Slots

    rooms = Slots(tmp_path, {"r": Limits(max_nodes=4)}, lambda run: False)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("launcher.sweep.slots.os.write", full)
        rooms._take("r", "one", 4, False)
    assert not list(tmp_path.rglob("*.json"))
    assert rooms.take("r", "one", 4) and not rooms.take("r", "two", 1)


def test_what_an_earlier_driver_was_asked_and_did_not_take_is_dropped_and_appended_points_are_not(
    tmp_path: Path,
) -> None:
    ledger = make_sweep(tmp_path, "s", [row(1, 4)], Policy())
    ledger.add_request(Requested(time=time.time(), verb="cancel", by="me"))
    more = make_sweep(tmp_path, "more", [row(1, 64)], Policy()).sweep.jobs
    ledger.add_request(Added(time=0.0, jobs=more, selection=()))
    said: list[str] = []
    drive(tmp_path, "s", say=lambda kind, text: said.append(text))
    assert Seen(tmp_path).words == {"ok": 2} and any("no earlier driver took" in text for text in said)
    assert not list(ledger.requests())


@pytest.mark.parametrize(
    ("content", "over"), [(None, True), ("{", False), ("", False), ('{"schema": 99}', False), ("directory", False)]
)
def test_the_job_of_a_record_that_cannot_be_read_may_live(tmp_path: Path, content: str | None, over: bool) -> None:
    from launcher.sweep.attempts import is_over

    if content is not None:
        (tmp_path / "r").mkdir()
        path = tmp_path / "r/run.json"
        path.mkdir() if content == "directory" else path.write_text(content)
    assert is_over(tmp_path, "r") is over


def test_a_job_whose_record_was_removed_is_not_begun_again_while_it_lives(tmp_path: Path) -> None:
    driven = Driven(tmp_path, row(1, 4, SECONDS="600"))
    driven.running(1)
    driven.ask("stop")
    seen = driven.wait()
    shutil.rmtree(tmp_path / "state/runs" / seen.points[0].attempts[0])
    said: list[str] = []
    drive(tmp_path, "s", say=lambda kind, text: said.append(text))
    assert len(Seen(tmp_path).jobs) == 1 and any("cannot be taken over" in text for text in said)
    (job,) = seen.controller.find(seen.points[0].attempts[0])
    seen.controller.cancel([job])
    driven = Driven(tmp_path)
    until(lambda: len(Seen(tmp_path).jobs) == 2)
    driven.ask("cancel")
    until(lambda: driven.words == {"cancelled": 1})


@pytest.mark.parametrize("how", ["cancel", "stop", "drain", "failure", "failure, cancels"])
def test_what_a_preparation_began_ends_when_its_job_is_not_to_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An import has a session of its own: nobody else ends it."""
    prepare, began = EmulatedKind.prepare, tmp_path / "pid"

    def importing(self: EmulatedKind, run: Any) -> Any:
        if "IMPORTS" in run.plan.benchmark.settings:
            assert run.services.run(["sh", "-c", f"echo $$ > {began}; exec sleep 600"], timeout=600).ok
        return prepare(self, run)

    monkeypatch.setattr(EmulatedKind, "prepare", importing)
    policy: dict[str, Any] = {"fail_fast": "1"} if "failure" in how else {}
    fails = {"END": "FAILED", "SECONDS": "1"} if policy else {"SECONDS": "2"}
    rows = [row(1, 4, IMPORTS="1"), row(2, 4, **fails)]
    driven = Driven(tmp_path, *rows, order="given", fail_fast_cancel="cancels" in how, **policy)
    until(lambda: began.exists() and began.read_text().strip() != "")
    if not policy:
        driven.running(1)
        driven.ask(how)
    seen = driven.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)
    states = {point.job: point.state for point in seen.points}
    assert len(seen.jobs) == 1 and states[seen.points[0].job] in ("not started", "preparing", "cancelled", "planned")
    if how == "stop":
        monkeypatch.setattr(EmulatedKind, "prepare", prepare)
        drive(tmp_path, "s")
        assert Seen(tmp_path).words == {"ok": 2}


def test_stop_leaves_a_run_that_waits_for_late_results_to_a_later_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = EmulatedKind.collect
    late = threading.Event()

    def waiting(self: EmulatedKind, run: Any, patience: float) -> Any:
        late.set()
        run.services.stop.sleep(600)

    with monkeypatch.context() as patch:
        patch.setattr(EmulatedKind, "collect", waiting)
        patch.setattr(threads, "CANCEL_BOUND", 0.3)
        driven = Driven(tmp_path, row(1, 4))
        until(late.is_set)
        driven.ask("stop")
        assert driven.wait().words == {"running": 1}
    assert EmulatedKind.collect is collect
    drive(tmp_path, "s")
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 1} and len(seen.jobs) == 1


def test_what_is_still_prepared_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, measured = EmulatedKind.prepare, threading.Event()

    def importing(self: EmulatedKind, run: Any) -> Any:
        if "IMPORTS" in run.plan.benchmark.settings:
            assert measured.wait(HANG), "the other job had to wait for this image"
        return prepare(self, run)

    monkeypatch.setattr(EmulatedKind, "prepare", importing)
    driven = Driven(tmp_path, row(1, 4, IMPORTS="1"), row(2, 4), order="given", max_jobs=1)
    until(lambda: driven.words.get("ok", 0) == 1)
    measured.set()
    assert driven.wait().words == {"ok": 2}


def test_runners_of_one_sweep_have_limits_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_sweep(tmp_path, name, [row(n, 4, SECONDS="1") for n in range(1, 4)], Policy(), runner=name)
    jobs = [job for name in ("one", "two") for job in Ledger.load(tmp_path / "state/sweeps", name).sweep.jobs]
    jobs = [msgspec.structs.replace(job, key=f"{job.key}-{job.runner}") for job in jobs]
    sweep = Ledger.load(tmp_path / "state/sweeps", "one").sweep
    policy = Policy(max_jobs=9)
    Ledger.create(tmp_path / "state/sweeps", msgspec.structs.replace(sweep, id="s", jobs=tuple(jobs), policy=policy))
    limits = {"one": Limits(max_jobs=1), "two": Limits(max_nodes=4)}  # each job has two nodes
    drive(tmp_path, "s", limits=limits)
    seen = Seen(tmp_path)
    assert seen.words == {"ok": 6}
    of = {event.run: event.job.rpartition("-")[2] for event in seen.events if isinstance(event, Started)}
    for runner, most in (("one", 1), ("two", 2)):
        mine = [(j, v) for j, v in seen.jobs.items() if of[v["token"]] == runner]
        begins = [(value["submitted"], 1) for _, value in mine]
        ends = [(seen.controller.state(job, now=1e12).ended or 0.0, -1) for job, _ in mine]
        assert max(accumulate(change for _, change in sorted(begins + ends))) <= most


def test_a_job_of_which_nobody_can_say_how_it_stands_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up, its end is asked for, and it is asked about again; the retry class of that would allow more."""
    poll, answers = StandInController.poll, list[bool]()

    def unknown(self: StandInController, jobs: Any) -> Any:
        found = poll(self, jobs)
        answers.append(any("cancelled" in job for job in Seen(tmp_path).jobs.values()))
        if answers.count(True) < 3:  # silent until some time after its end was asked for
            return {job: JobState(Phase.UNKNOWN, reason="controller silent: timed out") for job in found}
        return found

    monkeypatch.setattr(StandInController, "poll", unknown)
    monkeypatch.setattr(driving, "ASK_AGAIN", 0.2)
    make_sweep(tmp_path, "s", [row(1, 4, SECONDS="600")], Policy(retries=0))
    drive(tmp_path, "s", pace=replace(PACE, patience=0.4))
    seen = Seen(tmp_path)
    assert len(seen.jobs) == 1 and all("cancelled" in job for job in seen.jobs.values())
    (point,) = seen.points
    assert point.state == "failed" and point.layer == "scheduler"
