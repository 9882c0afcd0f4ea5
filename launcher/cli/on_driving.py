"""`run`, `resume` and sweeps on a login node: planned on both machines, driven by a process there, shown here.

This process may end at any moment, and the driver goes on. Only Ctrl-C and SIGTERM cancel what it drives, as they do
for a local run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from launcher.cli.command import Command, CommandRewriter, json_text, log_to_stderr, wants_json
from launcher.cli.common import confirm_cost, open_project, selected_plans
from launcher.cli.on import ReceivedSignals, RemoteCommand, cancel_on_signal, show
from launcher.core.errors import ConfigError, LauncherError, RemoteError
from launcher.core.publish import make_private, write_json
from launcher.core.reading import read_json
from launcher.core.terminal import one_line, print_line, printable
from launcher.project import new_run_id
from launcher.remote import bundle
from launcher.remote.agent import HostInfo
from launcher.remote.following import RunEnd, RunUpdate
from launcher.remote.messages import received_error, typed
from launcher.run.record import Event

if TYPE_CHECKING:
    import argparse

    from launcher.cli.console import Console
    from launcher.cli.status import RunView
    from launcher.plan.plan import Plan
    from launcher.sweep.overview import Overview

_MAX_DIFF_LINES = 60
_MAX_PLAN = 1 << 20
"""Characters of a plan that are compared."""
_DRIVER_TIMEOUT = 30.0
"""Seconds in which a driver has to begin."""
_UNFINISHED = {"planned", "preparing", "queued", "running", "unknown"}
"""States of points on which a driver still works."""


def run(remote: RemoteCommand) -> int:
    """Plan, compare, start, follow."""
    arguments = remote.arguments
    plans = _compare_plans(remote)
    if len(plans) == 1 and not arguments.run_id:
        arguments.run_id = new_run_id(plans[0].benchmark, time.time())
    return _drive_runs(remote, [arguments.run_id], lambda: _start_driver(remote))


def resume(remote: RemoteCommand) -> int:
    """Start a driver for each run that has none, and follow the runs one after the other."""
    from launcher.cli.status import status

    names = remote.arguments.runs
    value = remote.ask(command="status:status", runs=names, states=[], runner=[], limit=None, since=None).value(status)
    if value is None or len(value.named) < len(set(names)):
        message = f"not all of these runs are there: {', '.join(names)}"
        raise ConfigError(message, where=remote.name, hint="launcher status")
    views: Sequence[RunView] = value.named
    for view in views:
        if view.state == "succeeded":
            log_to_stderr(f"run {view.id} has succeeded already")
    unfinished = [view for view in views if view.state != "succeeded"]
    undriven = [view.id for view in unfinished if not view.driven]
    if undriven:
        remote.send_files()
    runs = [view.id for view in unfinished]
    return _drive_runs(remote, runs, lambda: _start_driver(remote, runs=undriven) if undriven else 0)


def _drive_runs(remote: RemoteCommand, runs: Sequence[str], start: Callable[[], int]) -> int:
    """Start drivers by ``start``, and follow the runs one after the other. Returns the first exit code other than 0."""
    unfinished, names = list(runs), " ".join(runs)
    cancel = {"command": "ending:cancel", "runs": unfinished, "from_env": False}
    with cancel_on_signal(remote, names, f"resume {names}", cancel) as signals:
        code = start()
        if code or (remote.arguments.detach and not signals.numbers):
            return _print_detached(remote, f"resume {names}", code)
        signals.started.set()
        codes = []
        for run in runs:
            codes.append(_follow(remote, run, signals))
            signals.over = run == runs[-1]
            unfinished.remove(run)
    return next((code for code in codes if code), 0)


def sweep_start(remote: RemoteCommand) -> int:
    """Plan, compare, start a driver of the sweep, and follow it."""
    arguments = remote.arguments
    if not arguments.name:
        arguments.name = f"{time.strftime('sweep-%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    _compare_plans(remote)
    return _drive_sweep(remote)


def sweep_resume(remote: RemoteCommand) -> int:
    """Start a driver of the sweep, and follow it."""
    remote.send_files()
    return _drive_sweep(remote)


def _drive_sweep(remote: RemoteCommand) -> int:
    name = remote.arguments.name
    verb = "stop" if remote.arguments.detach_on_interrupt else "cancel"
    cancel = {"command": "sweep_asking:ask", "name": name, "verb": verb, "of_runner": None}
    with cancel_on_signal(remote, name, f"sweep status {name} --watch", cancel) as signals:
        code = _start_driver(remote, show_output=True)
        if code or (remote.arguments.detach and not signals.numbers):
            return _print_detached(remote, f"sweep status {name} --watch", code)
        signals.started.set()
        sweep = _watch(remote, name)
    code = 128 + signals.numbers[0] if signals.numbers and sweep.exit_code else sweep.exit_code
    if wants_json(remote.arguments):
        return code
    from launcher.cli.sweep_driving import SHOWN, summary

    if len(sweep.jobs) <= SHOWN and sweep.points.get("ok"):
        show(remote, command="results:results", names=[name], json=False, csv=False, output=".")
    for line in summary(sweep):
        print_line(line)
    return code


def _start_driver(remote: RemoteCommand, *, show_output: bool = False, **changes: Any) -> int:
    """Start a driver there. Returns 0, or prints its output and returns the exit code of a start that failed."""
    errors: list[str] = []
    answer = remote.ask(errors.append, detach=True, yes=True, **changes)
    output = answer.whole()
    if answer.code or (show_output and not wants_json(remote.arguments)):
        shown = [line for line in output.splitlines() if not line.startswith(("Next:", "run "))]
        sys.stdout.write("".join(f"{line}\n" for line in shown))
        sys.stderr.write("".join(errors))
    return answer.code


def _print_detached(remote: RemoteCommand, next_command: str, code: int) -> int:
    if code == 0 and not wants_json(remote.arguments):
        print_line(f"It is driven on {remote.name}, whatever happens here.")
        print_line(CommandRewriter(remote.arguments)(f"Next: launcher {next_command}"))
    return code


# -- planning on both machines


def _compare_plans(remote: RemoteCommand) -> list[Plan]:
    """Send the files, and compare the plans of both machines; then ask before expensive jobs. Raises ConfigError where
    plans differ, and prints how."""
    files = remote.send_files()
    arguments, host = remote.arguments, remote.session.request("look", HostInfo, state=remote.arguments.state)
    environment = {**host.environment, **{name: os.environ[name] for name in remote.passed if os.environ.get(name)}}
    with tempfile.TemporaryDirectory(prefix="launcher-") as directory:
        # Plans here are made of a copy of what was sent, so that they differ in the path of that copy alone.
        copy = str(bundle.unpack_bundle(Path(directory), files))
        local = type(arguments)(**{**vars(arguments), **remote.paths_in(copy), "state": None})
        project = dataclasses.replace(open_project(local), environ=environment, state=Path(host.state))
        plans = selected_plans(local, project, [])
        texts = _plan_texts(plans, copy)
        digests = {key: sha256(text.encode()).hexdigest() for key, text in texts.items()}
        differing = remote.ask(command="on_driving:other_plans", digests=digests).value(other_plans)
        if differing is None:
            raise ConfigError("the benchmark cannot be planned there", where=remote.name)
        for key, text in differing.items():
            local_lines, remote_lines = texts.get(key, "").splitlines(), text[:_MAX_PLAN].splitlines()
            diff = difflib.unified_diff(local_lines, remote_lines, "here", remote.name, n=1, lineterm="")
            for line in list(diff)[:_MAX_DIFF_LINES]:
                print(one_line(line), file=sys.stderr)
            message = "the plan there differs from the plan here, and nothing was started"
            hint = f"launcher remote install {remote.name}, where launchers differ; else fix the file that differs"
            raise ConfigError(message, where=remote.name, hint=hint)
        costs: dict[str, float | None] = {}
        for plan in plans:
            costs[plan.runner] = (costs.get(plan.runner) or 0.0) + (plan.scheduler.gpu_hours or 0.0)
        confirm_cost(project, costs, yes=arguments.yes)
    return plans


def _plan_texts(plans: Sequence[Plan], files: str) -> dict[str, str]:
    """Plans as text, by a key. Paths of ``files`` and of the installation are replaced by neutral names."""
    return {plan.job_name + plan.run_key: _plan_text(plan, files) for plan in plans}


def _plan_text(plan: Plan, files: str) -> str:
    from launcher.core.shipped import shipped

    text = json.dumps(plan.as_dict(), indent=1, sort_keys=True, ensure_ascii=False, default=str)
    text = text.replace(files, "<files>")
    for name in ("runners", "recipes"):
        text = text.replace(f"{shipped(name)}/", f"<shipped {name}>/")
    return text


def _other_plans(arguments: argparse.Namespace, log: object) -> dict[str, str]:
    """On the login node: the plans, by key, whose digests are not among ``arguments.digests``."""
    plans = selected_plans(arguments, open_project(arguments), [])
    texts, digests = _plan_texts(plans, str(Path(arguments.workspace).parent)), arguments.digests
    missing = dict.fromkeys(digests.keys() - texts.keys(), "")
    return missing | {key: text for key, text in texts.items() if sha256(text.encode()).hexdigest() != digests.get(key)}


other_plans = Command(dict[str, str], _other_plans, lambda value, terminal: ())


# -- following


def _follow(remote: RemoteCommand, run_id: str, signals: ReceivedSignals) -> int:
    """Show a run's events and log until it ends. Returns its exit code. The run goes on if the connection is lost."""
    from launcher.cli.console import Console, OutputOptions

    arguments, host = remote.arguments, remote.name
    options = OutputOptions(bool(arguments.verbose), bool(arguments.quiet), wants_json(arguments))
    console = Console({}, None, options=options)
    signals.log = console.notice
    offsets_file = remote.node.directory / f"{run_id}.json"
    offsets = (read_json(offsets_file, dict[str, tuple[int, int]]) or {}).get("at", (0, 0))
    end: RunEnd | None = None
    try:
        stream = remote.session.stream("follow", run=run_id, at=offsets, state=arguments.state)
        with console.refreshing():
            while end is None:
                try:
                    update = typed(next(stream), RunUpdate, host)
                except StopIteration as stopped:
                    end = typed(stopped.value, RunEnd, host)
                    break
                for fields in update.events:
                    if (event := _event(run_id, fields)) is not None:
                        console.event(event)
                if arguments.logs:
                    console.log(run_id, update.log)
                offsets = update.at
    except RemoteError as error:
        error.hint = f"the run goes on there: launcher resume {run_id}, which shows it from here on"
        if signals.numbers:
            error.hint = f"whether it was cancelled is not known here: launcher status {run_id}"
        raise
    finally:
        with contextlib.suppress(OSError):
            make_private(offsets_file.parent)
            write_json(offsets_file, {"at": offsets})
    offsets_file.unlink(missing_ok=True)
    if signals.numbers and end.state == "cancelled":
        end = msgspec.structs.replace(end, exit=128 + signals.numbers[0])
    return _show_end(remote, run_id, end, console)


