"""Driving a sweep in this process, or in one of its own that needs no terminal."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli import detached
from launcher.cli.output import Output, standard_output_apart
from launcher.cli.render import Console
from launcher.cli.sweep_status import asks, seen
from launcher.core.errors import ConfigError
from launcher.core.lease import LockOwner
from launcher.core.process import run as run_program
from launcher.core.stop import Stop, stop_on_signals
from launcher.core.terminal import say
from launcher.plan.plan import Plan
from launcher.project import Project
from launcher.run.loop import run_feed
from launcher.run.record import Event as RunEvent
from launcher.services import pace_of
from launcher.slurm.client import may_have_job
from launcher.slurm.poller import Pace
from launcher.sweep import ledger as ledgers
from launcher.sweep.decide import Start
from launcher.sweep.driver import Driver, Setting
from launcher.sweep.ledger import Ledger
from launcher.sweep.making import RunMaker
from launcher.sweep.overview import Overview, head_of, overview
from launcher.sweep.schema import Ended, Policy
from launcher.sweep.slots import Room

if TYPE_CHECKING:
    from launcher.cli.sweep_view import LiveView

SHOWN = 200
"""Runs whose results are shown as a table at the end; those of larger sweeps `launcher results` shows."""

NOTICE_SECONDS = 60.0
"""How long a program of --notify may take."""

PACE = Pace(refill=27.5, burst=10, release_at_once=True, tick=5.0, rest=0.25)
"""How Slurm is asked about a sweep's jobs: at most 140 questions an hour, of up to two calls each, however many jobs
begin and end."""


def sweeps_of(project: Project) -> Path:
    """Where the ledgers lie."""
    return project.state / "sweeps"


def detach(project: Project, ledger: Ledger, arguments: argparse.Namespace) -> int:
    """Have a process of its own drive the sweep, whose output is in the sweep's directory."""
    log = ledger.directory / "driver.log"
    more = [flag for flag in ("--retry-failed", "--anyway") if getattr(arguments, flag[2:].replace("-", "_"), False)]
    argv = ["sweep", "resume", ledger.id, "--yes", "--no-live", *more]
    pid = detached.start(ledger.id, argv, log, project.state, arguments)
    say(f"sweep {ledger.id}: driven by pid {pid}, whose output is {log}")
    say(f"Next: launcher sweep status {ledger.id} --watch   (or: pause, drain, stop, cancel)")
    return 0


