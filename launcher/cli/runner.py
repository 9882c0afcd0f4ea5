"""`launcher runner`: what the runner files say, a new one out of a live cluster, and one compared with its cluster."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from launcher.benchmark.benchmark import AGENTIC, FIXED, Benchmark
from launcher.check.report import Roots
from launcher.cli.common import open_project, tell, tell_refused
from launcher.cli.render import table
from launcher.core.errors import ConfigError
from launcher.core.process import CommandRunner
from launcher.core.publish import publish_new, temporary_name
from launcher.core.terminal import say
from launcher.core.yaml_source import Document
from launcher.doctor import queries
from launcher.doctor.comparison import Claim, Fill, compare, notes
from launcher.doctor.draft import draft, todos
from launcher.doctor.facts import NO_SLURM, ClusterFacts, SlurmFacts, Unknown
from launcher.doctor.programs import clean_runner
from launcher.plan import derive
from launcher.plan.derive import known, last
from launcher.project import Project
from launcher.runner import json_schema
from launcher.runner.file import RunnerFile, describe_when
from launcher.runner.schema import LaneRule, When
from launcher.services import stand_in_programs


def listing(arguments: argparse.Namespace) -> int:
    """One line for each runner."""
    broken: list[ConfigError] = []
    runners = [file.runner for file in open_project(arguments).fleet.readable(broken)]
    rows = [
        [r.name, r.sku, r.node.gpus, r.scheduler.partition or "-", " ".join(r.labels), r.description] for r in runners
    ]
    table(["runner", "sku", "GPUs", "partition", "labels", ""], rows)
    sys.stdout.flush()
    return tell_refused(broken, len(runners), "runner files", "read")


def show(arguments: argparse.Namespace) -> int:
    """One runner: its tables, or the rules that apply to a case, each with its line."""
    file = open_project(arguments).fleet.get(arguments.name)
    if arguments.case:
        cases = {nodes: _benchmark(arguments.case, nodes == "several nodes") for nodes in ("several nodes", "one node")}
        served = {nodes: benchmark for nodes, benchmark in cases.items() if _is_served(file, benchmark)}
        for nodes, benchmark in served.items() or list(cases.items())[:1]:
            if len(served) > 1:
                say(f"on {nodes}:")
            _case(file, benchmark)
        return 0
    r = file.runner
    print(f"{r.name}: {r.description}\n{file.path}")
    print(
        f"scheduler  {r.scheduler.kind}, partition {r.scheduler.partition or '-'}, account {r.scheduler.account or '-'}"
    )
    say(f"nodes      {r.node.gpus} GPUs, {r.node.arch or 'any architecture'}")
    if r.images.directory:
        say(f"images     {r.images.directory}, imported on the {r.images.import_on} node")
    tables: dict[str, list[tuple[When, str]]] = {
        "models": [(m.when, f"{m.path or f'cache {m.cache}'}") for m in r.models],
        "lanes": [(one.when, _runs(one)) for one in r.lanes],
    }
    for title, rules in tables.items():
        say(title)
        for i, (when, what) in enumerate(rules):
            say(f"  {describe_when(when):40} {what}   {file.location(title, i)}")
    for i, node in enumerate(r.exclude_nodes):
        say(f"excluded   {node.node}: {node.reason}   {file.location('exclude-nodes', i)}")
    return 0


def schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of runner files: ``runners/runner.schema.json`` is this output."""
    sys.stdout.write(json_schema.text())
    return 0


_ADJUSTS = ("mounts", "exports", "time_limit")
_OF_CONTAINERS, _OF_SRTCTL = ("workdir",), ("edits", "srtslurm", "preflight", "setup_script", "tags")
"""What an adjustment says for any kind of job, and what for one kind alone."""


def _is_served(file: RunnerFile, benchmark: Benchmark) -> bool:
    """Whether a lane is for it: those in a container are for one node, all others for several."""
    with contextlib.suppress(ConfigError):
        return (file.lane(benchmark).rule.container is None) == benchmark.multinode
    return False


