"""The commands and their arguments. Nothing but argparse: this is what ``launcher --help`` pays for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.cli.flags import (
    RUN,
    ago,
    as_json,
    backend,
    command_of,
    days,
    everywhere,
    execution,
    from_env,
    image_directory,
    logs,
    look,
    positive,
    rows,
    selection,
    states,
    verbs_of,
)
from launcher.cli.parsers import LazyParser
from launcher.cli.sweep_arguments import add_sweep

if TYPE_CHECKING:
    from launcher.cli.flags import Commands


def parser() -> LazyParser:
    """The whole command line. Each command sets ``command`` to ``module:function`` below launcher.cli."""
    top = LazyParser(prog="launcher")
    everywhere(top, top=True)
    top.add_argument("--version", action="version", version=f"launcher {__version__}", help="print it, and leave")
    top.set_defaults(command="helping:first_steps")
    commands = top.add_subparsers(metavar="COMMAND", parser_class=LazyParser)
    _planning(commands)
    _running(commands)
    _runs(commands)
    _results(commands)
    _report(commands)
    _runner(commands)
    _image(commands)
    _model(commands)
    _remote(commands)
    schema = command_of(commands, "schema", "schemas:schema", "the JSON Schema of what a command prints with --json")
    schema.add_argument("names", nargs="*", metavar="COMMAND", help="like `status` or `image list`; all without one")
    _shell(commands)
    return top


def _shell(commands: Commands) -> None:
    version = command_of(commands, "version", "helping:version", "which launcher this is, of which Python, and where")
    version.add_argument("--json", action="store_true", help="as one JSON object")
    topic = command_of(commands, "help", "helping:topic", "a page of the documentation; the topics without one")
    topic.add_argument("topic", nargs="?", metavar="TOPIC", help="a page's name, or a rule of check")
    command_of(commands, "man", "helping:man", "the manual page, for `man -l -`")
    completion = command_of(commands, "completion", "completion:script", "completion for a shell: bash, zsh or fish")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], metavar="SHELL", help="bash, zsh or fish")
    # Without help: only the shells' scripts type it.
    complete = commands.add_parser("complete-words")
    complete.set_defaults(command="completion:complete")
    complete.add_argument("words", nargs=argparse.REMAINDER)


def _planning(commands: Commands) -> None:
    text = "say everything that a run would do; touches nothing"
    plan = command_of(commands, "plan", "planning:plan", text, selection, from_env)
    plan.add_argument("--json", action="store_true", help="the plan itself, one JSON object per benchmark")

    text = "a GitHub job's plan, beside what the checkout's bash launcher would do; nothing is submitted"
    command_of(commands, "shadow", "shadow:shadow", text, as_json)

    _matrix(command_of(commands, "matrix", "planning:matrix", "the entries that matrix files expand to"))

    text = "what would fail or mismeasure, before a GPU is held"
    check = command_of(commands, "check", "checking:check", text, selection, from_env)
    how = check.add_argument_group("output")
    how.add_argument("--format", choices=["text", "json", "github", "sarif"], default="text", help="default: text")
    how.add_argument("--json", action="store_true", help="same as --format json")
    how.add_argument("--rule", nargs="+", default=[], metavar="RULE", help="findings of these rules only")
    how.add_argument("--explain", nargs="?", const="", metavar="RULE", help="a rule's page; all rules without one")
    how.add_argument("--baseline", metavar="FILE", help="leave out the findings that this file accepts")
    how.add_argument("--write-baseline", metavar="FILE", help="accept all errors and warnings as they are now")


def _running(commands: Commands) -> None:
    run = command_of(
        commands, "run", "running:run", "run one benchmark to its results", selection, execution, logs, as_json
    )
    run.add_argument("--yes", action="store_true", help="answers the question about what it can cost")
    run.add_argument("--detach", action="store_true", help="drive it in a process of its own")

    add_sweep(commands)

    text = "GitHub Actions entrypoint: everything from the environment"
    ci = command_of(commands, "ci", "running:ci", text, execution, logs, as_json)
    before = ci.add_argument_group("before the launch step")
    text = "say all that this step lacks, exit 2 if anything; nothing is held"
    before.add_argument(
        "--check-environment", dest="command", action="store_const", const="workflow:check_environment", help=text
    )
    text = f"the workflow that calls this version: {', '.join(WORKFLOWS)}"
    before.add_argument("--print-workflow", action=_Workflow, choices=WORKFLOWS, metavar="NAME", help=text)

    text = "take over a job that was started by hand: follow it, and collect"
    adopt = command_of(commands, "adopt", "running:adopt", text, selection, from_env, execution, logs, as_json)
    adopt.add_argument("job", metavar="JOBID", help="its id in Slurm")
    adopt.add_argument("--output", metavar="DIR", help="what srtctl made for the job (default: seen by its log's path)")


WORKFLOWS = ("multi-node", "single-node", "profile", "speedbench")


class _Workflow(argparse.Action):
    """Another command, about the workflow of this name."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        namespace.command, namespace.print_workflow = "workflow:print_workflow", values


