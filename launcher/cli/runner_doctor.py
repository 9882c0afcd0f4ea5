"""`launcher runner new | doctor`: a runner file out of a live cluster, and compared with it."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launcher.cli.common import session
from launcher.core.errors import ConfigError
from launcher.core.publish import publish_new, temporary_name
from launcher.core.suggest import suggest
from launcher.core.yaml_source import Document
from launcher.doctor import queries
from launcher.doctor.collect_cluster_facts import inquire, survey
from launcher.doctor.compare import compare, notes
from launcher.doctor.comparison import Claim
from launcher.doctor.draft import Wanted, draft, todos
from launcher.doctor.facts import Cluster, Unknown
from launcher.doctor.queries import Asking
from launcher.plan import derive
from launcher.project import Session
from launcher.runner.file import RunnerFile


def new(arguments: argparse.Namespace) -> int:
    """Write a first runner file, and say what is left to do."""
    of = session(arguments)
    name = arguments.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        hint = "small letters, digits, . and -; RUNNER_NAME is read up to its first underscore"
        raise ConfigError(f"{name!r} cannot be a runner's name", where="NAME", hint=hint)
    target = _target(arguments, of)
    if target is not None and target.exists():
        raise ConfigError("is there already, and is not replaced", where=str(target), hint="--output FILE, or - to see")
    directory = arguments.directory
    if directory is not None and not directory.startswith("/"):
        raise ConfigError(f"{directory!r} is not absolute", where="--directory")
    asking = Asking(environ=of.environ)
    cluster = queries.cluster(asking)
    partition = _partition(cluster, arguments.partition)
    account = arguments.account or _account(cluster)
    wanted = Wanted(name, partition, account, directory, str(of.state))
    paths = [*([directory] if directory else []), str(of.state)]
    site = survey(asking, cluster, partition, account, paths, node=not arguments.no_node, wait=arguments.timeout)
    text = draft(wanted, site)
    RunnerFile(Document(str(target or "-"), text))  # a draft that does not load is an error of ours, said at once
    if target is None:
        sys.stdout.write(text)
        return 0
    _publish(target, text)
    print(f"{target} is written. To do:")
    for line, what in todos(text):
        print(f"  {target.name}:{line}: {what}")
    print(f"Next: launcher runner doctor {name}")
    return 0


def _target(arguments: argparse.Namespace, of: Session) -> Path | None:
    """The file to write; None for standard output."""
    if arguments.output == "-":
        return None
    if arguments.output:
        return Path(arguments.output)
    directory = of.runners or of.workspace / "runners"
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
        raise ConfigError("is there by now, and is not replaced", where=str(target))


def _partition(cluster: Cluster, asked: str | None) -> str:
    """The partition asked for, or Slurm's default one. Raises ConfigError when it is not known."""
    if isinstance(cluster.partitions, Unknown):
        hint = "run it on the cluster's login node, as the user of its GitHub runners; is SLURM_CONF right?"
        raise ConfigError(f"Slurm does not say which partitions there are: {cluster.partitions}", hint=hint)
    names = [p.name for p in cluster.partitions]
    asked = asked and asked.removesuffix("*")  # as sinfo marks the default one
    found = cluster.partition(asked)
    if found is not None:
        return found.name
    if asked is None:
        raise ConfigError("Slurm has no default partition", where="--partition", hint=f"one of {', '.join(names)}")
    hint = suggest(asked, names, f"there are {', '.join(names)}")
    raise ConfigError(f"Slurm shows no partition {asked!r}", where="--partition", hint=hint)


def _account(cluster: Cluster) -> str | None:
    """The user's default account, or the only one there is."""
    if isinstance(cluster.default_account, str):
        return cluster.default_account
    known = cluster.associations
    accounts = [] if isinstance(known, Unknown) else list(dict.fromkeys(a.account for a in known))
    return accounts[0] if len(accounts) == 1 else None


def doctor(arguments: argparse.Namespace) -> int:
    """One line for each claim of the file. Raises ConfigError when the cluster is otherwise in one of them."""
    of = session(arguments)
    file = of.fleet.get(arguments.name)
    context = of.context("doctor")

    def fill(template: str) -> str:
        return derive.fill(template, context)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    asking = Asking(environ=of.environ)
    site = inquire(file, fill, asking, node=not arguments.no_node, wait=arguments.timeout, say=say)
    claims, said = compare(file, site, fill), notes(site)
    counts = {v: sum(c.verdict == v for c in claims) for v in ("agree", "differ", "unknown")}
    if arguments.json:
        value = {"runner": arguments.name, "file": file.path, **counts, "claims": [asdict(c) for c in claims]}
        print(json.dumps({**value, "notes": said}, indent=2))
    else:
        _show(claims, said)
    text = f"{len(claims)} claims: {counts['agree']} agree, {counts['differ']} differ, {counts['unknown']} unknown"
    if not counts["differ"]:
        print(text, file=sys.stderr if arguments.json else sys.stdout)
        return 0
    sys.stdout.flush()
    hint = "each line that differs says how to mend it"
    raise ConfigError(f"the cluster is otherwise: {text}", where=file.path, hint=hint)


def _show(claims: Sequence[Claim], said: Sequence[str]) -> None:
    here = Path.cwd()
    for claim in claims:
        path, _, line = claim.where.rpartition(":")
        inside = Path(path).is_absolute() and Path(path).is_relative_to(here)
        where = f"{os.path.relpath(path, here) if inside else path}:{line}"
        print(f"{claim.verdict:7}  {f'{claim.key} {claim.says}':45}  {where}")
        for word, text in (("found", claim.found), ("why", claim.why), ("mend", claim.hint)):
            if text and (claim.verdict != "agree" or word != "found"):
                print(f"           {word}: {text}")
    for text in said:
        print(f"note     {text}")