def _runs(lane: LaneRule) -> str:
    """What runs the benchmarks of a lane."""
    if lane.multinode is not None:
        return f"{lane.multinode.engine} on each of several nodes, {lane.multinode.script}"
    if lane.container is None:
        return f"{lane.repository}@{lane.ref}"
    return f"{lane.container.engine}, {' or '.join(lane.container.script.names)}"


def _case(file: RunnerFile, benchmark: Benchmark) -> None:
    model, lane = file.model(benchmark), file.lane(benchmark)
    r = lane.rule
    as_alias = f" as {model.rule.alias}" if model.rule.alias else ""
    say(f"model      {model.rule.path or f'cache {model.rule.cache}'}{as_alias}   {model.where}")
    if own := file.image(benchmark):
        what = own.rule.image or f"in {own.rule.directory or file.runner.images.directory}"
        say(f"image      {what}   {own.where}")
    if r.container is not None or r.multinode is not None:
        say(f"container  {_runs(r)}   {lane.where}")
    else:
        say(f"srt-slurm  {file.runner.repositories[r.repository]} {r.ref} ({r.sha or 'not pinned'})   {lane.where}")
    for overlay in r.overlays:
        say(f"overlay    {overlay.source} → {overlay.destination or 'recipes/' + overlay.source}")
    if r.setup_script:
        say(f"set-up     {r.setup_script}")
    ours = r.container or r.multinode
    own_limit = ours.allocation.time_limit if ours is not None else r.time_limit
    limit = last([own_limit, *(a.rule.time_limit for a in file.adjustments(benchmark))], None)
    limit = limit or file.runner.scheduler.time_limit or "the partition's"
    say(f"time limit {limit}{'' if ours is not None else ', where the recipe says none'}")
    names = (*_ADJUSTS, *(_OF_SRTCTL if ours is None else _OF_CONTAINERS))
    for applied in file.adjustments(benchmark):
        if what := ", ".join(name for name in names if getattr(applied.rule, name) not in (None, {}, [])):
            say(f"adjusts    {what.replace('_', '-')}: {applied.rule.reason or '-'}   {applied.where}")
    for excluded in file.excluded(benchmark):
        say(f"excludes   {excluded.rule.node}: {excluded.rule.reason}   {excluded.where}")
    for finding in known([model, lane, *([own] if own else []), *file.adjustments(benchmark)]):
        say(f"known      {finding.severity}: {finding.message}   {finding.where}")


def _benchmark(case: str, multinode: bool) -> Benchmark:
    """A benchmark as far as rules look at it: ``prefix/precision/framework[/agentic]``."""
    parts = case.split("/")
    if len(parts) not in (3, 4) or (len(parts) == 4 and parts[3] not in ("agentic", "fixed")):
        raise ConfigError(f"{case!r} is not PREFIX/PRECISION/FRAMEWORK[/agentic]", where="--for")
    return Benchmark(
        exp_name=parts[0],
        image="any/image:any",
        model="any/model",
        model_prefix=parts[0],
        precision=parts[1],
        framework=parts[2],
        runner="",
        concurrencies=(),
        multinode=multinode,
        scenario=AGENTIC if parts[3:] == ["agentic"] else FIXED,
        source="--for",
    )


def new(arguments: argparse.Namespace) -> int:
    """Write a first runner file, and say what is left to do."""
    project = open_project(arguments)
    name = arguments.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        hint = "small letters, digits, . and -; RUNNER_NAME is read up to its first underscore"
        raise ConfigError(f"{name!r} cannot be a runner's name", where="NAME", hint=hint)
    target = _target(arguments, project)
    if target is not None and target.exists():
        raise ConfigError("exists; use --output to write another file", where=str(target), hint="--output - prints it")
    directory = arguments.directory
    if directory is not None and not directory.startswith("/"):
        raise ConfigError(f"{directory!r} is not absolute", where="--directory")
    run = clean_runner(project.environ)
    slurm = queries.slurm_facts(run)
    # A name may be given as sinfo shows that of the default partition, with an asterisk.
    partition = slurm.partition(arguments.partition and arguments.partition.removesuffix("*"))
    if isinstance(partition, Unknown):
        hint = "run it on the cluster's login node, as the user of its GitHub runners; is SLURM_CONF right?"
        raise ConfigError(partition.why, where="--partition", hint=partition.hint or hint)
    default = slurm.default_account if isinstance(slurm.default_account, str) else None
    account = arguments.account or default or (slurm.accounts[0] if len(slurm.accounts) == 1 else None)
    fill = partial(derive.fill, context=project.context("doctor"))
    unseen = ClusterFacts(slurm, partition_name=partition.name)
    first = RunnerFile(Document(f"{name}.yaml", draft(name, account, directory, fill, unseen)))
    text = draft(name, account, directory, fill, _look(arguments, first, slurm, fill, run))
    if target is None:
        sys.stdout.write(text)
        return 0
    _publish(target, text)
    say(f"{target} is written. To do:")
    for line, what in todos(text):
        say(f"  {target.name}:{line}: {what}")
    say(f"Next: launcher runner doctor {name}")
    return 0