def _runs(commands: Commands) -> None:
    text = "runs and how they stand; RUN in detail"
    status = command_of(commands, "status", "status:status", text, _which_runs, states, as_json)
    status.add_argument("runs", nargs="*", metavar="RUN", help=RUN)

    log = command_of(commands, "logs", "logs:logs", "jobs' logs", as_json)
    log.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    log.add_argument("-f", "--follow", action="store_true", help="go on until the jobs end")

    resume = command_of(
        commands, "resume", "running:resume", "continue runs where they stopped", logs, backend, as_json
    )
    resume.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    resume.add_argument("--detach", action="store_true", help="drive each in a process of its own")
    for module, name, text in (
        ("ending", "cancel", "end runs, also those that wait; wait until Slurm says that their jobs are gone"),
        ("running", "collect", "collect and check runs' results again, from their records"),
        ("ending", "cleanup", "end what a killed launcher left: jobs that nobody drives; with RUN of those runs"),
    ):
        command = command_of(commands, name, f"{module}:{name}", text, from_env, backend, as_json)
        command.add_argument("runs", metavar="RUN", nargs="*", help=RUN)


def _which_runs(command: argparse.ArgumentParser) -> None:
    which = command.add_argument_group("which runs")
    which.add_argument("--limit", type=positive, metavar="N", help="the latest N")
    which.add_argument("--since", type=ago, metavar="30d", help="that began at most so long ago (d, h, w)")
    which.add_argument("--runner", nargs="+", default=[], metavar="NAME", help="on these clusters")


def _results(commands: Commands) -> None:
    text = "the table of results again, of runs and sweeps; `results aggregate`: what InferenceX publishes of them"
    results = command_of(commands, "results", "results:results", text, from_env, as_json)
    text = "runs and sweeps; after the word `aggregate` also a directory of downloaded artifacts"
    results.add_argument("names", nargs="*", metavar="[aggregate] RUN|SWEEP|DIR", help=text)
    results.add_argument("--csv", action="store_true", help="a line for each point, with every metric")
    text = "of what a directory gives: agg_bmk.json, agg_eval_all.json (default: the current directory)"
    results.add_argument("-o", "--output", metavar="DIR", default=".", help=text)


def _report(commands: Commands) -> None:
    text = "what was measured and what was not: a page, tables, JSON, CSV, JUnit; offline"
    report = command_of(commands, "report", "report:report", text)
    text = "run ids, sweeps, state directories, aggregates, downloaded artifacts"
    report.add_argument("sources", nargs="*", metavar="RUN|SWEEP|DIR", help=text)
    report.add_argument("--title", metavar="TEXT", help="default: the names of the sources")
    report.add_argument("-o", "--output", metavar="DIR", default="report", help="of the files (default: ./report)")
    text = "print this one form, and write no file"
    report.add_argument("--format", choices=["text", "json", "csv", "junit", "markdown", "html"], help=text)
    report.add_argument("--json", action="store_true", help="same as --format json")
    text = "what a check that refuses results means; all of them without one"
    report.add_argument("--explain", nargs="?", const="", metavar="RULE", help=text)
    past = report.add_argument_group("the past", "in place of names: all runs of the state directory")
    past.add_argument("--since", type=ago, metavar="30d", help="that began at most so long ago (d, h, w)")
    text = "of these keys of the matrix; globs are taken"
    past.add_argument("-k", "--key", nargs="+", default=[], metavar="KEY", help=text)
    compared = report.add_argument_group(
        "comparison", "the same points of other runs; exit 7 when a threshold is passed"
    )
    text = "what it is compared with; several are measurements of one side"
    compared.add_argument("--against", nargs="+", default=[], metavar="RUN|SWEEP|DIR", help=text)
    text = "how much worse it may be, like tput_per_gpu:-5%%; a missing point fails too"
    compared.add_argument("--fail-on", nargs="+", default=[], metavar="METRIC:-N%", help=text)
    report.add_argument("--schema", action="store_true", help="the JSON Schema of report.json")


