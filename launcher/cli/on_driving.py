"""`run`, `resume` and sweeps on a login node: planned here and there, driven there by a process of its own, shown here.

Whoever follows may go away at any moment; the driver goes on. Only Ctrl-C and SIGTERM end what it drives, as they do
here.
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

_DIFF_LINES = 60
_DIFFERED = 1 << 20
"""Characters of a plan that are compared."""
_STARTING = 30.0
"""Seconds that a driver may need to begin."""
_OPEN = {"planned", "preparing", "queued", "running", "unknown"}
"""States of points that a driver goes on with."""


def run(remote: RemoteCommand) -> int:
    """Plan, compare, start, follow."""
    arguments = remote.arguments
    plans = _compared(remote)
    if len(plans) == 1 and not arguments.run_id:
        arguments.run_id = new_run_id(plans[0].benchmark, time.time())
    return _driven(remote, [arguments.run_id], lambda: _started(remote))


def resume(remote: RemoteCommand) -> int:
    """Start a driver for each run that has none, and follow them one after the other."""
    views = _views_of(remote, remote.arguments.runs)
    for one in views:
        if one.state == "succeeded":
            log_to_stderr(f"run {one.id} has succeeded already")
    left = [one.id for one in views if one.state != "succeeded"]
    if undriven := [one.id for one in views if one.id in left and not one.driven]:
        remote.send_files()
    return _driven(remote, left, lambda: _started(remote, runs=undriven) if undriven else 0)


def _driven(remote: RemoteCommand, runs: Sequence[str], start: Callable[[], int]) -> int:
    """Have drivers started, and follow the runs one after the other; the first exit code that is none of success."""
    living, words = list(runs), " ".join(runs)
    cancel = {"command": "ending:cancel", "runs": living, "from_env": False}
    with cancel_on_signal(remote, words, f"resume {words}", cancel) as signals:
        code = start()
        if code or (remote.arguments.detach and not signals.came):
            return _left(remote, f"resume {words}", code)
        signals.begun.set()
        codes = []
        for run in runs:
            codes.append(_follow(remote, run, signals))
            signals.over = run == runs[-1]
            living.remove(run)
    return next((code for code in codes if code), 0)


def sweep_start(remote: RemoteCommand) -> int:
    arguments = remote.arguments
    if not arguments.name:
        arguments.name = f"{time.strftime('sweep-%m%d-%H%M%S')}-{os.urandom(2).hex()}"
    _compared(remote)
    return _sweep(remote)


def sweep_resume(remote: RemoteCommand) -> int:
    remote.send_files()
    return _sweep(remote)


def _sweep(remote: RemoteCommand) -> int:
    name = remote.arguments.name
    verb = "stop" if remote.arguments.detach_on_interrupt else "cancel"
    cancel = {"command": "sweep_asking:ask", "name": name, "verb": verb, "of_runner": None}
    with cancel_on_signal(remote, name, f"sweep status {name} --watch", cancel) as signals:
        code = _started(remote, show_all=True)
        if code or (remote.arguments.detach and not signals.came):
            return _left(remote, f"sweep status {name} --watch", code)
        signals.begun.set()
        found = _watch(remote, name)
    code = 128 + signals.came[0] if signals.came and found.exit_code else found.exit_code
    if wants_json(remote.arguments):
        return code
    from launcher.cli.sweep_driving import SHOWN, summary

    if len(found.jobs) <= SHOWN and found.points.get("ok"):
        show(remote, command="results:results", names=[name], json=False, csv=False, output=".")
    for line in summary(found):
        print_line(line)
    return code


def _started(remote: RemoteCommand, *, show_all: bool = False, **changes: Any) -> int:
    """Have a driver started; the exit code that means it was not. What it says is shown where it says why not."""
    said: list[str] = []
    answer = remote.ask(said.append, detach=True, yes=True, **changes)
    out = answer.whole()
    if answer.code or (show_all and not wants_json(remote.arguments)):
        sys.stdout.write("".join(f"{line}\n" for line in out.splitlines() if not line.startswith(("Next:", "run "))))
        sys.stderr.write("".join(said))
    return answer.code


def _left(remote: RemoteCommand, words: str, code: int) -> int:
    if code == 0 and not wants_json(remote.arguments):
        print_line(f"It is driven on {remote.name}, whatever happens here.")
        print_line(CommandRewriter(remote.arguments)(f"Next: launcher {words}"))
    return code


# -- planned twice


def _compared(remote: RemoteCommand) -> list[Plan]:
    """Have the files there, and the same plans of them as here. Raises ConfigError with what differs otherwise; asks
    before what costs much."""
    files = remote.send_files()
    with tempfile.TemporaryDirectory(prefix="launcher-") as made:
        # Planned here from a copy of what was sent, so that nothing but the place of that copy differs.
        return _compared_in(remote, str(bundle.unpack_bundle(Path(made), files)))


def _compared_in(remote: RemoteCommand, copy: str) -> list[Plan]:
    arguments, seen = remote.arguments, remote.session.request("look", HostInfo, state=remote.arguments.state)
    environment = {**seen.environment, **{name: os.environ[name] for name in remote.passed if os.environ.get(name)}}
    here = type(arguments)(**{**vars(arguments), **remote.places_in(copy), "state": None})
    project = dataclasses.replace(open_project(here), environ=environment, state=Path(seen.state))
    refused: list[ConfigError] = []
    plans = selected_plans(here, project, refused)
    texts = {plan.job_name + plan.run_key: _canonical(plan, copy) for plan in plans}
    digests = {key: sha256(text.encode()).hexdigest() for key, text in texts.items()}
    other = remote.ask(command="on_driving:other_plans", digests=digests).value(other_plans)
    if other is None:
        raise ConfigError("it cannot be planned there", where=remote.name)
    for key, text in other.items():
        lines = difflib.unified_diff(
            texts.get(key, "").splitlines(), text[:_DIFFERED].splitlines(), "here", remote.name, n=1, lineterm=""
        )
        for line in list(lines)[:_DIFF_LINES]:
            print(one_line(line), file=sys.stderr)
        hint = f"launcher remote install {remote.name}, where launchers differ; else mend the file that differs"
        raise ConfigError(
            "the plan there is another one than here, and nothing was started", where=remote.name, hint=hint
        )
    costs: dict[str, float | None] = {}
    for plan in plans:
        costs[plan.runner] = (costs.get(plan.runner) or 0.0) + (plan.scheduler.gpu_hours or 0.0)
    confirm_cost(project, costs, yes=arguments.yes)
    return plans


def _canonical(plan: Plan, place: str) -> str:
    """A plan as text in which the directories of one machine have names."""
    from launcher.core.shipped import shipped

    text = json.dumps(plan.as_dict(), indent=1, sort_keys=True, ensure_ascii=False, default=str)
    text = text.replace(place, "<files>")
    for name in ("runners", "recipes"):
        text = text.replace(f"{shipped(name)}/", f"<shipped {name}>/")
    return text


def _other_plans(arguments: argparse.Namespace, log_to_stderr: object) -> dict[str, str]:
    """The far side: the plans that differ from those with these digests, by their keys."""
    place = str(Path(arguments.workspace).parent)
    plans = selected_plans(arguments, open_project(arguments), [])
    texts = {plan.job_name + plan.run_key: _canonical(plan, place) for plan in plans}
    digests = arguments.digests
    missing = dict.fromkeys(digests.keys() - texts.keys(), "")
    return missing | {key: text for key, text in texts.items() if sha256(text.encode()).hexdigest() != digests.get(key)}


other_plans = Command(dict[str, str], _other_plans, lambda value, terminal: ())


# -- followed


def _views_of(remote: RemoteCommand, names: Sequence[str]) -> Sequence[RunView]:
    from launcher.cli.status import status

    value = remote.ask(command="status:status", runs=names, states=[], runner=[], limit=None, since=None).value(status)
    if value is None or len(value.named) < len(set(names)):
        hint = "launcher status"
        raise ConfigError(f"not all of these runs are there: {', '.join(names)}", where=remote.name, hint=hint)
    return tuple(value.named)


def _follow(remote: RemoteCommand, run_id: str, signals: ReceivedSignals) -> int:
    """Show a run's events and log until it ends; its exit code. Cut off, it goes on."""
    from launcher.cli.console import Console, OutputOptions

    how = OutputOptions(bool(remote.arguments.verbose), bool(remote.arguments.quiet), wants_json(remote.arguments))
    console = Console({}, None, how=how)
    signals.tell = console.aside
    place = remote.node.directory / f"{run_id}.json"
    at = read_json(place, dict[str, tuple[int, int]]) or {}
    offsets, end, quiet, host = at.get("at", (0, 0)), None, not remote.arguments.logs, remote.name
    try:
        stream = remote.session.stream("follow", run=run_id, at=offsets, state=remote.arguments.state)
        with console.watching():
            while end is None:
                try:
                    news = typed(next(stream), RunUpdate, host)
                except StopIteration as stopped:
                    end = typed(stopped.value, RunEnd, host)
                    break
                for event in news.events:
                    if (shown := _event(run_id, event)) is not None:
                        console.event(shown)
                if not quiet:
                    console.log(run_id, news.log)
                offsets = news.at
    except RemoteError as error:
        error.hint = f"the run goes on there: launcher resume {run_id}, which shows it from here on"
        if signals.came:
            error.hint = f"whether it was cancelled is not known here: launcher status {run_id}"
        raise
    finally:
        with contextlib.suppress(OSError):
            make_private(place.parent)
            write_json(place, {"at": offsets})
    place.unlink(missing_ok=True)
    if signals.came and end.state == "cancelled":
        end = msgspec.structs.replace(end, exit=128 + signals.came[0])
    return _show_end(remote, run_id, end, console)