def drive(project: Project, ledger: Ledger, arguments: argparse.Namespace, policy: Policy) -> int:
    """Drive a sweep in this process until nothing more of it can be done here; the exit code."""
    patience = ledgers.take_over_patience() if getattr(arguments, "take_over", False) else 0.0
    lock = ledger.lock(wait=patience)
    with lock as held, stop_on_signals() as stop:
        if not held.acquired:
            raise ConfigError(
                f"another launcher drives this sweep: {held.owner}",
                where=f"sweep {ledger.id}",
                hint=f"launcher sweep status {ledger.id}; --take-over waits for proof that it is gone",
            )
        for fact in held.facts:
            say(fact)
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
        self._view: LiveView | None = None
        self._detaches = bool(getattr(arguments, "detach_on_interrupt", False))
        runs_stop = Stop.never() if self._detaches else stop  # what waits for late results ends by no detaching
        self._maker = RunMaker(project, runs_stop, self._said.append, ledger.sweep.policy)

    def driver(self, lock: object) -> Driver:
        """The driver of the sweep. Raises ConfigError when its ledger cannot be read."""
        runners = {name: self._project.fleet.get(name).runner for name in {j.runner for j in self._ledger.sweep.jobs}}
        setting = Setting(
            self._project.runs,
            {name: Room(runner.limits.max_jobs, runner.limits.max_nodes) for name, runner in runners.items()},
            {name: runner.node.count for name, runner in runners.items()},
            {name: runner.limits.max_gpu_hours for name, runner in runners.items()},
            may_live=lambda run: may_have_job(run, self._scheduler),
        )
        return Driver(self._ledger, lock, self._maker, setting, self._tell, self._leaving)  # type: ignore[arg-type]

    def run(self, driver: Driver, policy: Policy) -> int:
        """Bring the sweep to its end, as far as that can be done here; the exit code."""
        first = self._first_plan(driver)
        services = self._maker.services(first)
        self._scheduler = services.scheduler
        pace = PACE if first.scheduler.kind == "slurm" else pace_of(first)
        flags = {name: bool(getattr(self._arguments, name, False)) for name in ("anyway", "retry_failed")}
        with standard_output_apart(self._stop) as output:
            self._console = Console(self._labels, None, output)
            self._maker.listener = self._event
            for text in self._said:
                self._tell("note", text)
            driver.on_end = self._notify
            driver.begin(str(LockOwner.here("drives")), policy, **flags)
            stop = Stop(self._interrupted) if self._detaches else self._stop
            show = self._console.log if getattr(self._arguments, "logs", False) else None
            view = self._live_view(driver, output)
            try:
                run_feed(driver, services.scheduler, stop, pace, show)
            finally:
                if view is not None:
                    view.close()
                    self._view = None
                result = self._leave(driver)
            if len(driver.outcomes) <= SHOWN:
                self._console.outcomes(self._project.runs, driver.outcomes)
            for line in summary(result):
                self._tell("note", line)
        return result.exit_code

    def _live_view(self, driver: Driver, output: Output) -> LiveView | None:
        """The live view, in a terminal that wants one; until it is closed lines of events are not shown."""
        wanted = getattr(self._arguments, "live", False) and not getattr(self._arguments, "logs", False)
        if not (wanted and output.isatty() and sys.stdin.isatty()):
            return None
        from launcher.cli.sweep_view import LiveView

        ledger = self._ledger
        self._view = LiveView(lambda: seen(self._project.runs, ledger), asks(ledger), output)  # type: ignore[arg-type]
        self._view.start()
        return self._view

    def _first_plan(self, driver: Driver) -> Plan:
        """The plan of any job, by which scheduler and tools are opened. Raises ConfigError when none can be planned."""
        last: ConfigError | None = None
        for job in driver.state.jobs.values():
            try:
                return self._maker.plan(Start(job, job.concurrencies, ""), "sweep")
            except ConfigError as error:
                last = error
        assert last is not None
        raise last

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
        elif state.asked:
            why = "drained"
        driver.leave(why, code)
        return dataclasses.replace(found, exit_code=code)

    def _notify(self, ended: Ended) -> None:
        """Run the user's program at an end, in a thread: facts are in its environment."""
        argv = list(self._ledger.sweep.policy.notify)
        facts = {"job": ended.job, "run": ended.run, "state": ended.state, "layer": ended.layer, "text": ended.text}
        facts |= {"ok": " ".join(map(str, ended.ok)), "gpu_hours": f"{ended.gpu_hours:g}", "signature": ended.signature}
        own = {f"LAUNCHER_SWEEP_{name.upper()}": text for name, text in facts.items()}
        environment = {**os.environ, "LAUNCHER_SWEEP": self._ledger.id, **own}

        def call() -> None:
            done = run_program(argv, timeout=NOTICE_SECONDS, env=environment)
            if not done.ok:
                self._tell("error", f"--notify: {done}")

        if argv:
            threading.Thread(target=call, daemon=True, name="notify").start()

    def _event(self, event: RunEvent) -> None:
        if self._view is None or self._view.closed.is_set():
            self._console.event(event)

    def _tell(self, kind: str, text: str) -> None:
        if self._view is not None and not self._view.closed.is_set():
            return
        self._console._say(text, {"start": "job", "end": "end"}.get(kind, kind))


def summary(found: Overview) -> list[str]:
    """The end of a sweep in a few lines."""
    lines = [f"sweep {text}" if number == 0 else f"  {text}" for number, text in enumerate(head_of(found)[:2])]
    reasons = Counter(point.reason for point in found.states if point.state == "not started")
    lines += [f"  {count} not started: {reason}" for reason, count in reasons.most_common(5)]
    lines += [f"  held: {text} (resume --anyway starts it)" for text in found.held]
    lines += [f"  node {text}" for text in found.excluded]
    if any(word != "ok" for word in found.points):
        lines.append(f"Next: launcher sweep resume {found.id} [--retry-failed] [--explain]")
    return lines
