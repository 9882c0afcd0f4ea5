"""The commands and their arguments. Nothing but argparse: this is what ``launcher --help`` pays for."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher import __version__

SUMMARY = "Puts LLM-inference benchmarks onto Slurm clusters, and says truthfully how they ended."

_EPILOG = """\
exit codes: 0 done, 2 configuration, 3 image, 4 model, 5 submission, 6 job, 7 results, 130/143 cancelled
"""

_YES_OR_NO = argparse.BooleanOptionalAction

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each command sets ``command`` to ``module:function`` below launcher.cli."""
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="launcher", description=SUMMARY, epilog=_EPILOG, formatter_class=plain)
    top.add_argument("--version", action="version", version=f"launcher {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _planning(commands)
    _running(commands)
    _runs(commands)
    _report(commands)
    _runner(commands)
    _image(commands)
    _model(commands)
    return top


def _command(
    commands: _Commands, name: str, function: str, text: str, *shared: Callable[[argparse.ArgumentParser], object]
) -> argparse.ArgumentParser:
    """A command with the arguments that it shares with others."""
    command = commands.add_parser(name, help=text)
    command.set_defaults(command=function)
    for add in shared:
        add(command)
    return command


def _verbs(commands: _Commands, name: str, text: str) -> _Commands:
    return commands.add_parser(name, help=text).add_subparsers(metavar="VERB", required=True)


def _planning(commands: _Commands) -> None:
    text = "say everything that a run would do; touches nothing"
    plan = _command(commands, "plan", "planning:plan", text, _selection, _from_env, _places)
    plan.add_argument("--json", action="store_true", help="the plan itself, one JSON object per benchmark")

    _matrix(_command(commands, "matrix", "planning:matrix", "the entries that matrix files expand to", _places))

    text = "what would fail or mismeasure, before a GPU is held"
    check = _command(commands, "check", "checking:check", text, _selection, _from_env, _places)
    how = check.add_argument_group("output")
    how.add_argument("--format", choices=["text", "json", "github", "sarif"], default="text", help="default: text")
    how.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    how.add_argument("--rule", nargs="+", default=[], metavar="RULE", help="findings of these rules only")
    how.add_argument("--explain", nargs="?", const="", metavar="RULE", help="a rule's page; all rules without one")
    how.add_argument("--baseline", metavar="FILE", help="leave out the findings that this file accepts")
    how.add_argument("--write-baseline", metavar="FILE", help="accept all errors and warnings as they are now")


def _running(commands: _Commands) -> None:
    _command(commands, "run", "running:run", "run one benchmark to its results", _selection, _execution, _logs)

    text = "run every selected benchmark, several at once"
    sweep = _command(commands, "sweep", "running:sweep", text, _selection, _execution)
    sweep.add_argument("--logs", action=_YES_OR_NO, default=False, help="stream the jobs' logs (default: no)")
    sweep.add_argument("--max-jobs", type=_positive, default=4, metavar="N", help="jobs at once (default 4)")
    sweep.add_argument("--fail-fast", action="store_true", help="cancel the rest when one fails")

    text = "GitHub Actions entrypoint: everything from the environment"
    _command(commands, "ci", "running:ci", text, _execution, _logs)

    text = "take over a job that was started by hand: follow it, and collect"
    adopt = _command(commands, "adopt", "running:adopt", text, _selection, _from_env, _execution, _logs)
    adopt.add_argument("job", metavar="JOBID")
    adopt.add_argument("--output", metavar="DIR", help="what srtctl made for the job (default: seen by its log's path)")


def _runs(commands: _Commands) -> None:
    status = _command(commands, "status", "status:status", "runs and how they stand", _places)
    status.add_argument("run", nargs="?", metavar="RUN", help="one run in detail")
    status.add_argument("--json", action="store_true", help="the records as JSON")

    logs = _command(commands, "logs", "logs:logs", "a run's job log", _places)
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")

    resume = _command(commands, "resume", "running:resume", "continue a run where it stopped", _backend, _places)
    resume.add_argument("run", metavar="RUN")
    for module, name, many, text in (
        ("ending", "cancel", "*", "end runs, also those that wait; wait until Slurm says that their jobs are gone"),
        ("running", "collect", "?", "collect and check a run's results again, from its record"),
        ("ending", "cleanup", "?", "end what a killed launcher left: jobs that nobody drives; with RUN of that one"),
    ):
        command = _command(commands, name, f"{module}:{name}", text, _from_env, _backend, _places)
        command.add_argument("run", metavar="RUN", nargs=many)


def _report(commands: _Commands) -> None:
    text = "what was measured and what was not: a page, tables, JSON, CSV, JUnit; offline"
    report = _command(commands, "report", "report:report", text, _places)
    text = "run ids, sweeps, state directories, aggregates, downloaded artifacts"
    report.add_argument("sources", nargs="*", metavar="RUN|SWEEP|DIR", help=text)
    report.add_argument("--title", metavar="TEXT", help="default: the names of the sources")
    report.add_argument("-o", "--output", metavar="DIR", default="report", help="of the files (default: ./report)")
    text = "print this one form, and write no file"
    report.add_argument("--format", choices=["text", "json", "csv", "junit", "markdown", "html"], help=text)
    report.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    report.add_argument("--schema", action="store_true", help="the JSON Schema of report.json")


def _runner(commands: _Commands) -> None:
    verbs = _verbs(commands, "runner", "clusters: what the runner files say")
    _command(verbs, "list", "runner:listing", "all runners", _places)

    show = _command(verbs, "show", "runner:show", "one runner, or which of its rules applies", _places)
    show.add_argument("name", metavar="NAME")
    text = "e.g. minimaxm3/fp8/dynamo-vllm[/agentic]"
    show.add_argument("--for", dest="case", metavar="PREFIX/PRECISION/FRAMEWORK", help=text)

    text = "draft a runner file from what this cluster says of itself"
    new = _command(verbs, "new", "runner:new", text, _places, _look)
    new.add_argument("name", metavar="NAME", help="also of its GitHub runners, up to their first underscore")
    new.add_argument("--partition", metavar="NAME", help="default: Slurm's own default")
    new.add_argument("--account", metavar="NAME", help="default: this user's default account")
    new.add_argument("--directory", metavar="DIR", help="where squash files may go: on a shared file system")
    text = "default: NAME.yaml among the runner files; - prints it; an existing file is never replaced"
    new.add_argument("--output", metavar="FILE", help=text)

    text = "compare a runner file with the cluster that it describes"
    doctor = _command(verbs, "doctor", "runner:doctor", text, _places, _look)
    doctor.add_argument("name", metavar="NAME")
    doctor.add_argument("--json", action="store_true", help="claims and notes as JSON")

    _command(verbs, "schema", "runner:schema", "JSON Schema of runner files, for editors")


def _image(commands: _Commands) -> None:
    verbs = _verbs(commands, "image", "container images as squash files: what is there, and having more")

    text = "images: size, digest, last use, which live runs have them"
    listing = _command(verbs, "list", "image:list_images", text, _image_directory, _places)
    listing.add_argument("--json", action="store_true")

    text = "have images there, whole; at no cost if they are"
    importing = _command(verbs, "import", "image:import_images", text, _image_directory, _places)
    importing.add_argument("references", nargs="+", metavar="REFERENCE")
    importing.add_argument("--moved-tag", choices=["keep", "refresh", "fail"], help="default: as the runner file says")
    text = "into this node's own directory, by a job there (again for more nodes)"
    importing.add_argument("--on-node", action="append", default=[], metavar="NODE", help=text)

    text = "are the images whole, and what do their tags name now"
    verify = _command(verbs, "verify", "image:verify", text, _image_directory, _places)
    verify.add_argument("images", nargs="*", metavar="FILE", help="file names or paths (default: all)")
    verify.add_argument("--deep", action="store_true", help="read every byte, against the recorded hash")
    verify.add_argument("--offline", action="store_true", help="ask no registry")

    text = "record what an image is that somebody else made"
    adopt = _command(verbs, "adopt", "image:adopt", text, _image_directory, _places)
    adopt.add_argument("image", metavar="FILE")
    adopt.add_argument("reference", metavar="REFERENCE")

    text = "what nobody needs: unused images, what killed imports left; a dry run unless --apply"
    gc = _command(verbs, "gc", "image:gc", text, _image_directory, _places)
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--grace", type=_days, default=30.0, metavar="DAYS", help="unused for so long (default 30)")

    verbs = _verbs(commands, "doctor", "try out what this cluster's file systems promise")
    locks = _command(verbs, "locks", "image:locks", "do locks hold in a directory, between processes and between nodes")
    locks.add_argument("directory", metavar="DIR")
    locks.add_argument("--partition", metavar="NAME", help="where two nodes are taken for a minute")
    locks.add_argument("--account", metavar="NAME")
    locks.add_argument("--no-nodes", action="store_true", help="processes of this host only")
    locks.add_argument("--json", action="store_true")


def _model(commands: _Commands) -> None:
    verbs = _verbs(commands, "model", "checkpoints: whole? the right one? staged where the job reads it")
    for name, function, text in (
        ("list", "listing", "checkpoints of a runner's table, or below directories"),
        ("check", "check", "whether checkpoints are whole and the declared ones"),
    ):
        command = _command(verbs, name, f"model:{function}", text, _places)
        command.add_argument("paths", nargs="*", metavar="PATH")
        command.add_argument("--runner", metavar="NAME", help="all of this runner's table that can be seen from here")
        command.add_argument("--precision", metavar="NAME", help="what the benchmark declares: fp4 fp8 bf16 int4")
        command.add_argument("--json", action="store_true")

    text = "copy a checkpoint, whole or not at all; goes on where a killed one stopped"
    stage = _command(verbs, "stage", "model:stage", text, _places)
    stage.add_argument("destination", metavar="DESTINATION", help="{node} in it stands for the node's name")
    text = "a directory, or hf:ORG/NAME@COMMIT (default: what is there)"
    stage.add_argument("--from", dest="source", metavar="SOURCE", help=text)
    stage.add_argument("--workers", type=_positive, default=8, metavar="N", help="parts at once (default 8)")
    stage.add_argument("--runner", metavar="NAME", help="lay files out on Lustre as this runner's file says")
    nodes = stage.add_argument_group("on nodes, each for itself")
    nodes.add_argument("--job", metavar="ID", help="the nodes of this allocation")
    nodes.add_argument("--nodes", metavar="LIST", help="these nodes; without a job, in an allocation of its own")
    nodes.add_argument("--count", type=_positive, default=0, metavar="N", help="N nodes that Slurm picks")
    nodes.add_argument("--partition", metavar="NAME", help="there; without --nodes and --count all of its nodes")
    nodes.add_argument("--account", metavar="NAME")
    nodes.add_argument("--exclude", metavar="NODE[,NODE…]", default="", help="not on these")
    nodes.add_argument("--cpus", type=_positive, metavar="N", help="processors on each node (default: Slurm's own)")
    nodes.add_argument("--minutes", type=_positive, default=240, metavar="N", help="its time limit (default 240)")
    nodes.add_argument("--python", metavar="PATH", help="the interpreter on the nodes (default: this one's path)")
    nodes.add_argument("--json", action="store_true", help="the nodes' results as JSON")

    verify = _command(verbs, "verify", "model:verify", "compare a staged checkpoint with its manifest")
    verify.add_argument("path", metavar="PATH")
    verify.add_argument("--deep", action="store_true", help="read and hash every byte")
    verify.add_argument("--workers", type=_positive, default=8, metavar="N", help="files at once (default 8)")

    gc = _command(verbs, "gc", "model:gc", "what dead stagings left; a dry run unless --apply", _places)
    gc.add_argument("paths", nargs="*", metavar="DIRECTORY", help="holds checkpoints")
    gc.add_argument("--runner", metavar="NAME", help="the directories of this runner's table")
    gc.add_argument("--apply", action="store_true", help="remove it")


def _matrix(command: argparse.ArgumentParser) -> None:
    which = _rows(command, "which entries")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="default: the workspace's masters")
    which.add_argument("--runner", nargs="+", default=[], metavar="LABEL", help="as the rows name it")
    which.add_argument("--model-prefix", nargs="+", default=[], metavar="NAME")
    nodes = which.add_mutually_exclusive_group()
    nodes.add_argument("--single-node", dest="nodes", action="store_const", const="single")
    nodes.add_argument("--multi-node", dest="nodes", action="store_const", const="multi")
    evals = which.add_mutually_exclusive_group()
    text = "the evaluation rows alone (default: throughput rows, with those marked that are evaluated too)"
    evals.add_argument("--evals", action="store_const", const="only", default="marked", help=text)
    evals.add_argument("--no-evals", dest="evals", action="store_const", const="none", help="mark none")
    command.add_argument("--json", action="store_true", help="in InferenceX's shape")


