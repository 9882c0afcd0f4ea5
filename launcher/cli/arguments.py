"""The commands and their arguments. Nothing but argparse: this is what ``launcher --help`` pays for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launcher import __version__

SUMMARY = "Puts LLM-inference benchmarks onto Slurm clusters, and says truthfully how they ended."

_EPILOG = """\
exit codes: 0 done, 2 configuration, 3 image, 4 model, 5 submission, 6 job, 7 results, 130/143 cancelled
"""

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
    _runner(commands)
    _image(commands)
    _model(commands)
    return top


def _command(commands: _Commands, name: str, function: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text)
    command.set_defaults(command=function)
    return command


def _verbs(commands: _Commands, name: str, text: str) -> _Commands:
    return commands.add_parser(name, help=text).add_subparsers(metavar="VERB", required=True)


def _planning(commands: _Commands) -> None:
    plan = _command(commands, "plan", "planning:plan", "say everything that a run would do; touches nothing")
    _selection(plan)
    _from_env(plan, "benchmark")
    plan.add_argument("--json", action="store_true", help="the plan itself, one JSON object per benchmark")

    _matrix(_command(commands, "matrix", "planning:matrix", "the entries that matrix files expand to"))

    check = _command(commands, "check", "planning:check", "what would fail or mismeasure, before a GPU is held")
    _selection(check)
    _from_env(check, "benchmark")
    how = check.add_argument_group("how it is said")
    how.add_argument("--format", choices=["text", "json", "github", "sarif"], default="text", help="default: text")
    how.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    how.add_argument("--rule", nargs="+", default=[], metavar="RULE", help="findings of these rules only")
    how.add_argument("--explain", nargs="?", const="", metavar="RULE", help="a rule's page; all rules without one")
    how.add_argument("--baseline", metavar="FILE", help="leave out the findings that this file accepts")
    how.add_argument("--write-baseline", metavar="FILE", help="accept all errors and warnings as they are now")


def _running(commands: _Commands) -> None:
    run = _command(commands, "run", "running:run", "run one benchmark to its results")
    _selection(run)
    _execution(run, logs=True)

    sweep = _command(commands, "sweep", "running:sweep", "run every selected benchmark, several at once")
    _selection(sweep)
    _execution(sweep, logs=False)
    sweep.add_argument("--max-jobs", type=_positive, default=4, metavar="N", help="jobs at once (default 4)")
    sweep.add_argument("--fail-fast", action="store_true", help="cancel the rest when one fails")

    ci = _command(commands, "ci", "running:ci", "GitHub Actions entrypoint: everything from the environment")
    _places(ci)
    _execution(ci, logs=True)


def _runs(commands: _Commands) -> None:
    status = _command(commands, "status", "runs:status", "runs and how they stand")
    status.add_argument("run", nargs="?", metavar="RUN", help="one run in detail")
    status.add_argument("--json", action="store_true", help="the records as JSON")

    logs = _command(commands, "logs", "runs:logs", "a run's job log")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")

    cancel = _command(
        commands, "cancel", "runs:cancel", "cancel a run's job, and wait until Slurm says that it is gone"
    )
    collect = _command(commands, "collect", "runs:collect", "collect and check a run's results again, from its record")
    for command in (cancel, collect):
        command.add_argument("run", metavar="RUN", nargs="?")
        _from_env(command, "run")
    resume = _command(commands, "resume", "runs:resume", "continue a run where it stopped")
    resume.add_argument("run", metavar="RUN")

    text = "take over a job that was started by hand: follow it, and collect"
    adopt = _command(commands, "adopt", "running:adopt", text)
    adopt.add_argument("job", metavar="JOBID")
    _selection(adopt)
    _from_env(adopt, "benchmark")
    adopt.add_argument("--output", metavar="DIR", help="what srtctl made for the job (default: seen by its log's path)")
    _execution(adopt, logs=True)

    text = "end what a killed launcher left: jobs of runs that nobody drives"
    cleanup = _command(commands, "cleanup", "runs:cleanup", text)
    cleanup.add_argument("run", nargs="?", metavar="RUN", help="this run only, whoever drives it")
    _from_env(cleanup, "run")
    for command in (cancel, collect, resume, cleanup):
        _backend(command)
    for command in (status, logs, cancel, collect, resume, cleanup):
        _places(command)


def _runner(commands: _Commands) -> None:
    verbs = _verbs(commands, "runner", "clusters: what the runner files say")
    listing = _command(verbs, "list", "runner:listing", "all runners")

    show = _command(verbs, "show", "runner:show", "one runner, or which of its rules applies")
    show.add_argument("name", metavar="NAME")
    show.add_argument(
        "--for", dest="case", metavar="PREFIX/PRECISION/FRAMEWORK", help="e.g. minimaxm3/fp8/dynamo-vllm[/agentic]"
    )

    new = _command(verbs, "new", "runner:new", "draft a runner file from what this cluster says of itself")
    new.add_argument("name", metavar="NAME", help="also of its GitHub runners, up to their first underscore")
    new.add_argument("--partition", metavar="NAME", help="default: Slurm's own default")
    new.add_argument("--account", metavar="NAME", help="default: this user's default account")
    new.add_argument("--directory", metavar="DIR", help="where squash files may go: on a shared file system")
    new.add_argument(
        "--output",
        metavar="FILE",
        help="default: NAME.yaml among the runner files; - prints it; an existing file is never replaced",
    )

    doctor = _command(verbs, "doctor", "runner:doctor", "compare a runner file with the cluster that it describes")
    doctor.add_argument("name", metavar="NAME")
    doctor.add_argument("--json", action="store_true", help="claims and notes as JSON")

    for command in (new, doctor):
        command.add_argument("--no-node", action="store_true", help="start no job to look from a compute node")
        command.add_argument(
            "--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="to wait for a node (default 60)"
        )
    for command in (listing, show, new, doctor):
        _places(command)
    _command(verbs, "schema", "runner:schema", "JSON Schema of runner files, for editors")


def _image(commands: _Commands) -> None:
    verbs = _verbs(commands, "image", "container images as squash files: what is there, and having more")

    def verb(name: str, function: str, text: str) -> argparse.ArgumentParser:
        command = _command(verbs, name, f"image:{function}", text)
        which = command.add_argument_group("which directory")
        which.add_argument("--runner", metavar="NAME", help="the image directories of this runner")
        which.add_argument("--directory", metavar="DIR", help="this one")
        _places(command)
        return command

    listing = verb("list", "list_images", "images: size, digest, last use, which live runs have them")
    listing.add_argument("--json", action="store_true")

    importing = verb("import", "import_images", "have images there, whole; at no cost if they are")
    importing.add_argument("references", nargs="+", metavar="REFERENCE")
    importing.add_argument("--moved-tag", choices=["keep", "refresh", "fail"], help="default: as the runner file says")

    verify = verb("verify", "verify", "are the images whole, and what do their tags name now")
    verify.add_argument("images", nargs="*", metavar="FILE", help="file names or paths (default: all)")
    verify.add_argument("--deep", action="store_true", help="read every byte, against the recorded hash")
    verify.add_argument("--offline", action="store_true", help="ask no registry")

    adopt = verb("adopt", "adopt", "record what an image is that somebody else made")
    adopt.add_argument("image", metavar="FILE")
    adopt.add_argument("reference", metavar="REFERENCE")

    gc = verb("gc", "gc", "what nobody needs: unused images, what killed imports left; a dry run unless --apply")
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--grace", type=_days, default=30.0, metavar="DAYS", help="unused for so long (default 30)")

    verbs = _verbs(commands, "doctor", "try out what this cluster's file systems promise")
    text = "do locks hold in a directory, between processes and between nodes"
    locks = _command(verbs, "locks", "image:locks", text)
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
        command = _command(verbs, name, f"model:{function}", text)
        command.add_argument("paths", nargs="*", metavar="PATH")
        command.add_argument("--runner", metavar="NAME", help="all of this runner's table that can be seen from here")
        command.add_argument("--precision", metavar="NAME", help="what the benchmark declares: fp4 fp8 bf16 int4")
        command.add_argument("--json", action="store_true")
        _places(command)

    text = "copy a checkpoint, whole or not at all; goes on where a killed one stopped"
    stage = _command(verbs, "stage", "model:stage", text)
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

    verify = _command(verbs, "verify", "model:verify", "compare a staged checkpoint with its manifest")
    verify.add_argument("path", metavar="PATH")
    verify.add_argument("--deep", action="store_true", help="read and hash every byte")
    verify.add_argument("--workers", type=_positive, default=8, metavar="N", help="files at once (default 8)")

    gc = _command(verbs, "gc", "model:gc", "what dead stagings left; a dry run unless --apply")
    gc.add_argument("paths", nargs="*", metavar="DIRECTORY", help="holds checkpoints")
    gc.add_argument("--runner", metavar="NAME", help="the directories of this runner's table")
    gc.add_argument("--apply", action="store_true", help="remove it")
    _places(gc)


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
    _places(command)


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


def _from_env(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--from-env", action="store_true", help=f"the {what} of this GitHub job's environment")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _number(text: str, least: float, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}")
    return value


def _seconds(text: str) -> float:
    return _number(text, 1, 86400, "seconds from 1 to 86400")


def _days(text: str) -> float:
    return _number(text, 0, 1e6, "days")