def _runner(commands: Commands) -> None:
    verbs = verbs_of(commands, "runner", "clusters: what the runner files say")
    command_of(verbs, "list", "runner:listing", "all runners", as_json)

    show = command_of(verbs, "show", "runner:show", "one runner, or which of its rules applies", as_json)
    show.add_argument("name", metavar="NAME", help="of the runner file")
    text = "e.g. minimaxm3/fp8/dynamo-vllm[/agentic]"
    show.add_argument("--for", dest="case", metavar="PREFIX/PRECISION/FRAMEWORK", help=text)

    text = "draft a runner file from what this cluster says of itself"
    new = command_of(verbs, "new", "runner_doctor:new", text, look, as_json)
    new.add_argument("name", metavar="NAME", help="also of its GitHub runners, up to their first underscore")
    new.add_argument("--partition", metavar="NAME", help="default: Slurm's own default")
    new.add_argument("--account", metavar="NAME", help="default: this user's default account")
    new.add_argument("--directory", metavar="DIR", help="where squash files may go: on a shared file system")
    text = "default: NAME.yaml among the runner files; - prints it; an existing file is never replaced"
    new.add_argument("--output", metavar="FILE", help=text)

    text = "compare a runner file with the cluster that it describes"
    doctor = command_of(verbs, "doctor", "runner_doctor:doctor", text, look, as_json)
    doctor.add_argument("name", metavar="NAME", help="of the runner file")

    command_of(verbs, "schema", "runner:schema", "JSON Schema of runner files, for editors")


def _image(commands: Commands) -> None:
    verbs = verbs_of(commands, "image", "container images as squash files: what is there, and having more")

    text = "images: size, digest, last use, which live runs have them"
    command_of(verbs, "list", "image:list_images", text, image_directory, as_json)

    text = "have images there, whole; at no cost if they are"
    importing = command_of(verbs, "import", "importing:import_images", text, image_directory, as_json)
    importing.add_argument("references", nargs="+", metavar="REFERENCE", help="like vllm/vllm-openai:v0.11.0")
    importing.add_argument("--moved-tag", choices=["keep", "refresh", "fail"], help="default: as the runner file says")
    text = "into this node's own directory, by a job there (again for more nodes)"
    importing.add_argument("--on-node", action="append", default=[], metavar="NODE", help=text)

    text = "are the images whole, and what do their tags name now"
    verify = command_of(verbs, "verify", "image:verify", text, image_directory, as_json)
    verify.add_argument("images", nargs="*", metavar="FILE", help="file names or paths (default: all)")
    verify.add_argument("--deep", action="store_true", help="read every byte, against the recorded hash")
    verify.add_argument("--offline", action="store_true", help="ask no registry")

    text = "record what an image is that somebody else made"
    adopt = command_of(verbs, "adopt", "image:adopt", text, image_directory, as_json)
    adopt.add_argument("image", metavar="FILE", help="a file name or path")
    adopt.add_argument("reference", metavar="REFERENCE", help="what it was made of")

    text = "what nobody needs: unused images, what killed imports left; a dry run unless --apply"
    gc = command_of(verbs, "gc", "image:gc", text, image_directory, as_json)
    gc.add_argument("--apply", action="store_true", help="remove it")
    gc.add_argument("--grace", type=days, default=30.0, metavar="DAYS", help="unused for so long (default 30)")

    verbs = verbs_of(commands, "doctor", "try out what this cluster's file systems promise")
    text = "do locks hold in a directory, between processes and nodes"
    locks = command_of(verbs, "locks", "image:locks", text, as_json)
    locks.add_argument("directory", metavar="DIR", help="where locks are tried")
    locks.add_argument("--partition", metavar="NAME", help="where two nodes are taken for a minute")
    locks.add_argument("--account", metavar="NAME", help="of the job there (default: this user's)")
    locks.add_argument("--no-nodes", action="store_true", help="processes of this host only")


def _remote(commands: Commands) -> None:
    verbs = verbs_of(commands, "remote", "login nodes: reach them, have this launcher there")
    command_of(verbs, "list", "remote:listing", "runners that name their login node", as_json)
    how = command_of(verbs, "install", "remote:install", "have this version there, whole", _login, as_json)
    how.add_argument("--wheels", metavar="DIR", help="wheels for the login node (default: downloaded from here)")
    text = "what a login node has; whether this launcher runs there"
    command_of(verbs, "doctor", "remote:doctor", text, _login, as_json)
    how = command_of(verbs, "gc", "remote:gc", "old versions there; a dry run unless --apply", _login, as_json)
    how.add_argument("--apply", action="store_true", help="remove them")
    how = command_of(verbs, "get", "remote:get", "bring runs and sweeps here, each file whole or not at all", as_json)
    _login(how)
    how.add_argument("names", nargs="+", metavar="RUN|SWEEP", help="as they are called there")
    text = "a state directory: `report --state DIR` reads it (default: below this one's, by NAME)"
    how.add_argument("-o", "--output", metavar="DIR", help=text)
    # Without help: a person never types them.
    commands.add_parser("remote-agent").set_defaults(command="remote:agent")
    commands.add_parser("remote-command").set_defaults(command="detached:command")
    driver = commands.add_parser("driver")
    driver.set_defaults(command="detached:driver")
    driver.add_argument("name")


