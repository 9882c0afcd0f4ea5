"""A first runner file from the facts of a cluster: every line says how it is known, or what is left to do. Pure.

Its text is in draft.yaml, with names for the values that are found here. What is known of a value is what the doctor
says of the file when it compares it with the same facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from string import Template
from typing import Any

import msgspec

from launcher.core.yaml_source import Document
from launcher.doctor.comparison import Claim, Fill, compare
from launcher.doctor.facts import ClusterFacts, Mount, Unknown, known, listed
from launcher.doctor.scheduling import DIRECTIVE_SWITCHES, DIRECTIVES, architectures, duration, gpus, gres_that_works
from launcher.rehearsal import stand_ins
from launcher.runner.file import RunnerFile
from launcher.runner.json_schema import MODELINE

_IMAGE_HINT = "  # TODO squash files lie where compute nodes see them; network file systems here:"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_ARCHITECTURES = ("x86_64", "aarch64")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})

_EXPLAINED = re.compile(r"scheduler|node\.|images\.(directory|import-on)|checkout\.|srtslurm\.")
"""Keys whose lines get what the doctor says of them."""


def draft(name: str, account: str | None, root: str | None, fill: Fill, facts: ClusterFacts) -> str:
    """The file's text. It loads, and claims only what was found; ``TODO`` marks what a person must decide.

    ``root`` is where squash files may go, ``fill`` puts values for the placeholders of paths, and ``facts`` are those
    of a partition that is there.
    """
    slurm, login, node = facts.slurm, facts.login, facts.node
    trees = f"{root.rstrip('/')}/launcher" if root else "{state}"
    places = {"images": root or "{state}/squash", "trees": f"{trees}/srt-slurm", "cache": f"{trees}/cache/srt-slurm"}
    shares = ", ".join(mount.target for mount in login.shares) or "none was seen"
    on_node = f", and on node {node.name}" if node else f"; on no node: {facts.compute}"
    partition, gpus = known(facts.partition), _gpus(facts)
    others = [each.name for each in listed(slurm.partitions) if each.name != partition.name]
    also = f"   # there are also {', '.join(others[:8])}{' …' if len(others) > 8 else ''}" if others else ""
    values = {
        "modeline": MODELINE,
        "name": name,
        "asked": f"from {login.name} as {slurm.user}{on_node}",
        "version": str(slurm.version),
        "cluster": str(slurm.setting("ClusterName")),
        "description": _text(f"partition {partition.name}"),
        "partition": f"{_text(partition.name)}{also}",
        "account": _account(account, facts),
        "time_limit": json.dumps(duration(min(partition.max_time or 14400.0, 14400.0))),
        "gpus": str(gpus),
        "architectures": _architectures(facts),
        "count": f"  count: {partition.nodes}" if partition.nodes else "",
        "storage": _storage(map(fill, places.values()), facts),
        "image_hint": "" if root else f"{_IMAGE_HINT} {shares}",
        "import_on": "login" if isinstance(login.enroot, str) or facts.no_enroot else "compute",
        **{key: _text(path) for key, path in places.items()},
        "srtslurm": "\n".join(_srtslurm(facts, gpus)),
        "login": login.name,
        "node": node.name if node else "",
        "stand_in_name": stand_ins.REPOSITORY_NAME,
        "stand_in_ref": stand_ins.REPOSITORY_REF,
        "stand_in_sha": stand_ins.REPOSITORY_SHA,
    }
    template: dict[str, Any] = msgspec.yaml.decode(Path(__file__).with_name("draft.yaml").read_bytes())
    blocks: dict[str, str] = template["rehearsal" if facts.no_enroot else "system"]
    values |= {key: Template(block).substitute(values) for key, block in blocks.items()}
    lines = [(line, Template(line).substitute(values)) for line in template["file"].splitlines()]
    text = "".join(f"{filled}\n" for line, filled in lines if filled or not line)
    facts = replace(facts, stand_ins=("enroot",) if facts.no_enroot else ())
    return _explained(text, compare(RunnerFile(Document(f"{name}.yaml", text)), facts, fill))


def _explained(text: str, claims: Iterable[Claim]) -> str:
    lines = text.splitlines()
    for claim in claims:
        if _EXPLAINED.match(claim.key):
            line = int(claim.where.rpartition(":")[2]) - 1
            said = claim.found if claim.verdict == "agree" else f"TODO {claim.found or claim.why}"
            lines[line] += ("; " if "   # " in lines[line] else "   # ") + said
    return "\n".join([*lines, ""])


def todos(text: str) -> list[tuple[int, str]]:
    """What a draft leaves to do: line and text."""
    lines = enumerate(text.splitlines(), 1)
    return [(i, line.partition("TODO")[2].strip()) for i, line in lines if "TODO" in line]


def _account(account: str | None, facts: ClusterFacts) -> str:
    slurm, accounts = facts.slurm, ", ".join(facts.slurm.accounts)
    if account is not None:
        return f"  account: {_text(account)}"
    if slurm.no_accounting:
        return "  # No accounting here: Slurm takes a job of any account. srtctl always names one."
    unknown = slurm.associations
    return f"  # TODO account: {unknown if isinstance(unknown, Unknown) else f'one of {accounts}'}"


def _gpus(facts: ClusterFacts) -> int:
    """The GPUs of a node; 1 as a place-holder where they are not known."""
    try:
        return gpus(facts)[1][0]
    except Unknown:
        return 1


def _architectures(facts: ClusterFacts) -> str:
    try:
        _, archs = architectures(facts)
    except Unknown:
        archs = ["not known"]
    login = facts.login
    if len(archs) != 1 or archs[0] not in _ARCHITECTURES:
        what = f"the nodes of the partition: {', '.join(archs)}; {login.name}: {login.arch}"
        return f"  # TODO arch: x86_64 or aarch64; {what}"
    other = login.arch in _ARCHITECTURES and login.arch != archs[0]
    return f"  arch: {archs[0]}" + (f"\n  login-arch: {login.arch}" if other else "")


def _storage(paths: Iterable[str], facts: ClusterFacts) -> str:
    """The file systems that hosts share, the disks of a node, and where both are one machine its own."""
    node, rows = facts.node, {}
    here = {mount.target: mount for mount in facts.login.shares}
    there = {mount.target: mount for mount in node.shares} if node else here
    unsure = "" if node else "; TODO no node was looked at"
    for target, mount in {**there, **here}.items():
        kind = mount.kinds[0]
        why = mount.source if kind == mount.type.rstrip("4") else f"{mount.source}, as which {mount.type} counts here"
        alone = "" if target in here and target in there else "login" if target in here else "compute"
        rows[target] = kind + (f", seen-by: [{alone}]" if alone else ""), why + unsure
    for disk in node.disks if node else ():
        rows.setdefault(disk.target, ("node-local, seen-by: [compute]", f"{disk.type} on {disk.source} of a node"))
    for path in paths:
        seen, by_node = facts.login.directory(path), facts.on_node(path)
        on_row = any(PurePath(path).is_relative_to(target) for target in rows)
        if on_row or isinstance(seen, Unknown) or isinstance(by_node, Unknown) or not by_node.shared:
            continue
        if isinstance(seen.mount, Mount) and not seen.mount.network:
            why = f"{seen.mount.type} on {seen.mount.source}; the node sees what is written here: one machine"
            rows[seen.mount.target] = "local", why
    if not rows:
        return "# TODO storage, such as:  - {path: /lustre, kind: lustre}"
    lines = [f"  - {{path: {_text(target)}, kind: {kind}}}   # {why}" for target, (kind, why) in rows.items()]
    return "\n".join(["storage:", *lines])


def _srtslurm(facts: ClusterFacts, gpus: int) -> Iterator[str]:
    """The switches, as `sbatch --test-only` took them; none where it judged nothing."""
    judged = {key: facts.submissions.get(key) for key in DIRECTIVE_SWITCHES if facts.job.accepted}
    for key, tried in judged.items():
        if key == "use_exclusive_sbatch_directive":
            yield f"  {key}: false   # TODO true where nodes are shared by jobs"
        elif tried is not None and tried.accepted:
            yield f"  {key}: true"
        elif tried is not None and tried.accepted is False:
            yield f"  {key}: false   # sbatch {tried.options[-1]}: {tried.answer}"
            kind = gres_that_works(facts.submissions)
            if "gpus" in key and kind is not None:
                yield f"  {DIRECTIVES}: {{gres: {json.dumps(f'{kind}:{gpus}')}}}   # sbatch takes --gres={kind}:1"


def _text(value: str) -> str:
    """A string as YAML: bare where it can mean nothing else, quoted otherwise (JSON's strings are YAML's)."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
