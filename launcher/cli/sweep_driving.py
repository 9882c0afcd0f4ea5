"""Drives a sweep in this process, or starts a process without a terminal that does."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING

from launcher.cli import detached
from launcher.cli.command import log_to_stderr
from launcher.cli.console import Console, ConsoleInputs
from launcher.cli.output import BackgroundOutput, background_stdout
from launcher.cli.running import job_progress, output_options
from launcher.cli.streaming import SweepEnded
from launcher.cli.sweep_status import SweepWatcher, send_verb
from launcher.core.errors import ConfigError, as_error
from launcher.core.lease import LockOwner
from launcher.core.lines import count_of
from launcher.core.process import run as run_program
from launcher.core.stop import Stop, stop_on_signals
from launcher.core.terminal import one_line
from launcher.core.waiting import start_in_thread
from launcher.project import Project
from launcher.run.loop import run_feed
from launcher.run.record import Event as RunEvent
from launcher.run.record import RunRecord
from launcher.services import poll_pace
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
"""Most runs whose results are shown as a table at the end; `launcher results` shows those of larger sweeps."""

NOTIFY_TIMEOUT = 60.0
"""Seconds that a program of --notify may take."""

NOTIFY_AT_ONCE = 4
"""Programs of --notify that run at a time."""

PACE = Pace(refill=27.5, burst=10, release_at_once=True, tick=5.0, rest=0.25)
"""How often Slurm is asked about a sweep's jobs: at most 140 times an hour with up to two calls each, however many jobs
begin and end."""


def detach(project: Project, ledger: Ledger, arguments: argparse.Namespace) -> int:
    """Start a process that drives the sweep and writes its output to the sweep's directory."""
    log = ledger.directory / "driver.log"
    names = ("--retry-failed", "--anyway", "--take-over", "--detach-on-interrupt")
    flags = [flag for flag in names if getattr(arguments, flag[2:].replace("-", "_"), False)]
    argv = ["sweep", "resume", ledger.id, "--yes", "--no-live", *flags]
    driver, events = detached.start_driver(ledger.id, argv, log, project.state, arguments), EventReader(ledger)

    def has_begun(pid: int) -> bool:
        return any(isinstance(e, Began) and e.driver.startswith(f"pid {pid} ") for e in events.new())

    timeout = detached.START_TIMEOUT + (ledger.take_over_patience if "--take-over" in flags else 0.0)
    driver.wait_until_started(f"sweep {ledger.id}", has_begun, timeout)
    driver.print_started(f"sweep {ledger.id}", f"sweep status {ledger.id} --watch", arguments)
    return 0


def drive(project: Project, ledger: Ledger, arguments: argparse.Namespace, policy: Policy) -> int:
    """Drive a sweep in this process until nothing more can be done for it here. Returns the exit code."""
    lock = ledger.lock(wait=ledger.take_over_patience if getattr(arguments, "take_over", False) else 0.0)
    with lock as result, stop_on_signals() as stop:
        if not result.acquired:
            raise ConfigError(
                f"another launcher drives this sweep: {result.owner}",
                where=f"sweep {ledger.id}",
                hint=f"launcher sweep status {ledger.id}; --take-over waits for proof that it is gone",
            )
        for fact in result.facts:
            log_to_stderr(fact)
        return _DrivenSweep(project, ledger, arguments, stop).run(lock, policy)


