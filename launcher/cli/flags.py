"""Flags that several commands share, and how a command is declared. Nothing but argparse is imported."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launcher.cli.parsers import LazyParser

RUN = "a run's id, the beginning of one, or the id of its Slurm job"

YES_OR_NO = argparse.BooleanOptionalAction


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[LazyParser]


def command_of(
    commands: Commands, name: str, function: str, text: str, *shared: Callable[[argparse.ArgumentParser], object]
) -> LazyParser:
    """A command with the arguments that it shares with others."""
    command = commands.add_parser(name, help=text)
    command.set_defaults(command=function)
    command.later = (*shared, everywhere)
    return command


def verbs_of(commands: Commands, name: str, text: str) -> Commands:
    command = commands.add_parser(name, help=text)
    command.later = (everywhere,)
    return command.add_subparsers(metavar="VERB", required=True, parser_class=LazyParser)


def rows(command: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Which rows of a matrix: the flags that all commands about matrices have (`launcher.cli.common.filters`)."""
    which = command.add_argument_group(title)
    which.add_argument("-k", "--key", nargs="+", default=[], metavar="KEY", help="keys of the matrix; globs are taken")
    which.add_argument("--framework", nargs="+", default=[], metavar="NAME", help="like dynamo-vllm, sglang")
    which.add_argument("--precision", nargs="+", default=[], metavar="NAME", help="like fp8")
    which.add_argument("--seq", nargs="+", default=[], metavar="1k1k", help="sequence lengths")
    which.add_argument("--scenario", choices=["fixed-seq-len", "agentic-coding"], help="of this kind only")
    which.add_argument("--conc", nargs="+", type=positive, default=[], metavar="N", help="only these concurrencies")
    return which


def selection(command: argparse.ArgumentParser) -> None:
    which = rows(command, "which benchmarks")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="matrix files (default: found)")
    which.add_argument("--runner", metavar="NAME", help="the cluster (default: the one that serves the row's label)")
    which.add_argument("--topology", nargs="+", default=[], metavar="GLOB", help="e.g. '2P1D*'; as `plan` shows them")
    which.add_argument("--evals", action="store_true", help="the evaluation rows instead of the throughput rows")
    single = command.add_argument_group("a benchmark without a matrix")
    single.add_argument("--recipe", metavar="FILE[:SELECTOR]", help="what it says is what is measured")
    single.add_argument("--model", metavar="ID", help="Hugging Face id")
    single.add_argument("--model-prefix", metavar="KEY", help="e.g. minimaxm3")
    single.add_argument("--image", metavar="REF", help="default: the recipe's container")


def execution(command: argparse.ArgumentParser) -> None:
    how = command.add_argument_group("how")
    how.add_argument("--run-id", metavar="ID", help="the run's id (default: made from the time and the benchmark)")
    how.add_argument("--accept", nargs="+", default=[], metavar="RULE", help="run in spite of these findings")
    backend(command)


def logs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--logs", action=YES_OR_NO, default=True, help="stream the job's log (default: yes)")


def backend(command: argparse.ArgumentParser) -> None:
    text = "how Slurm is asked (default: the runner file's; auto is pyslurm where it fits, else the commands)"
    command.add_argument("--slurm-backend", choices=["auto", "commands", "pyslurm"], help=text)


def everywhere(command: argparse.ArgumentParser, *, top: bool = False) -> None:
    """The flags that stand before the command or after it. Their help is that of `launcher --help` alone; a command
    that has a flag of such a name keeps its own."""
    known = {name for action in command._actions for name in action.option_strings}
    unset: Any = None if top else argparse.SUPPRESS

    def add(group: Any, *names: str, help: str, **more: Any) -> None:
        if known.isdisjoint(names):
            more.setdefault("default", unset)
            group.add_argument(*names, help=help if top else argparse.SUPPRESS, **more)

    where = command.add_argument_group("where things are (before the command, or after it)")
    add(where, "--workspace", metavar="DIR", help="InferenceX checkout (GITHUB_WORKSPACE, or here)")
    add(where, "--srt-slurm", metavar="DIR", help="a directory of srt-slurm trees named by ref")
    add(where, "--runners", metavar="DIR", help="runner files that come before the shipped ones")
    add(where, "--recipes", metavar="DIR", help="recipes that come before the shipped ones")
    add(where, "--state", metavar="DIR", help="records and caches (LAUNCHER_STATE, or XDG state directory)")
    there = command.add_argument_group("on a login node (before the command, or after it)")
    text = "have it done there, through SSH: a runner whose file has `login`, or a host of ssh_config (LAUNCHER_ON)"
    add(there, "--on", metavar="NAME", help=text)
    add(there, "--ssh", metavar="COMMAND", help="an OpenSSH client connects, as `ssh` or 'ssh -F FILE' (LAUNCHER_SSH)")
    add(there, "--accept-new", action="store_true", help="take the key of a host of which none is known")
    how = command.add_argument_group("what is said (before the command, or after it)")
    add(how, "-v", "--verbose", action="store_true", help="every step, every finding")
    add(how, "-q", "--quiet", action="store_true", help="nothing of what goes on: results and errors alone")
    text = "colours in a terminal (auto; NO_COLOR is heeded), always, or never"
    add(how, "--color", choices=["auto", "always", "never"], help=text)


STATES = ("new", "preparing", "submitted", "running", "collecting", "succeeded", "failed", "cancelled", "unreadable")


class _StateOrDirectory(argparse.Action):
    """``--state`` of `status`: a word for how runs stand chooses runs, anything else is the directory as everywhere."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        if values in STATES:
            namespace.states = [*namespace.states, values]
        else:
            namespace.state = values


def states(command: argparse.ArgumentParser) -> None:
    text = f"records and caches, as for every command; or which runs: {', '.join(STATES)}"
    command.add_argument("--state", action=_StateOrDirectory, metavar="DIR|STATE", default=argparse.SUPPRESS, help=text)
    command.set_defaults(states=[])


def as_json(command: argparse.ArgumentParser) -> None:
    """For every command that shows something; `launcher schema` has the form."""
    command.add_argument("--json", action="store_true", help="as JSON; of what goes on, a line each")


def from_env(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from-env", action="store_true", help="what this GitHub job's environment asks for")


def look(command: argparse.ArgumentParser) -> None:
    """How a cluster is looked at."""
    command.add_argument("--no-node", action="store_true", help="start no job to look from a compute node")
    text = "to wait for a node (default 60)"
    command.add_argument("--timeout", type=seconds, default=60.0, metavar="SECONDS", help=text)


def image_directory(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which directory")
    which.add_argument("--runner", metavar="NAME", help="the image directories of this runner")
    which.add_argument("--directory", metavar="DIR", help="this one")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or negative")
    return int(text)


def number(text: str, least: float, most: float, what: str) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) <= most:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")


def seconds(text: str) -> float:
    return number(text, 1, 86400, "seconds from 1 to 86400")


def hours(text: str) -> float:
    return number(text, 1e-6, 1e9, "GPU-hours, more than 0")


def factor(text: str) -> float:
    return number(text, 1, 10, "times, from 1 to 10")


def days(text: str) -> float:
    return number(text, 0, 1e6, "days")


def ago(text: str) -> float:
    """Seconds, of ``30d``, ``12h`` or ``2w``."""
    unit = {"h": 3600, "d": 86400, "w": 7 * 86400}.get(text[-1:])
    if unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 30d, 12h, 2w")
    return unit * number(text[:-1], 0, 1e5, f"{text[-1]} in {text!r}")
