"""The commands and their arguments. Nothing but argparse: this is what ``launcher --help`` pays for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cli import image_arguments, runner_doctor_arguments

SUMMARY = "Puts LLM-inference benchmarks onto Slurm clusters, and says truthfully how they ended."


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each command sets ``command`` to ``module:function`` below launcher.cli."""
    top = argparse.ArgumentParser(prog="launcher", description=SUMMARY, epilog=_EPILOG, formatter_class=_Plain)
    top.add_argument("--version", action="version", version=f"launcher {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _planning(commands)
    _running(commands)
    _runs(commands)
    _runner(commands)
    image_arguments.add(commands, _places)
    _model(commands)
    return top


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


_EPILOG = """\
exit codes: 0 done, 2 configuration, 3 image, 4 model, 5 submission, 6 job, 7 results, 130/143 cancelled
"""

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _planning(commands: _Commands) -> None:
    plan = commands.add_parser("plan", help="say everything that a run would do; touches nothing")
    _selection(plan)
    plan.add_argument("--from-env", action="store_true", help="the benchmark of this GitHub job's environment")
    plan.add_argument("--json", action="store_true", help="the plan itself, one JSON object per benchmark")
    plan.set_defaults(command="planning:plan")

    matrix = commands.add_parser("matrix", help="the entries that matrix files expand to")
    _matrix(matrix)
    matrix.set_defaults(command="matrix:entries")

    check = commands.add_parser("check", help="what would fail or mismeasure, before a GPU is held")
    _selection(check)
    check.add_argument("--from-env", action="store_true", help="the benchmark of this GitHub job's environment")
    how = check.add_argument_group("how it is said")
    how.add_argument("--format", choices=["text", "json", "github", "sarif"], default="text", help="default: text")
    how.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    how.add_argument("--rule", nargs="+", default=[], metavar="RULE", help="findings of these rules only")
    how.add_argument("--explain", nargs="?", const="", metavar="RULE", help="a rule's page; all rules without one")
    how.add_argument("--baseline", metavar="FILE", help="leave out the findings that this file accepts")
    how.add_argument("--write-baseline", metavar="FILE", help="accept all errors and warnings as they are now")
    check.set_defaults(command="checking:check")


def _running(commands: _Commands) -> None:
    run = commands.add_parser("run", help="run one benchmark to its results")
    _selection(run)
    _execution(run, logs=True)
    run.set_defaults(command="running:run")

    sweep = commands.add_parser("sweep", help="run every selected benchmark, several at once")
    _selection(sweep)
    _execution(sweep, logs=False)
    sweep.add_argument("--max-jobs", type=_positive, default=4, metavar="N", help="jobs at once (default 4)")
    sweep.add_argument("--fail-fast", action="store_true", help="cancel the rest when one fails")
    sweep.set_defaults(command="running:sweep")

    ci = commands.add_parser("ci", help="GitHub Actions entrypoint: everything from the environment")
    _places(ci)
    _execution(ci, logs=True)
    ci.set_defaults(command="running:ci")


def _runs(commands: _Commands) -> None:
    status = commands.add_parser("status", help="runs and how they stand")
    status.add_argument("run", nargs="?", metavar="RUN", help="one run in detail")
    status.add_argument("--json", action="store_true", help="the records as JSON")
    _places(status)
    status.set_defaults(command="runs:status")

    logs = commands.add_parser("logs", help="a run's job log")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    _places(logs)
    logs.set_defaults(command="runs:logs")

    for name, text in (
        ("cancel", "cancel a run's job, and wait until Slurm says that it is gone"),
        ("collect", "collect and check a run's results again, from its record"),
        ("resume", "continue a run where it stopped"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="RUN", nargs="?" if name != "resume" else None)
        if name != "resume":
            command.add_argument("--from-env", action="store_true", help="the run of this GitHub job's environment")
        _backend(command)
        _places(command)
        command.set_defaults(command=f"runs:{name}")

    adopt = commands.add_parser("adopt", help="take over a job that was started by hand: follow it, and collect")
    adopt.add_argument("job", metavar="JOBID")
    _selection(adopt)
    adopt.add_argument("--from-env", action="store_true", help="the benchmark of this GitHub job's environment")
    adopt.add_argument("--output", metavar="DIR", help="what srtctl made for the job (default: seen by its log's path)")
    _execution(adopt, logs=True)
    adopt.set_defaults(command="running:adopt")

    cleanup = commands.add_parser("cleanup", help="end what a killed launcher left: jobs of runs that nobody drives")
    cleanup.add_argument("run", nargs="?", metavar="RUN", help="this run only, whoever drives it")
    cleanup.add_argument("--from-env", action="store_true", help="the run of this GitHub job's environment")
    _backend(cleanup)
    _places(cleanup)
    cleanup.set_defaults(command="runs:cleanup")


def _runner(commands: _Commands) -> None:
    runner = commands.add_parser("runner", help="clusters: what the runner files say")
    verbs = runner.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="all runners")
    _places(listing)
    listing.set_defaults(command="runner:listing")
    show = verbs.add_parser("show", help="one runner, or which of its rules applies")
    show.add_argument("name", metavar="NAME")
    show.add_argument(
        "--for", dest="case", metavar="PREFIX/PRECISION/FRAMEWORK", help="e.g. minimaxm3/fp8/dynamo-vllm[/agentic]"
    )
    _places(show)
    show.set_defaults(command="runner:show")
    runner_doctor_arguments.add(verbs, _places)
    schema = verbs.add_parser("schema", help="JSON Schema of runner files, for editors")
    schema.set_defaults(command="runner:schema")


def _model(commands: _Commands) -> None:
    model = commands.add_parser("model", help="checkpoints: whole? the right one? staged where the job reads it")
    verbs = model.add_subparsers(metavar="VERB", required=True)
    for name, function, text in (
        ("list", "listing", "checkpoints of a runner's table, or below directories"),
        ("check", "check", "whether checkpoints are whole and the declared ones"),
    ):
        command = verbs.add_parser(name, help=text)
        command.add_argument("paths", nargs="*", metavar="PATH")
        command.add_argument("--runner", metavar="NAME", help="all of this runner's table that can be seen from here")
        command.add_argument("--precision", metavar="NAME", help="what the benchmark declares: fp4 fp8 bf16 int4")
        command.add_argument("--json", action="store_true")
        _places(command)
        command.set_defaults(command=f"model:{function}")

    stage = verbs.add_parser("stage", help="copy a checkpoint, whole or not at all; goes on where a killed one stopped")
    stage.add_argument("destination", metavar="DESTINATION", help="{node} in it stands for the node's name")
    stage.add_argument(
        "--from", dest="source", metavar="SOURCE", help="a directory, or hf:ORG/NAME@COMMIT (default: what is there)"
    )
    stage.add_argument("--workers", type=_positive, default=8, metavar="N", help="parts at once (default 8)")
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
    stage.add_argument("--runner", metavar="NAME", help="lay files out on Lustre as this runner's file says")
    _places(stage)
    stage.set_defaults(command="model:stage")

    verify = verbs.add_parser("verify", help="compare a staged checkpoint with its manifest")
    verify.add_argument("path", metavar="PATH")
    verify.add_argument("--deep", action="store_true", help="read and hash every byte")
    verify.add_argument("--workers", type=_positive, default=8, metavar="N", help="files at once (default 8)")
    verify.set_defaults(command="model:verify")

    gc = verbs.add_parser("gc", help="what dead stagings left; a dry run unless --apply")
    gc.add_argument("paths", nargs="*", metavar="DIRECTORY", help="holds checkpoints")
    gc.add_argument("--runner", metavar="NAME", help="the directories of this runner's table")
    gc.add_argument("--apply", action="store_true", help="remove it")
    _places(gc)
    gc.set_defaults(command="model:gc")


def _matrix(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which entries")
    which.add_argument("-k", "--key", nargs="+", default=[], metavar="KEY", help="keys of the matrix; globs are taken")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="default: the workspace's masters")
    which.add_argument("--runner", nargs="+", default=[], metavar="LABEL", help="as the rows name it")
    which.add_argument("--framework", nargs="+", default=[], metavar="NAME")
    which.add_argument("--precision", nargs="+", default=[], metavar="NAME")
    which.add_argument("--model-prefix", nargs="+", default=[], metavar="NAME")
    which.add_argument("--seq", nargs="+", default=[], metavar="1k1k", help="sequence lengths")
    which.add_argument("--scenario", choices=["fixed-seq-len", "agentic-coding"])
    which.add_argument("--conc", nargs="+", type=_positive, default=[], metavar="N", help="only these concurrencies")
    nodes = which.add_mutually_exclusive_group()
    nodes.add_argument("--single-node", dest="nodes", action="store_const", const="single")
    nodes.add_argument("--multi-node", dest="nodes", action="store_const", const="multi")
    evals = which.add_mutually_exclusive_group()
    text = "the evaluation rows alone (default: throughput rows, with those marked that are evaluated too)"
    evals.add_argument("--evals", action="store_const", const="only", default="marked", help=text)
    evals.add_argument("--no-evals", dest="evals", action="store_const", const="none", help="mark none")
    command.add_argument("--json", action="store_true", help="in InferenceX's shape")
    _places(command)


def _selection(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which benchmarks")
    which.add_argument("-k", "--key", nargs="+", default=[], metavar="KEY", help="keys of the matrix; globs are taken")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="matrix files (default: found)")
    which.add_argument("--runner", metavar="NAME", help="the cluster (default: the one that serves the row's label)")
    which.add_argument("--framework", nargs="+", default=[], metavar="NAME")
    which.add_argument("--precision", nargs="+", default=[], metavar="NAME")
    which.add_argument("--seq", nargs="+", default=[], metavar="1k1k", help="sequence lengths")
    which.add_argument("--scenario", choices=["fixed-seq-len", "agentic-coding"])
    which.add_argument("--conc", nargs="+", type=_positive, default=[], metavar="N", help="only these concurrencies")
    which.add_argument("--topology", nargs="+", default=[], metavar="GLOB", help="e.g. '2P1D*'; as `plan` shows them")
    which.add_argument("--evals", action="store_true", help="the evaluation rows instead of the throughput rows")
    single = command.add_argument_group("a benchmark without a matrix")
    single.add_argument("--recipe", metavar="FILE[:SELECTOR]", help="what it says is what is measured")
    single.add_argument("--model", metavar="ID", help="Hugging Face id")
    single.add_argument("--model-prefix", metavar="KEY", help="e.g. minimaxm3")
    single.add_argument("--image", metavar="REF", help="default: the recipe's container")
    _places(command)


def _execution(command: argparse.ArgumentParser, *, logs: bool) -> None:
    how = command.add_argument_group("how")
    how.add_argument("--run-id", metavar="ID", help="the run's id (default: made from the time and the benchmark)")
    how.add_argument("--accept", nargs="+", default=[], metavar="RULE", help="run in spite of these findings")
    how.add_argument(
        "--logs",
        action=argparse.BooleanOptionalAction,
        default=logs,
        help=f"stream the job's log (default: {'yes' if logs else 'no'})",
    )
    _backend(command)


def _backend(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--slurm-backend",
        choices=["auto", "commands", "pyslurm"],
        help="how Slurm is asked (default: the runner file's; auto is pyslurm where it fits, else the commands)",
    )


def _places(command: argparse.ArgumentParser) -> None:
    where = command.add_argument_group("where things are")
    where.add_argument("--workspace", metavar="DIR", help="InferenceX checkout (GITHUB_WORKSPACE, or here)")
    where.add_argument("--srt-slurm", metavar="DIR", help="a directory of srt-slurm trees named by ref")
    where.add_argument("--runners", metavar="DIR", help="runner files that come before the shipped ones")
    where.add_argument("--recipes", metavar="DIR", help="recipes that come before the shipped ones")
    where.add_argument("--state", metavar="DIR", help="records and caches (LAUNCHER_STATE, or XDG state directory)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