class _DrivenSweep:
    """A sweep that this process drives: its driver, its console or live view, and the programs of --notify."""

    def __init__(self, project: Project, ledger: Ledger, arguments: argparse.Namespace, stop: Stop) -> None:
        self._project, self._ledger, self._arguments, self._stop = project, ledger, arguments, stop
        self._leaving = threading.Event()
        self._early_notes: list[str] = []
        """Notes from before there is a console."""
        self._labels: dict[str, str] = {}
        self._names = short_names({job.key: job for job in ledger.sweep.jobs})
        self._view: LiveView | None = None
        self._notify_runs: list[Future[None]] = []
        self._notify_slots = threading.Semaphore(NOTIFY_AT_ONCE)
        self._detaches = bool(getattr(arguments, "detach_on_interrupt", False))
        runs_stop = Stop.never() if self._detaches else stop  # detaching must not end a wait for late results
        self._maker = RunMaker(project, runs_stop, self._early_notes.append, ledger.sweep.policy)

    def _driver(self, lock: object) -> Driver:
        """The driver of the sweep. Raises ConfigError when its ledger cannot be read."""
        runners = {}
        for name in {job.runner for job in self._ledger.sweep.jobs}:
            try:
                runners[name] = self._project.fleet.get(name).runner
            except ConfigError as error:  # planning its jobs fails with the same; jobs that live are still followed
                self._early_notes.append(f"runner {name}: nothing of it begins: {error}")
        setting = DriverSetting(
            self._project.runs,
            {name: runner.limits for name, runner in runners.items()},
            {name: runner.node.count for name, runner in runners.items()},
            may_live=lambda run: may_have_job(run, self._scheduler),
        )
        return Driver(self._ledger, lock, self._maker, setting, self._print, self._leaving)  # type: ignore[arg-type]

    def run(self, lock: object, policy: Policy) -> int:
        """Bring the sweep to its end, as far as that can be done here. Returns the exit code."""
        driver = self._driver(lock)
        first = self._maker.any_plan(driver.state)
        self._scheduler = self._maker.services(first).scheduler
        pace = PACE if first.scheduler.kind == "slurm" else poll_pace(first)
        flags = {name: bool(getattr(self._arguments, name, False)) for name in ("anyway", "retry_failed")}
        with background_stdout(self._stop) as output:
            inputs = ConsoleInputs(progress=self._progress, hidden=self._view_is_open)
            options = output_options(self._arguments, self._project, many=True)
            self._console = Console(self._labels, None, output, options, inputs)
            self._maker.listener = self._show_event
            for text in self._early_notes:
                self._print("note", text)
            driver.on_end = self._notify
            driver.begin(str(LockOwner.here("drives")), policy, **flags)
            stop = Stop(self._leave_on_interrupt) if self._detaches else self._stop
            show_log = self._console.log if getattr(self._arguments, "logs", False) else None
            self._open_view(output)
            try:
                with self._console.refreshing():
                    run_feed(driver, self._scheduler, stop, pace, show_log)
            except BaseException as fault:
                driver.skip_rest()
                driver.leave(f"fault: {type(fault).__name__}: {one_line(fault)}", as_error(fault).exit_code)
                raise
            finally:
                self._close_view()
            overview = self._leave(driver)
            self._wait_for_notify()
            if len(driver.outcomes) <= SHOWN:
                self._console.outcomes(self._project.runs, driver.outcomes)
            for line in summary(overview):
                self._print("result", line)
            if options.as_json:
                value = SweepEnded(sweep=overview.id, points=overview.points, exit_code=overview.exit_code)
                self._console.value(value)
        return overview.exit_code

    def _open_view(self, output: BackgroundOutput) -> None:
        """Open the live view in a terminal, with --live; event lines are hidden until it is closed."""
        wanted = getattr(self._arguments, "live", False) and not getattr(self._arguments, "logs", False)
        if not (wanted and output.isatty() and sys.stdin.isatty()):
            return
        from launcher.cli.sweep_view import LiveView

        watcher = SweepWatcher(self._project.runs, self._ledger)
        self._view = LiveView(watcher.overview, partial(send_verb, self._ledger), output)  # type: ignore[arg-type]
        self._view.start()

    def _close_view(self) -> None:
        """Close the live view, and print the errors that it had shown."""
        if (view := self._view) is not None:
            view.close()
            self._view = None
            for text in view.errors:
                self._print("error", text)

    def _leave_on_interrupt(self, seconds: float) -> bool:
        """With --detach-on-interrupt a signal makes this driver leave; no job is cancelled."""
        if self._stop.wait(seconds):
            self._leaving.set()
            time.sleep(min(seconds, 0.05))
        return False

    def _leave(self, driver: Driver) -> Overview:
        """Record why the driver leaves; the sweep as it stands then, with the exit code of this command."""
        driver.skip_rest()
        state = driver.state
        sweep = overview(state, driver.records.facts, time.time())
        why, code = "finished", sweep.exit_code
        if self._stop.requested() and not self._detaches:
            why, code = self._stop.reason().message, self._stop.reason().exit_code
        elif state.ending or self._leaving.is_set():
            why = {"cancel": "cancelled"}.get(state.ending, "stopped")
            code = 130 if state.ending == "cancel" else code
        elif state.requested:
            why = "drained"
        driver.leave(why, code)
        return dataclasses.replace(sweep, exit_code=code)

    def _wait_for_notify(self) -> None:
        """Wait for the programs of --notify; one second when a signal stopped us."""
        timeout = 1.0 if self._stop.requested() else NOTIFY_TIMEOUT
        if running := wait(self._notify_runs, timeout).not_done:
            programs = count_of(len(running), "program has not ended, and is", "programs have not ended, and are")
            self._print("error", f"--notify: {programs} left")

    def _notify(self, ended: Ended) -> None:
        """Run the program of --notify for a run that has ended, in a thread; its environment says how."""
        argv = list(self._ledger.sweep.policy.notify)
        if not argv:
            return
        facts = {"job": ended.job, "run": ended.run, "state": ended.state, "layer": ended.layer, "text": ended.text}
        facts |= {"ok": " ".join(map(str, ended.ok)), "gpu_hours": f"{ended.gpu_hours:g}", "signature": ended.signature}
        variables = {f"LAUNCHER_SWEEP_{name.upper()}": text for name, text in facts.items()}
        environment = {**os.environ, "LAUNCHER_SWEEP": self._ledger.id, **variables}

        def call() -> None:
            try:
                with self._notify_slots:
                    done = run_program(argv, timeout=NOTIFY_TIMEOUT, env=environment)
            except (OSError, ValueError) as error:  # there is no such program, or a value has a NUL character
                self._print("error", f"--notify: {argv[0]}: {error}")
            else:
                if not done.ok:
                    self._print("error", f"--notify: {done}")

        self._notify_runs = [*(run for run in self._notify_runs if not run.done()), start_in_thread(call, "notify")]

    def _show_event(self, event: RunEvent) -> None:
        job = event.run.removeprefix(f"{self._ledger.id}-").rsplit("-", 2)[0]  # SWEEP-JOB-NUMBER-HEX
        self._labels.setdefault(event.run, self._names.get(job, job))
        self._console.event(event)
        if event.kind == "error":
            self._show_in_view(f"{event.run}: {event.text}")

    def _progress(self, run: str) -> str:
        record = RunRecord.load(self._project.runs, run)
        return job_progress(record, record.plan)

    def _view_is_open(self) -> bool:
        return self._view is not None and not self._view.closed.is_set()

    def _print(self, kind: str, text: str) -> None:
        self._console.sweep_message(kind, text)
        if kind == "error":
            self._show_in_view(text)

    def _show_in_view(self, error: str) -> None:
        if self._view is not None and not self._view.closed.is_set():
            self._view.show_error(error)