def _login(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="a runner whose file has `login`, or a host of ssh_config")


def _model(commands: Commands) -> None:
    verbs = verbs_of(commands, "model", "checkpoints: whole? the right one? staged where the job reads it")
    for name, function, text in (
        ("list", "listing", "checkpoints of a runner's table, or below directories"),
        ("check", "check", "whether checkpoints are whole and the declared ones"),
    ):
        command = command_of(verbs, name, f"model:{function}", text, as_json)
        command.add_argument("paths", nargs="*", metavar="PATH", help="checkpoints, or directories of them")
        command.add_argument("--runner", metavar="NAME", help="all of this runner's table that can be seen from here")
        command.add_argument("--precision", metavar="NAME", help="what the benchmark declares: fp4 fp8 bf16 int4")

    text = "copy a checkpoint, whole or not at all; goes on where a killed one stopped"
    stage = command_of(verbs, "stage", "model:stage", text, as_json)
    stage.add_argument("destination", metavar="DESTINATION", help="{node} in it stands for the node's name")
    text = "a directory, or hf:ORG/NAME@COMMIT (default: what is there)"
    stage.add_argument("--from", dest="source", metavar="SOURCE", help=text)
    stage.add_argument("--workers", type=positive, default=8, metavar="N", help="parts at once (default 8)")
    stage.add_argument("--runner", metavar="NAME", help="lay files out on Lustre as this runner's file says")
    nodes = stage.add_argument_group("on nodes, each for itself")
    nodes.add_argument("--job", metavar="ID", help="the nodes of this allocation")
    nodes.add_argument("--nodes", metavar="LIST", help="these nodes; without a job, in an allocation of its own")
    nodes.add_argument("--count", type=positive, default=0, metavar="N", help="N nodes that Slurm picks")
    nodes.add_argument("--partition", metavar="NAME", help="there; without --nodes and --count all of its nodes")
    nodes.add_argument("--account", metavar="NAME", help="of that allocation (default: this user's)")
    nodes.add_argument("--exclude", metavar="NODE[,NODE…]", default="", help="not on these")
    nodes.add_argument("--cpus", type=positive, metavar="N", help="processors on each node (default: Slurm's own)")
    nodes.add_argument("--minutes", type=positive, default=240, metavar="N", help="its time limit (default 240)")
    nodes.add_argument("--python", metavar="PATH", help="the interpreter on the nodes (default: this one's path)")

    text = "compare a staged checkpoint with its manifest"
    verify = command_of(verbs, "verify", "model:verify", text, as_json)
    verify.add_argument("path", metavar="PATH", help="of the checkpoint")
    verify.add_argument("--deep", action="store_true", help="read and hash every byte")
    verify.add_argument("--workers", type=positive, default=8, metavar="N", help="files at once (default 8)")

    gc = command_of(verbs, "gc", "model:gc", "what dead stagings left; a dry run unless --apply", as_json)
    gc.add_argument("paths", nargs="*", metavar="DIRECTORY", help="holds checkpoints")
    gc.add_argument("--runner", metavar="NAME", help="the directories of this runner's table")
    gc.add_argument("--apply", action="store_true", help="remove it")


def _matrix(command: argparse.ArgumentParser) -> None:
    which = rows(command, "which entries")
    which.add_argument("--matrix", nargs="+", default=[], metavar="FILE", help="default: the workspace's masters")
    which.add_argument("--runner", nargs="+", default=[], metavar="LABEL", help="as the rows name it")
    which.add_argument("--model-prefix", nargs="+", default=[], metavar="NAME", help="like minimaxm3")
    nodes = which.add_mutually_exclusive_group()
    nodes.add_argument("--single-node", dest="nodes", action="store_const", const="single", help="of one node only")
    nodes.add_argument("--multi-node", dest="nodes", action="store_const", const="multi", help="of several nodes only")
    evals = which.add_mutually_exclusive_group()
    text = "the evaluation rows alone (default: throughput rows, with those marked that are evaluated too)"
    evals.add_argument("--evals", action="store_const", const="only", default="marked", help=text)
    evals.add_argument("--no-evals", dest="evals", action="store_const", const="none", help="mark none")
    command.add_argument("--json", action="store_true", help="in InferenceX's shape")