def _target(arguments: argparse.Namespace, project: Project) -> Path | None:
    """The file to write; None for standard output."""
    if arguments.output == "-":
        return None
    if arguments.output:
        return Path(arguments.output)
    directory = project.runners or project.workspace / "runners"
    if not directory.is_dir():
        raise ConfigError(
            "there is no directory of runner files here", where=str(directory), hint="--runners DIR, or --output FILE"
        )
    return directory / f"{arguments.name}.yaml"


def _publish(target: Path, text: str) -> None:
    temporary = temporary_name(target)
    try:
        temporary.write_text(text, encoding="utf-8")
        ours = publish_new(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(target)) from None
    if not ours:
        raise ConfigError("exists; use --output to write another file", where=str(target))


def doctor(arguments: argparse.Namespace) -> int:
    """Print one line for each claim of the file. Raises ConfigError when one of them differs from the cluster."""
    project = open_project(arguments)
    file = project.fleet.get(arguments.name)
    fill = partial(derive.fill, context=project.context("doctor"))
    run = clean_runner(project.environ)
    slurm = queries.slurm_facts(run) if file.runner.scheduler.kind == "slurm" else NO_SLURM
    facts = _look(arguments, file, slurm, fill, run)
    facts = queries.with_locks_and_refs(file, facts, fill, run)
    # Stand-ins are the launcher's own programs: this cluster has nothing to say about them.
    facts = replace(facts, stand_ins=stand_in_programs(file.runner.tools))
    if not facts.stand_ins:
        facts = queries.with_import(file, facts, fill, run, wait=arguments.timeout)
    claims, remarks = compare(file, facts, fill), notes(facts)
    counts = {v: sum(c.verdict == v for c in claims) for v in ("agree", "differ", "unknown")}
    if arguments.json:
        value = {"runner": arguments.name, "file": file.path, **counts, "claims": [asdict(c) for c in claims]}
        print(json.dumps({**value, "notes": remarks}, indent=2))
    else:
        _show(claims, remarks)
    text = f"{len(claims)} claims: {counts['agree']} agree, {counts['differ']} differ, {counts['unknown']} unknown"
    if not counts["differ"]:
        say(text, file=sys.stderr if arguments.json else sys.stdout)
        return 0
    sys.stdout.flush()
    hint = "each line that differs says how to fix it"
    raise ConfigError(f"the runner file does not match the cluster: {text}", where=file.path, hint=hint)


def _look(
    arguments: argparse.Namespace, file: RunnerFile, slurm: SlurmFacts, fill: Fill, run: CommandRunner
) -> ClusterFacts:
    node, wait = not arguments.no_node, arguments.timeout
    return queries.cluster_facts(file, slurm, fill, run, node=node, wait=wait, log=tell)


def _show(claims: Sequence[Claim], remarks: Sequence[str]) -> None:
    here = Roots([Path.cwd()])
    for claim in claims:
        path, _, line = claim.where.rpartition(":")
        where = f"{here.short(path)}:{line}"
        say(f"{claim.verdict:7}  {f'{claim.key} {claim.says}':45}  {where}")
        for word, text in (("found", claim.found), ("why", claim.why), ("fix", claim.hint)):
            if text and (claim.verdict != "agree" or word != "found"):
                say(f"           {word}: {text}")
    for text in remarks:
        say(f"note     {text}")