def short_names(jobs: Mapping[str, Job]) -> dict[str, str]:
    """A short name for each job, of its topology, lengths and concurrencies, where no other job has the same."""
    names = {}
    for key, job in jobs.items():
        ends = "-".join(map(str, dict.fromkeys((min(job.concurrencies), max(job.concurrencies)))))
        names[key] = f"{job.benchmark.topology} {job.benchmark.measures} c{ends}"
    counts = Counter(names.values())
    return {key: name for key, name in names.items() if counts[name] == 1}


def summary(sweep: Overview) -> list[str]:
    """How a sweep ended, in a few lines."""
    lines = [f"sweep {text}" if number == 0 else f"  {text}" for number, text in enumerate(header_lines(sweep)[:2])]
    reasons = Counter(point.reason for point in sweep.states if point.state == "not started")
    lines += [f"  {count} not started: {reason}" for reason, count in reasons.most_common(5)]
    lines += [f"  held: {text} (resume --anyway starts it)" for text in sweep.held]
    lines += [f"  node {text}" for text in sweep.excluded]
    if any(word != "ok" for word in sweep.points):
        lines.append(f"Next: launcher sweep resume {sweep.id}")
        lines.append(f"  or: launcher sweep resume {sweep.id} --retry-failed --explain")
    return lines
