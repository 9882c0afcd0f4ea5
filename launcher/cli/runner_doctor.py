"""`launcher runner new | doctor`: a runner file out of a live cluster, and compared with it."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from launcher.cli.common import session
from launcher.core.errors import ConfigError, suggest
from launcher.core.publish import publish_new, temporary_name
from launcher.core.yaml_source import Document
from launcher.doctor import queries
from launcher.doctor.commands import Commands
from launcher.doctor.comparison import Claim, compare, notes
from launcher.doctor.draft import DraftRequest, draft, todos
from launcher.doctor.facts import SlurmFacts, Unknown
from launcher.doctor.queries import collect, collect_for_draft
from launcher.plan import derive
from launcher.project import Session
from launcher.rehearsal import stand_ins
from launcher.runner.file import RunnerFile


def new(arguments: argparse.Namespace) -> int:
    """Write a first runner file, and say what is left to do."""
    project = session(arguments)
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
    commands = Commands(environ=project.environ)
    slurm = queries.slurm_facts(commands)
    partition = _partition(slurm, arguments.partition)
    account = arguments.account or _account(slurm)
    stand_in = f"{{state}}/rehearsal/{stand_ins.REPOSITORY_NAME}"
    commit = f"ref {stand_ins.REPOSITORY_REF}, sha {stand_ins.REPOSITORY_SHA}"
    request = DraftRequest(name, partition, account, directory, str(project.state), (stand_in, commit))
    facts = collect_for_draft(request, slurm, commands, node=not arguments.no_node, wait=arguments.timeout)
    text = draft(request, facts)
    RunnerFile(
        Document(str(target or "-"), text)
    )  # a draft that does not load is our own error: stop before writing it
    if target is None:
        sys.stdout.write(text)
        return 0
    _publish(target, text)
    print(f"{target} is written. To do:")
    for line, what in todos(text):
        print(f"  {target.name}:{line}: {what}")
    print(f"Next: launcher runner doctor {name}")
    return 0


def _target(arguments: argparse.Namespace, project: Session) -> Path | None:
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


def _partition(slurm: SlurmFacts, requested: str | None) -> str:
    """The requested partition, or Slurm's default one. Raises ConfigError when it is not known."""
    if isinstance(slurm.partitions, Unknown):
        hint = "run it on the cluster's login node, as the user of its GitHub runners; is SLURM_CONF right?"
        raise ConfigError(f"Slurm does not say which partitions there are: {slurm.partitions}", hint=hint)
    names = [p.name for p in slurm.partitions]
    requested = requested and requested.removesuffix("*")  # as sinfo marks the default one
    found = slurm.partition(requested)
    if found is not None:
        return found.name
    if requested is None:
        raise ConfigError("Slurm has no default partition", where="--partition", hint=f"one of {', '.join(names)}")
    meant = suggest(requested, names, f"there are {', '.join(names)}")
    raise ConfigError(f"Slurm shows no partition {requested!r}", where="--partition", hint=meant)


def _account(slurm: SlurmFacts) -> str | None:
    """The user's default account, or the only one there is."""
    if isinstance(slurm.default_account, str):
        return slurm.default_account
    return slurm.accounts[0] if len(slurm.accounts) == 1 else None


def doctor(arguments: argparse.Namespace) -> int:
    """Print one line for each claim of the file. Raises ConfigError when one of them differs from the cluster."""
    project = session(arguments)
    file = project.fleet.get(arguments.name)
    fill = partial(derive.fill, context=project.context("doctor"))
    log = partial(print, file=sys.stderr)

    commands = Commands(environ=project.environ)
    # What a rehearsal runs are the launcher's own programs: this cluster has nothing to say about them.
    stand_ins = ("enroot", "srtctl") if file.runner.tools == "rehearsal" else ()
    facts = collect(
        file, fill, commands, node=not arguments.no_node, wait=arguments.timeout, log=log, stand_ins=stand_ins
    )
    claims, remarks = compare(file, facts, fill), notes(facts)
    counts = {v: sum(c.verdict == v for c in claims) for v in ("agree", "differ", "unknown")}
    if arguments.json:
        value = {"runner": arguments.name, "file": file.path, **counts, "claims": [asdict(c) for c in claims]}
        print(json.dumps({**value, "notes": remarks}, indent=2))
    else:
        _show(claims, remarks)
    text = f"{len(claims)} claims: {counts['agree']} agree, {counts['differ']} differ, {counts['unknown']} unknown"
    if not counts["differ"]:
        print(text, file=sys.stderr if arguments.json else sys.stdout)
        return 0
    sys.stdout.flush()
    hint = "each line that differs says how to fix it"
    raise ConfigError(f"the runner file does not match the cluster: {text}", where=file.path, hint=hint)


def _show(claims: Sequence[Claim], remarks: Sequence[str]) -> None:
    here = Path.cwd()
    for claim in claims:
        path, _, line = claim.where.rpartition(":")
        inside = Path(path).is_absolute() and Path(path).is_relative_to(here)
        where = f"{os.path.relpath(path, here) if inside else path}:{line}"
        print(f"{claim.verdict:7}  {f'{claim.key} {claim.says}':45}  {where}")
        for word, text in (("found", claim.found), ("why", claim.why), ("fix", claim.hint)):
            if text and (claim.verdict != "agree" or word != "found"):
                print(f"           {word}: {text}")
    for text in remarks:
        print(f"note     {text}")