def _rows(command: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Which rows of a matrix: the flags that all commands about matrices have (`launcher.cli.common.filters`)."""
    which = command.add_argument_group(title)
    which.add_argument("-k", "--key", nargs="+", default=[], metavar="KEY", help="keys of the matrix; globs are taken")
    which.add_argument("--framework", nargs="+", default=[], metavar="NAME")
    which.add_argument("--precision", nargs="+", default=[], metavar="NAME")
    which.add_argument("--seq", nargs="+", default=[], metavar="1k1k", help="sequence lengths")
    which.add_argument("--scenario", choices=["fixed-seq-len", "agentic-coding"])
    which.add_argument("--conc", nargs="+", type=_positive, default=[], metavar="N", help="only these concurrencies")
    return which


def _selection(command: argparse.ArgumentParser) -> None:
    which = _rows(command, "which benchmarks")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="matrix files (default: found)")
    which.add_argument("--runner", metavar="NAME", help="the cluster (default: the one that serves the row's label)")
    which.add_argument("--topology", nargs="+", default=[], metavar="GLOB", help="e.g. '2P1D*'; as `plan` shows them")
    which.add_argument("--evals", action="store_true", help="the evaluation rows instead of the throughput rows")
    single = command.add_argument_group("a benchmark without a matrix")
    single.add_argument("--recipe", metavar="FILE[:SELECTOR]", help="what it says is what is measured")
    single.add_argument("--model", metavar="ID", help="Hugging Face id")
    single.add_argument("--model-prefix", metavar="KEY", help="e.g. minimaxm3")
    single.add_argument("--image", metavar="REF", help="default: the recipe's container")


def _execution(command: argparse.ArgumentParser) -> None:
    how = command.add_argument_group("how")
    how.add_argument("--run-id", metavar="ID", help="the run's id (default: made from the time and the benchmark)")
    how.add_argument("--accept", nargs="+", default=[], metavar="RULE", help="run in spite of these findings")
    _backend(command)
    _places(command)


def _logs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--logs", action=_YES_OR_NO, default=True, help="stream the job's log (default: yes)")


def _backend(command: argparse.ArgumentParser) -> None:
    text = "how Slurm is asked (default: the runner file's; auto is pyslurm where it fits, else the commands)"
    command.add_argument("--slurm-backend", choices=["auto", "commands", "pyslurm"], help=text)


def _places(command: argparse.ArgumentParser) -> None:
    where = command.add_argument_group("where things are")
    where.add_argument("--workspace", metavar="DIR", help="InferenceX checkout (GITHUB_WORKSPACE, or here)")
    where.add_argument("--srt-slurm", metavar="DIR", help="a directory of srt-slurm trees named by ref")
    where.add_argument("--runners", metavar="DIR", help="runner files that come before the shipped ones")
    where.add_argument("--recipes", metavar="DIR", help="recipes that come before the shipped ones")
    where.add_argument("--state", metavar="DIR", help="records and caches (LAUNCHER_STATE, or XDG state directory)")


def _from_env(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from-env", action="store_true", help="what this GitHub job's environment asks for")


def _look(command: argparse.ArgumentParser) -> None:
    """How a cluster is looked at."""
    command.add_argument("--no-node", action="store_true", help="start no job to look from a compute node")
    text = "to wait for a node (default 60)"
    command.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS", help=text)


def _image_directory(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which directory")
    which.add_argument("--runner", metavar="NAME", help="the image directories of this runner")
    which.add_argument("--directory", metavar="DIR", help="this one")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _number(text: str, least: float, most: float, what: str) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) <= most:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")


def _seconds(text: str) -> float:
    return _number(text, 1, 86400, "seconds from 1 to 86400")


def _days(text: str) -> float:
    return _number(text, 0, 1e6, "days")