def _event(run_id: str, event: Mapping[str, Any]) -> Event | None:
    if not isinstance(event.get("time"), (int, float)):
        return None
    data = {key: value for key, value in event.items() if key not in ("time", "kind", "text")}
    return Event(event["time"], run_id, str(event.get("kind", "")), printable(str(event.get("text", ""))), data)


def _show_end(remote: RemoteCommand, run_id: str, end: RunEnd, console: Console) -> int:
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
    print_line(CommandRewriter(remote.arguments)(f"Next: launcher status {run_id}"))
    print_line(CommandRewriter(remote.arguments)(f"  or: launcher remote get {remote.name} {run_id}"))
    return code


def _watch(remote: RemoteCommand, name: str) -> Overview:
    """Show a sweep until nobody drives it; how it stands then. Cut off, it goes on."""
    try:
        return _watched(remote, name)
    except RemoteError as error:
        error.hint = f"the sweep goes on there: launcher sweep status {name} --watch"
        raise


def _watched(remote: RemoteCommand, name: str) -> Overview:
    """Show it in a live view, or a line for each job whenever that changes."""
    from launcher.cli.sweep_status import job_line, overview_document, show_live_view

    found: Overview | None = None
    told: dict[str, str] = {}
    driven, until = False, time.monotonic() + _STARTING

    def overviews() -> Iterator[Overview]:
        nonlocal found, driven
        while found is None or not (driven or time.monotonic() > until or not _OPEN & found.points.keys()):
            for found in _overviews(remote, name):
                driven = driven or bool(found.driver)
                yield found

    if wants_json(remote.arguments):
        for now in overviews():
            print(json_text(overview_document(now), indent=0), flush=True)
    elif remote.arguments.live and sys.stdout.isatty() and sys.stdin.isatty():
        show_live_view(overviews(), remote.arguments, remote.ask_driver)
    else:
        for now in overviews():
            for job in now.jobs:
                line = job_line(job, job.since or 0.0)
                if told.get(job.key) != line and (job.state != "planned" or job.key in told):
                    print_line(line)
                told[job.key] = line
    assert found is not None
    return found


def _overviews(remote: RemoteCommand, name: str) -> Iterator[Overview]:
    """How the sweep stands, again and again, as long as somebody drives it. Raises RemoteError."""
    from launcher.cli.sweep_status import status

    values = remote.ask(command="sweep_status:status", name=name, watch=True).value(status)
    if not isinstance(values, Iterator):
        raise RemoteError("it does not tell how the sweep stands", where=remote.name)
    yield from values