def _event(run_id: str, fields: Mapping[str, Any]) -> Event | None:
    if not isinstance(fields.get("time"), (int, float)):
        return None
    data = {key: value for key, value in fields.items() if key not in ("time", "kind", "text")}
    return Event(fields["time"], run_id, str(fields.get("kind", "")), printable(str(fields.get("text", ""))), data)


def _show_end(remote: RemoteCommand, run_id: str, end: RunEnd, console: Console) -> int:
    """Print how a run ended. Returns its exit code. Raises LauncherError when its driver left before the end."""
    from launcher.cli.console import outcome_value
    from launcher.core.lines import Terminal, print_lines
    from launcher.result.summary_file import table_lines
    from launcher.run.finish import Outcome

    if end.state == "left":
        hint = f"launcher resume {run_id}"
        raise LauncherError("nobody drives the run any more, and it has not ended", where=f"run {run_id}", hint=hint)
    code = end.exit if 0 <= end.exit < 256 else 1
    error = received_error(end.error, remote.name) if end.error else None
    if error is not None:
        error.exit_code = code
    if wants_json(remote.arguments):
        value = outcome_value(Outcome(run_id, end.state, error=error))
        console.value(msgspec.structs.replace(value, verdict=end.verdict) if end.verdict else value)
        return code
    if end.summary is not None and any(point["state"] == "ok" for point in end.summary["points"]):
        print()
        terminal = Terminal.of(sys.stdout)
        print_lines(table_lines([end.summary], terminal.width), terminal)
    if error is not None:
        for line in f"{end.verdict if error.message in end.verdict else error}".split("\n"):
            print_line(line)
    print_line(f"{end.state}. Record and results: {remote.name}:{end.directory}")
    rewrite = CommandRewriter(remote.arguments)
    print_line(rewrite(f"Next: launcher status {run_id}"))
    print_line(rewrite(f"  or: launcher remote get {remote.name} {run_id}"))
    return code


