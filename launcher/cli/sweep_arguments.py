"""The arguments of `launcher sweep` and its verbs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launcher.cli.flags import (
    YES_OR_NO,
    as_json,
    backend,
    command_of,
    count,
    days,
    execution,
    factor,
    hours,
    positive,
    selection,
)
from launcher.cli.parsers import LazyParser, Verbs

if TYPE_CHECKING:
    from launcher.cli.flags import Commands


def add_sweep(commands: Commands) -> None:
    text = "many benchmarks with a name and a ledger; without a verb: start, in the foreground"
    sweep = command_of(commands, "sweep", "sweeping:start", text, selection, execution, _policy, as_json)
    sweep.later = (*sweep.later, _verbs)


def _verbs(sweep: argparse.ArgumentParser) -> None:
    verbs = sweep.add_subparsers(metavar="VERB", parser_class=LazyParser, action=Verbs)
    text = "points, jobs, cost, expected end, and what is done already; starts nothing"
    command_of(verbs, "plan", "sweeping:plan", text, selection, execution, _policy, as_json)
    text = "make a sweep of what is selected, and drive it"
    command_of(verbs, "start", "sweeping:start", text, selection, execution, _policy, as_json)

    status = command_of(verbs, "status", "sweep_status:status", "how a sweep stands, one line a job", as_json)
    status.add_argument("name", nargs="?", metavar="SWEEP", help="default: the latest")
    status.add_argument("--watch", action="store_true", help="again and again, as long as somebody drives it")

    text = "go on: living jobs first, then what has no valid result"
    resume = command_of(verbs, "resume", "sweeping:resume", text, _sweep_name, _driving, backend, as_json)
    resume.add_argument("--retry-failed", action="store_true", help="what failed, too")
    resume.add_argument("--anyway", action="store_true", help="also what the breaker holds")
    resume.add_argument("--explain", action="store_true", help="why each point counts as done or not")
    resume.add_argument("--take-over", action="store_true", help="from a driver elsewhere, once it is proven gone")
    for verb, text in (
        ("pause", "begin nothing more, until go-on"),
        ("go-on", "end a pause"),
        ("drain", "begin nothing more; the driver leaves when what runs is collected"),
        ("stop", "the driver leaves now; jobs live on, and resume takes them over"),
        ("cancel", "end all jobs of the sweep"),
    ):
        command = command_of(verbs, verb, "sweep_asking:ask", text, _sweep_name, backend, as_json)
        command.set_defaults(verb=verb)
        if verb in ("pause", "go-on", "drain"):
            command.add_argument("--runner", dest="of_runner", metavar="NAME", help="of this runner alone")
    add = command_of(verbs, "add", "sweep_asking:add", "append points to each topology", _sweep_name, as_json)
    add.add_argument("--conc", nargs="+", type=positive, required=True, metavar="N", help="these concurrencies")
    add.add_argument("--topology", nargs="+", default=[], metavar="GLOB", help="of these topologies only")
    command_of(verbs, "list", "sweep_status:listing", "all sweeps", as_json)
    text = "remove what nobody needs; a dry run unless --apply. Runs and results stay"
    gc = command_of(verbs, "gc", "sweep_asking:gc", text, as_json)
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--grace", type=days, default=90.0, metavar="DAYS", help="ledgers older than this (default 90)")


def _sweep_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="SWEEP", help="its id, as `launcher sweep list` has it")


def _policy(command: argparse.ArgumentParser) -> None:
    how = command.add_argument_group("the sweep")
    how.add_argument("--name", metavar="SWEEP", help="default: made from the time")
    how.add_argument("--max-jobs", type=positive, default=4, metavar="N", help="jobs at once (default 4)")
    how.add_argument("--max-nodes", type=positive, metavar="N", help="nodes at once")
    how.add_argument("--max-gpu-hours", type=hours, metavar="H", help="GPU-hours in all: nothing begins beyond")
    text = "auto: of each runner and image the cheapest point first; the others once it is good"
    how.add_argument("--canary", default="off", metavar="auto|JOB|off", help=text)
    text = "begin nothing more after N failures (1), or one of a layer"
    how.add_argument("--fail-fast", nargs="?", const="1", metavar="N|LAYER", help=text)
    how.add_argument("--fail-fast-cancel", action="store_true", help="then end what runs, too")
    orders = ["spread", "given", "short-first", "long-first", "score"]
    how.add_argument("--order", choices=orders, default="spread", help="default: one of each topology, then the next")
    how.add_argument("--retries", type=count, metavar="N", help="further attempts in all (a tenth of the jobs, or 2)")
    how.add_argument("--retry-timeout", type=factor, metavar="FACTOR", help="once more with FACTOR times the limit")
    how.add_argument("--confirm", action="store_true", help="one further attempt where a server failed")
    how.add_argument("--reuse", nargs="+", default=[], metavar="SWEEP", help="take over valid points of these sweeps")
    how.add_argument("--notify", metavar="COMMAND", help="is run at each end; facts are in LAUNCHER_… variables")
    how.add_argument("--logs", action=YES_OR_NO, default=False, help="stream the jobs' logs (default: no)")
    _driving(command)


def _driving(command: argparse.ArgumentParser) -> None:
    command.add_argument("--detach", action="store_true", help="drive it in a process of its own")
    command.add_argument("--detach-on-interrupt", action="store_true", help="Ctrl-C leaves, and jobs live on")
    command.add_argument("--live", action=YES_OR_NO, default=True, help="a live view, in a terminal (default: yes)")
    command.add_argument("--yes", action="store_true", help="answers questions")
