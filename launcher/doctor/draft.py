"""A first runner file from the facts of a cluster: every line has its source, or what is left to do. Pure.

The text is that of draft.yaml, with names for the values that this module finds. The comments about values are the
claims of the doctor, which compares the draft with the same facts.
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
from launcher.doctor.facts import ClusterFacts, Mount, Unknown, or_empty, require
from launcher.doctor.scheduling import DIRECTIVE_SWITCHES, DIRECTIVES, accepted_gres, architectures, duration, gpus
from launcher.rehearsal import stand_ins
from launcher.runner.file import RunnerFile
from launcher.runner.json_schema import MODELINE

_IMAGE_HINT = "  # TODO squash files lie where compute nodes see them; network file systems here:"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_ARCHITECTURES = ("x86_64", "aarch64")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})

_COMMENTED = re.compile(r"scheduler|node\.|images\.(directory|import-on)|checkout\.|srtslurm\.")
"""Keys whose lines get the doctor's claims as comments."""


def draft(name: str, account: str | None, root: str | None, fill: Fill, facts: ClusterFacts) -> str:
    """The file's text. It loads, and has only values that were found; ``TODO`` marks what a person must decide.

    ``root`` is the directory for squash files, ``fill`` puts values for the placeholders of paths. The partition of
    ``facts`` must be known.
    """
    slurm, login, node = facts.slurm, facts.login, facts.node
    trees = f"{root.rstrip('/')}/launcher" if root else "{state}"
    paths = {"images": root or "{state}/squash", "trees": f"{trees}/srt-slurm", "cache": f"{trees}/cache/srt-slurm"}
    shares = ", ".join(mount.target for mount in login.shares) or "none was seen"
    on_node = f", and on node {node.name}" if node else f"; on no node: {facts.compute}"
    partition, gpus = require(facts.partition), _gpus(facts)
    others = [other.name for other in or_empty(slurm.partitions) if other.name != partition.name]
    also = f"   # there are also {', '.join(others[:8])}{' …' if len(others) > 8 else ''}" if others else ""
    values = {
        "modeline": MODELINE,
        "name": name,
        "asked": f"from {login.name} as {slurm.user}{on_node}",
        "version": str(slurm.version),
        "cluster": str(slurm.config_value("ClusterName")),
        "description": _text(f"partition {partition.name}"),
        "partition": f"{_text(partition.name)}{also}",
        "account": _account(account, facts),
        "time_limit": json.dumps(duration(min(partition.max_time or 14400.0, 14400.0))),
        "gpus": str(gpus),
        "architectures": _architectures(facts),
        "count": f"  count: {partition.nodes}" if partition.nodes else "",
        "storage": _storage(map(fill, paths.values()), facts),
        "image_hint": "" if root else f"{_IMAGE_HINT} {shares}",
        "import_on": "login" if isinstance(login.enroot, str) or facts.no_enroot else "compute",
        **{key: _text(path) for key, path in paths.items()},
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
    return _with_comments(text, compare(RunnerFile(Document(f"{name}.yaml", text)), facts, fill))


def _with_comments(text: str, claims: Iterable[Claim]) -> str:
    lines = text.splitlines()
    for claim in claims:
        if _COMMENTED.match(claim.key):
            line = int(claim.where.rpartition(":")[2]) - 1
            comment = claim.found if claim.verdict == "agree" else f"TODO {claim.found or claim.why}"
            lines[line] += ("; " if "   # " in lines[line] else "   # ") + comment
    return "\n".join([*lines, ""])


def todos(text: str) -> list[tuple[int, str]]:
    """The tasks that a draft leaves to a person: line and text."""
    lines = enumerate(text.splitlines(), 1)
    return [(i, line.partition("TODO")[2].strip()) for i, line in lines if "TODO" in line]


def _account(account: str | None, facts: ClusterFacts) -> str:
    slurm = facts.slurm
    if account is not None:
        return f"  account: {_text(account)}"
    if slurm.no_accounting:
        return "  # No accounting here: Slurm takes a job of any account. srtctl always names one."
    if isinstance(slurm.associations, Unknown):
        return f"  # TODO account: {slurm.associations}"
    return f"  # TODO account: one of {', '.join(slurm.accounts)}"


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
        nodes = f"the nodes of the partition: {', '.join(archs)}; {login.name}: {login.arch}"
        return f"  # TODO arch: x86_64 or aarch64; {nodes}"
    differs = login.arch in _ARCHITECTURES and login.arch != archs[0]
    return f"  arch: {archs[0]}" + (f"\n  login-arch: {login.arch}" if differs else "")


def _storage(paths: Iterable[str], facts: ClusterFacts) -> str:
    """The file systems that hosts share, and the disks of a node; where login host and node are one machine, its disks.

    Each row is a mount point with its kind and a comment.
    """
    node, rows = facts.node, {}
    on_login = {mount.target: mount for mount in facts.login.shares}
    on_node = {mount.target: mount for mount in node.shares} if node else on_login
    unsure = "" if node else "; TODO no node was looked at"
    for target, mount in {**on_node, **on_login}.items():
        kind, source = mount.kinds[0], mount.source
        comment = source if kind == mount.type.rstrip("4") else f"{source}, as which {mount.type} counts here"
        only = "" if target in on_login and target in on_node else "login" if target in on_login else "compute"
        rows[target] = kind + (f", seen-by: [{only}]" if only else ""), comment + unsure
    for disk in node.disks if node else ():
        rows.setdefault(disk.target, ("node-local, seen-by: [compute]", f"{disk.type} on {disk.source} of a node"))
    for path in paths:
        login_view, node_view = facts.login.directory(path), node.directory(path) if node else Unknown("no node")
        has_row = any(PurePath(path).is_relative_to(target) for target in rows)
        if has_row or isinstance(login_view, Unknown) or isinstance(node_view, Unknown) or not node_view.shared:
            continue
        disk_mount = login_view.mount
        if isinstance(disk_mount, Mount) and not disk_mount.network:
            comment = f"{disk_mount.type} on {disk_mount.source}; the node sees what is written here: one machine"
            rows[disk_mount.target] = "local", comment
    if not rows:
        return "# TODO storage, such as:  - {path: /lustre, kind: lustre}"
    lines = [f"  - {{path: {_text(target)}, kind: {kind}}}   # {comment}" for target, (kind, comment) in rows.items()]
    return "\n".join(["storage:", *lines])


def _srtslurm(facts: ClusterFacts, gpus: int) -> Iterator[str]:
    """The switches by the answers of `sbatch --test-only`; none where the smallest job was not accepted."""
    checks = {key: facts.submissions.get(key) for key in DIRECTIVE_SWITCHES if facts.job.accepted}
    for key, check in checks.items():
        if key == "use_exclusive_sbatch_directive":
            yield f"  {key}: false   # TODO true where nodes are shared by jobs"
        elif check is not None and check.accepted:
            yield f"  {key}: true"
        elif check is not None and check.accepted is False:
            yield f"  {key}: false   # sbatch {check.options[-1]}: {check.answer}"
            kind = accepted_gres(facts.submissions)
            if "gpus" in key and kind is not None:
                yield f"  {DIRECTIVES}: {{gres: {json.dumps(f'{kind}:{gpus}')}}}   # sbatch takes --gres={kind}:1"


def _text(value: str) -> str:
    """A string as YAML: plain where it can mean nothing else, else quoted (a JSON string is a YAML string)."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
