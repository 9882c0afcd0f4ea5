"""Driving a sweep in this process, or in one of its own that needs no terminal."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launcher.cli import detached
from launcher.cli.command import log_to_stderr
from launcher.cli.console import Console, ConsoleInputs
from launcher.cli.output import BackgroundOutput, background_stdout
from launcher.cli.running import job_progress, output_options
from launcher.cli.streaming import SweepEnded
from launcher.cli.sweep_status import SweepWatcher, requester
from launcher.core.errors import ConfigError, as_error
from launcher.core.lease import LockOwner
from launcher.core.lines import count_of
from launcher.core.process import run as run_program
from launcher.core.stop import Stop, stop_on_signals
from launcher.core.terminal import one_line
from launcher.project import Project
from launcher.run.loop import run_feed
from launcher.run.naming import sweep_named
from launcher.run.record import Event as RunEvent
from launcher.run.record import RunRecord
from launcher.services import pace_of
from launcher.slurm.client import may_have_job
from launcher.slurm.poller import Pace
from launcher.sweep.driver import Driver, DriverSetting
from launcher.sweep.ledger import EventReader, Ledger
from launcher.sweep.making import RunMaker
from launcher.sweep.overview import Overview, header_lines, overview
from launcher.sweep.schema import Began, Ended, Job, Policy

if TYPE_CHECKING:
    from launcher.cli.sweep_view import LiveView

SHOWN = 200
"""Runs whose results are shown as a table at the end; those of larger sweeps `launcher results` shows."""

NOTICE_SECONDS = 60.0
"""How long a program of --notify may take."""

NOTICES_AT_ONCE = 4

PACE = Pace(refill=27.5, burst=10, release_at_once=True, tick=5.0, rest=0.25)
"""How Slurm is asked about a sweep's jobs: at most 140 questions an hour, of up to two calls each, however many jobs
begin and end."""


def ledger_named(project: Project, name: str) -> Ledger:
    """The ledger of a sweep, by the beginning of its id. Raises ConfigError."""
    return Ledger.load(project.sweeps, sweep_named(project.sweeps, name))


def detach(project: Project, ledger: Ledger, arguments: argparse.Namespace) -> int:
    """Have a process of its own drive the sweep, whose output is in the sweep's directory."""
    log = ledger.directory / "driver.log"
    handed = ("--retry-failed", "--anyway", "--take-over", "--detach-on-interrupt")
    more = [flag for flag in handed if getattr(arguments, flag[2:].replace("-", "_"), False)]
    argv = ["sweep", "resume", ledger.id, "--yes", "--no-live", *more]
    driver, events = detached.start_driver(ledger.id, argv, log, project.state, arguments), EventReader(ledger)

    def begun(pid: int) -> bool:
        return any(isinstance(e, Began) and e.driver.startswith(f"pid {pid} ") for e in events.new())

    patience = detached.BEGINS + (ledger.take_over_patience if "--take-over" in more else 0.0)
    driver.wait_until_started(f"sweep {ledger.id}", begun, patience)
    detached.print_started(f"sweep {ledger.id}", driver.child.pid, log, f"sweep status {ledger.id} --watch", arguments)
    return 0


def drive(project: Project, ledger: Ledger, arguments: argparse.Namespace, policy: Policy) -> int:
    """Drive a sweep in this process until nothing more of it can be done here; the exit code."""
    patience = ledger.take_over_patience if getattr(arguments, "take_over", False) else 0.0
    lock = ledger.lock(wait=patience)
    with lock as held, stop_on_signals() as stop:
        if not held.acquired:
            raise ConfigError(
                f"another launcher drives this sweep: {held.owner}",
                where=f"sweep {ledger.id}",
                hint=f"launcher sweep status {ledger.id}; --take-over waits for proof that it is gone",
            )
        for fact in held.facts:
            log_to_stderr(fact)
        driving = _Driving(project, ledger, arguments, stop)
        driver = driving.driver(lock)
        return driving.run(driver, policy)


