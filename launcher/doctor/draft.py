"""A first runner file from the facts of a cluster: every line says how it is known, or what is left to do. Pure.

Its text is in draft.yaml, with names for the values that are found here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from string import Template
from typing import Any

import msgspec

from launcher.doctor.facts import ClusterFacts, Mount, Unknown, known, listed
from launcher.doctor.scheduling import DIRECTIVE_SWITCHES, architectures, duration, gpus
from launcher.rehearsal import stand_ins
from launcher.runner.json_schema import MODELINE

_IMAGE_HINT = "  # TODO squash files lie where compute nodes see them; network file systems here:"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_ARCHITECTURES = ("x86_64", "aarch64")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def draft(name: str, account: str | None, root: str | None, state: str, facts: ClusterFacts) -> str:
    """The file's text. It loads, and claims only what was found; ``TODO`` marks what a person must decide.

    ``root`` is where squash files may go, ``state`` the launcher's own directory; ``facts`` are those of a partition
    that is there.
    """
    slurm, login, node = facts.slurm, facts.login, facts.node
    trees = f"{root.rstrip('/')}/launcher" if root else "{state}"
    shares = ", ".join(mount.target for mount in login.shares) or "none was seen"
    on_node = f", and on node {node.name}" if node else f"; on no node: {facts.compute}"
    enroot = f"enroot {login.enroot}" if isinstance(login.enroot, str) else "no enroot"
    side = "login" if isinstance(login.enroot, str) or facts.no_enroot else "compute"
    values = {
        "modeline": MODELINE,
        "name": name,
        "asked": f"from {login.name} as {slurm.user}{on_node}",
        "version": str(slurm.version),
        "cluster": str(slurm.setting("ClusterName")),
        "description": _text(f"partition {facts.partition_name}"),
        "account": _account(account, facts),
        **_partition(facts),
        "gpus": "{}   # {}".format(*_gpus(facts)),
        "architectures": _architectures(facts),
        "storage": _storage([root, state] if root else [state], facts),
        "images": f"{_text(root or '{state}/squash')}   # {_state_of(root or state, facts)}",
        "image_hint": "" if root else f"{_IMAGE_HINT} {shares}",
        "import_on": f"{side}   # {enroot} on {login.name}",
        "trees": _text(f"{trees}/srt-slurm"),
        "cache": _text(f"{trees}/cache/srt-slurm"),
        "srtslurm": "\n".join(_srtslurm(facts)),
        "login": login.name,
        "node": node.name if node else "",
        "stand_in_name": stand_ins.REPOSITORY_NAME,
        "stand_in_ref": stand_ins.REPOSITORY_REF,
        "stand_in_sha": stand_ins.REPOSITORY_SHA,
    }
    text: dict[str, Any] = msgspec.yaml.decode(Path(__file__).with_name("draft.yaml").read_bytes())
    blocks: dict[str, str] = text["rehearsal" if facts.no_enroot else "system"]
    values |= {name: Template(block).substitute(values) for name, block in blocks.items()}
    lines = [(line, Template(line).substitute(values)) for line in text["file"].splitlines()]
    return "".join(f"{filled}\n" for line, filled in lines if filled or not line)


def todos(text: str) -> list[tuple[int, str]]:
    """What a draft leaves to do: line and text."""
    lines = enumerate(text.splitlines(), 1)
    return [(i, line.partition("TODO")[2].strip()) for i, line in lines if "TODO" in line]


def _account(account: str | None, facts: ClusterFacts) -> str:
    slurm, accounts = facts.slurm, ", ".join(facts.slurm.accounts)
    if account is not None:
        why = f"{slurm.user} may use {accounts}" if accounts else "as asked for"
        return f"  account: {_text(account)}   # {why}"
    if slurm.no_accounting:
        return "  # No accounting here: Slurm takes a job of any account. srtctl always names one."
    unknown = slurm.associations
    return f"  # TODO account: {unknown if isinstance(unknown, Unknown) else f'one of {accounts}'}"


def _partition(facts: ClusterFacts) -> dict[str, str]:
    """The partition, which is there, its time limit, and how many nodes it has."""
    found = known(facts.partition)
    others = [each.name for each in listed(facts.slurm.partitions) if each.name != found.name]
    out = [node.name for node in listed(facts.nodes) if not node.usable]
    note = f"{found.nodes} nodes, {found.state.lower()}" + (", Slurm's default" if found.default else "")
    if others:
        note += f"; there are also {', '.join(others[:8])}{' …' if len(others) > 8 else ''}"
    count = f"  count: {found.nodes}" + (f"   # out of use now: {', '.join(out[:8])}" if out else "")
    if found.max_time is None:
        time_limit = '"4:00:00"   # the partition has no MaxTime'
    else:
        shorter = min(found.max_time, 4 * 3600)
        time_limit = f'"{duration(shorter)}"   # MaxTime of the partition is {duration(found.max_time)}'
    return {
        "partition": f"{_text(found.name)}   # {note}",
        "time_limit": time_limit,
        "count": count if found.nodes else "",
    }


def _gpus(facts: ClusterFacts) -> tuple[int, str]:
    """The GPUs of a node, and how that is known."""
    try:
        found, numbers = gpus(facts)
    except Unknown as why:
        return 1, f"TODO how many? {why}; 1 is a place-holder"
    return numbers[0], found if len(numbers) == 1 else f"TODO the partition is mixed: {found}"


def _architectures(facts: ClusterFacts) -> str:
    try:
        _, archs = architectures(facts)
    except Unknown:
        archs = ["not known"]
    login = facts.login
    if len(archs) != 1 or archs[0] not in _ARCHITECTURES:
        what = f"the nodes of the partition: {', '.join(archs)}; {login.name}: {login.arch}"
        return f"  # TODO arch: x86_64 or aarch64; {what}"
    line = f"  arch: {archs[0]}   # of the compute nodes"
    other = login.arch in _ARCHITECTURES and login.arch != archs[0]
    return f"{line}\n  login-arch: {login.arch}   # {login.name}" if other else line


def _storage(paths: list[str], facts: ClusterFacts) -> str:
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


def _state_of(path: str, facts: ClusterFacts) -> str:
    here, there = facts.login.directory(path), facts.on_node(path)
    if isinstance(here, Unknown):
        return f"TODO not looked at: {here}"
    if not here.writable:
        return f"TODO cannot be written from here: {here.refused}"
    free = "" if here.free is None else f"{here.free / 1024**3:.0f} GiB free"
    if isinstance(there, Unknown):
        return f"{free}; TODO whether compute nodes see it is not known: {there}"
    return f"{free}, " + ("seen by compute nodes" if there.shared else "TODO not what compute nodes see there")


def _srtslurm(facts: ClusterFacts) -> Iterator[str]:
    """The switches, as `sbatch --test-only` took them."""
    if not facts.job.accepted:
        yield f"  # TODO nothing could be tried: {facts.job.answer}"
    yield '  network_interface: ""   # TODO eth0, bond0 …: by which nodes find each other; empty, srtctl looks for one'
    for key in DIRECTIVE_SWITCHES if facts.job.accepted else ():
        tried = facts.submissions.get(key)
        if key == "use_exclusive_sbatch_directive":
            yield f"  {key}: false   # TODO true where nodes are shared by jobs"
        elif tried is None or tried.accepted is None:
            yield f"  # TODO {key}: {tried.answer if tried else 'not asked'}"
        else:
            taken = tried.answer.startswith("Job ") or not tried.answer
            why = f"takes {tried.options[-1]}" if taken else f"{tried.options[-1]}: {tried.answer}"
            yield f"  {key}: {'true' if tried.accepted else 'false'}   # sbatch {why}"
            if "gpus" in key and not tried.accepted:
                yield _gres(facts)


def _gres(facts: ClusterFacts) -> str:
    form = next((name for name, t in facts.submissions.items() if name.startswith("--gres=") and t.accepted), None)
    if form is None:
        return "  # No GRES is taken either: nodes are had whole."
    value = f"{form.removeprefix('--gres=').rpartition(':')[0]}:{_gpus(facts)[0]}"
    return f"  default_sbatch_directives: {{gres: {json.dumps(value)}}}   # sbatch takes {form}"


def _text(value: str) -> str:
    """A string as YAML: bare where it can mean nothing else, quoted otherwise (JSON's strings are YAML's)."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