def _watch(remote: RemoteCommand, name: str) -> Overview:
    """Show a sweep until its driver leaves: in a live view, or with a line for each job whenever that changes. Returns
    how it stands then. The sweep goes on if the connection is lost."""
    from launcher.cli.sweep_status import job_line, overview_document, show_live_view

    latest: Overview | None = None
    printed: dict[str, str] = {}
    driven, deadline = False, time.monotonic() + _DRIVER_TIMEOUT

    def overviews() -> Iterator[Overview]:
        nonlocal latest, driven
        while latest is None or not (driven or time.monotonic() > deadline or not _UNFINISHED & latest.points.keys()):
            for latest in _overviews(remote, name):
                driven = driven or bool(latest.driver)
                yield latest

    try:
        if wants_json(remote.arguments):
            for sweep in overviews():
                print(json_text(overview_document(sweep), indent=0), flush=True)
        elif remote.arguments.live and sys.stdout.isatty() and sys.stdin.isatty():
            show_live_view(overviews(), remote.arguments, remote.ask_driver)
        else:
            for sweep in overviews():
                for job in sweep.jobs:
                    line = job_line(job, job.since or 0.0)
                    if printed.get(job.key) != line and (job.state != "planned" or job.key in printed):
                        print_line(line)
                    printed[job.key] = line
    except RemoteError as error:
        error.hint = f"the sweep goes on there: launcher sweep status {name} --watch"
        raise
    assert latest is not None
    return latest


def _overviews(remote: RemoteCommand, name: str) -> Iterator[Overview]:
    """The sweep as it stands, again and again while a launcher drives it. Raises RemoteError."""
    from launcher.cli.sweep_status import status

    values = remote.ask(command="sweep_status:status", name=name, watch=True).value(status)
    if not isinstance(values, Iterator):
        raise RemoteError("the answer has no overview of the sweep", where=remote.name)
    yield from values