class _Driving:
    """One driver in this process: what it meets, and what it says."""

    def __init__(self, project: Project, ledger: Ledger, arguments: argparse.Namespace, stop: Stop) -> None:
        self._project, self._ledger, self._arguments, self._stop = project, ledger, arguments, stop
        self._leaving = threading.Event()
        self._said: list[str] = []
        self._labels: dict[str, str] = {}
        self._names = short_names({job.key: job for job in ledger.sweep.jobs})
        self._view: LiveView | None = None
        self._notices: list[threading.Thread] = []
        self._notice_room = threading.Semaphore(NOTICES_AT_ONCE)
        self._detaches = bool(getattr(arguments, "detach_on_interrupt", False))
        runs_stop = Stop.never() if self._detaches else stop  # what waits for late results ends by no detaching
        self._maker = RunMaker(project, runs_stop, self._said.append, ledger.sweep.policy)

    def driver(self, lock: object) -> Driver:
        """The driver of the sweep. Raises ConfigError when its ledger cannot be read."""
        runners = {}
        for name in {job.runner for job in self._ledger.sweep.jobs}:
            try:
                runners[name] = self._project.fleet.get(name).runner
            except ConfigError as error:  # its jobs cannot be planned, and say so; others and those that live go on
                self._said.append(f"runner {name}: nothing of it begins: {error}")
        setting = DriverSetting(
            self._project.runs,
            {name: runner.limits for name, runner in runners.items()},
            {name: runner.node.count for name, runner in runners.items()},
            may_live=lambda run: may_have_job(run, self._scheduler),
        )
        return Driver(self._ledger, lock, self._maker, setting, self._tell, self._leaving)  # type: ignore[arg-type]

    def run(self, driver: Driver, policy: Policy) -> int:
        """Bring the sweep to its end, as far as that can be done here; the exit code."""
        first = self._maker.any_plan(driver.state)
        services = self._maker.services(first)
        self._scheduler = services.scheduler
        pace = PACE if first.scheduler.kind == "slurm" else pace_of(first)
        flags = {name: bool(getattr(self._arguments, name, False)) for name in ("anyway", "retry_failed")}
        with background_stdout(self._stop) as output:
            world = ConsoleInputs(progress=self._progress, hidden=self._viewed)
            how = output_options(self._arguments, self._project, many=True)
            self._console = Console(self._labels, None, output, how, world)
            self._maker.listener = self._event
            for text in self._said:
                self._tell("note", text)
            driver.on_end = self._notify
            driver.begin(str(LockOwner.here("drives")), policy, **flags)
            stop = Stop(self._interrupted) if self._detaches else self._stop
            show = self._console.log if getattr(self._arguments, "logs", False) else None
            view = self._live_view(driver, output)
            try:
                with self._console.watching():
                    run_feed(driver, services.scheduler, stop, pace, show)
            except BaseException as fault:
                driver.skip_rest()
                driver.leave(f"fault: {type(fault).__name__}: {one_line(fault)}", as_error(fault).exit_code)
                raise
            finally:
                self._close(view)
            result = self._leave(driver)
            self._await_notices()
            if len(driver.outcomes) <= SHOWN:
                self._console.outcomes(self._project.runs, driver.outcomes)
            for line in summary(result):
                self._tell("result", line)
            if how.as_json:
                value = SweepEnded(sweep=result.id, points=result.points, exit_code=result.exit_code)
                self._console.value(value)
        return result.exit_code

    def _live_view(self, driver: Driver, output: BackgroundOutput) -> LiveView | None:
        """The live view, in a terminal that wants one; until it is closed lines of events are not shown."""
        wanted = getattr(self._arguments, "live", False) and not getattr(self._arguments, "logs", False)
        if not (wanted and output.isatty() and sys.stdin.isatty()):
            return None
        from launcher.cli.sweep_view import LiveView

        look = SweepWatcher(self._project.runs, self._ledger).overview
        self._view = LiveView(look, requester(self._ledger), output)  # type: ignore[arg-type]
        self._view.start()
        return self._view

    def _close(self, view: LiveView | None) -> None:
        """Close the view, and say which errors came meanwhile."""
        if view is not None:
            view.close()
            self._view = None
            for text in view.errors:
                self._tell("error", text)

    def _interrupted(self, seconds: float) -> bool:
        """With --detach-on-interrupt a signal makes this driver leave, and no job is cancelled."""
        if self._stop.wait(seconds):
            self._leaving.set()
            time.sleep(min(seconds, 0.05))
        return False

    def _leave(self, driver: Driver) -> Overview:
        driver.skip_rest()
        state = driver.state
        found = overview(state, driver.records.facts, time.time())
        why, code = "finished", found.exit_code
        if self._stop.requested() and not self._detaches:
            why, code = self._stop.reason().message, self._stop.reason().exit_code
        elif state.ending or self._leaving.is_set():
            why = {"cancel": "cancelled"}.get(state.ending, "stopped")
            code = 130 if state.ending == "cancel" else code
        elif state.requested:
            why = "drained"
        driver.leave(why, code)
        return dataclasses.replace(found, exit_code=code)

    def _await_notices(self) -> None:
        """Wait for programs of --notify, a moment when we were asked to stop."""
        until = time.monotonic() + (1.0 if self._stop.requested() else NOTICE_SECONDS)
        for thread in self._notices:
            thread.join(max(0.0, until - time.monotonic()))
        if left := sum(thread.is_alive() for thread in self._notices):
            programs = count_of(left, "program has not ended, and is", "programs have not ended, and are")
            self._tell("error", f"--notify: {programs} left")

    def _notify(self, ended: Ended) -> None:
        """Run the user's program at an end, in a thread: facts are in its environment."""
        argv = list(self._ledger.sweep.policy.notify)
        facts = {"job": ended.job, "run": ended.run, "state": ended.state, "layer": ended.layer, "text": ended.text}
        facts |= {"ok": " ".join(map(str, ended.ok)), "gpu_hours": f"{ended.gpu_hours:g}", "signature": ended.signature}
        own = {f"LAUNCHER_SWEEP_{name.upper()}": text for name, text in facts.items()}
        environment = {**os.environ, "LAUNCHER_SWEEP": self._ledger.id, **own}

        def call() -> None:
            try:
                with self._notice_room:
                    done = run_program(argv, timeout=NOTICE_SECONDS, env=environment)
            except (OSError, ValueError) as error:  # no program at all, or an environment that is none
                self._tell("error", f"--notify: {argv[0]}: {error}")
            else:
                if not done.ok:
                    self._tell("error", f"--notify: {done}")

        if argv:
            self._notices = [thread for thread in self._notices if thread.is_alive()]
            self._notices.append(threading.Thread(target=call, daemon=True, name="notify"))
            self._notices[-1].start()

    def _event(self, event: RunEvent) -> None:
        job = event.run.removeprefix(f"{self._ledger.id}-").rsplit("-", 2)[0]  # SWEEP-JOB-NUMBER-HEX
        self._labels.setdefault(event.run, self._names.get(job, job))
        self._console.event(event)
        if event.kind == "error":
            self._tell_view(f"{event.run}: {event.text}")

    def _progress(self, run: str) -> str:
        record = RunRecord.load(self._project.runs, run)
        return job_progress(record, record.plan)

    def _viewed(self) -> bool:
        """Whether the live view has the terminal."""
        return self._view is not None and not self._view.closed.is_set()

    def _tell(self, kind: str, text: str) -> None:
        self._console.tell(kind, text)
        if kind == "error":
            self._tell_view(text)

    def _tell_view(self, text: str) -> None:
        if self._view is not None and self._viewed():
            self._view.tell(text)


def short_names(jobs: Mapping[str, Job]) -> dict[str, str]:
    """Jobs by what tells them apart, where that does: topology, lengths, concurrencies."""
    names = {}
    for key, job in jobs.items():
        ends = "-".join(map(str, dict.fromkeys((min(job.concurrencies), max(job.concurrencies)))))
        names[key] = f"{job.benchmark.topology} {job.benchmark.measures} c{ends}"
    counts = Counter(names.values())
    return {key: name for key, name in names.items() if counts[name] == 1}


def summary(found: Overview) -> list[str]:
    """The end of a sweep in a few lines."""
    lines = [f"sweep {text}" if number == 0 else f"  {text}" for number, text in enumerate(header_lines(found)[:2])]
    reasons = Counter(point.reason for point in found.states if point.state == "not started")
    lines += [f"  {count} not started: {reason}" for reason, count in reasons.most_common(5)]
    lines += [f"  held: {text} (resume --anyway starts it)" for text in found.held]
    lines += [f"  node {text}" for text in found.excluded]
    if any(word != "ok" for word in found.points):
        lines.append(f"Next: launcher sweep resume {found.id}")
        lines.append(f"  or: launcher sweep resume {found.id} --retry-failed --explain")
    return lines
