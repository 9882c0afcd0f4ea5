"""A first runner file from the facts of a cluster: every line says how it is known, or what is left to do. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import Template

from launcher.doctor.facts import ClusterFacts, Mount, Unknown, known
from launcher.doctor.scheduling import DIRECTIVE_SWITCHES, architectures, duration, gpus
from launcher.rehearsal import stand_ins
from launcher.runner.json_schema import MODELINE

_TEMPLATE = """\
$modeline
# Written by `launcher runner new $name`: asked $asked.
# Slurm $version, cluster $cluster. `launcher runner doctor $name` compares it again.
name: $name
description: $description   # TODO what this cluster is
sku: $name   # TODO the accelerator as results are published under it: gb200, h200, …
runners: [$name]   # GitHub runners named ${name}_01, ${name}_02 … are this cluster
labels: [$name]   # TODO the `runner:` values of matrix rows that it serves
$tools

scheduler:
  partition: $partition
$account
  time-limit: $time_limit

node:
  gpus: $gpus
$architectures
$count

# Which file systems there are, and who sees them: it decides what is checked and staged from where.
$storage

images:
$image_hint
  directory: $images
  import-on: $import_on
$helpers

# One work tree of srt-slurm for each run, seen by compute nodes, and what runs share.
checkout:
  directory: $trees
  cache: $cache
$setup

repositories:
  nvidia: https://github.com/NVIDIA/srt-slurm.git
$stand_in

# Which checkpoint a benchmark reads: the first rule whose `when` matches. docs/new-cluster.md explains both tables.
# TODO a rule for each model that is to run here, such as:
#   - when: {prefix: minimaxm3, precision: fp8}   # MODEL_PREFIX and PRECISION of the matrix row
#     path: /lustre/models/MiniMax-M3-MXFP8       # where compute nodes see the checkpoint
#     alias: minimax-m3-mxfp8                     # what the recipe calls it: its `model.path`
models: []

# Which srt-slurm runs a benchmark: again the first rule whose `when` matches.
# TODO a lane for each framework that is to run here, such as:
#   - when: {framework: dynamo-vllm, prefix: minimaxm3}
#     repository: nvidia                          # a key of `repositories`
#     ref: v1.0.53                                # the name that people know the commit by
#     sha: 217f94387abeddfed7149a71955dc523e07cd765   # what is checked out, in full
lanes: []

# Keys of srtslurm.yaml; what sbatch takes here was tried with `sbatch --test-only`.
srtslurm:
$srtslurm
"""
"""The file. A line that is nothing but a name stands for the lines of that value, and is left out when it has none."""

_IMAGE_HINT = "  # TODO squash files lie where compute nodes see them; network file systems here:"

_HELPERS = """\
  # TODO helpers: images that recipes name by an alias, such as {nginx-sqsh: "nginx:1.27.4"}
  # TODO aliases: names in recipes that mean the benchmark's own image, such as [dynamo-sglang]"""

_SETUP = """\
  # TODO once for each commit, in its tree; the interpreter must be there on compute nodes too
  setup:
    - [uv, venv, --python, /usr/bin/python3, --seed, .venv]
    - [uv, pip, install, --python, .venv/bin/python, -e, .]
    - [make, setup, "ARCH={arch}"]"""

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_ARCHITECTURES = ("x86_64", "aarch64")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


@dataclass(frozen=True)
class DraftRequest:
    """What was asked for. ``directory`` is where squash files may go, ``state`` the launcher's own directory."""

    name: str
    partition: str
    account: str | None
    directory: str | None
    state: str

    @property
    def paths(self) -> list[str]:
        """The directories that a draft wants to know about."""
        return [*([self.directory] if self.directory else []), self.state]


def draft(request: DraftRequest, facts: ClusterFacts) -> str:
    """The file's text. It loads, and claims only what was found; ``TODO`` marks what a person must decide."""
    slurm, login, node = facts.slurm, facts.login, facts.node
    root = request.directory
    trees = f"{root.rstrip('/')}/launcher" if root else "{state}"
    shares = ", ".join(mount.target for mount in login.shares) or "none was seen"
    on_node = f", and on node {node.name}" if node else f"; on no node: {facts.compute}"
    enroot = f"enroot {login.enroot}" if isinstance(login.enroot, str) else "no enroot"
    side = "login" if isinstance(login.enroot, str) or facts.no_enroot else "compute"
    values = {
        "modeline": MODELINE,
        "name": request.name,
        "asked": f"from {login.name} as {slurm.user}{on_node}",
        "version": str(slurm.version),
        "cluster": str(slurm.setting("ClusterName")),
        "description": _text(f"partition {request.partition}"),
        "account": _account(request, facts),
        **_partition(request, facts),
        "gpus": "{}   # {}".format(*_gpus(facts)),
        "architectures": _architectures(facts),
        "storage": _storage(request, facts),
        "images": f"{_text(root or '{state}/squash')}   # {_state_of(root or request.state, facts)}",
        "image_hint": "" if root else f"{_IMAGE_HINT} {shares}",
        "import_on": f"{side}   # {enroot} on {login.name}",
        "trees": _text(f"{trees}/srt-slurm"),
        "cache": _text(f"{trees}/cache/srt-slurm"),
        "srtslurm": "\n".join(_srtslurm(facts)),
        "tools": "",
        "helpers": _HELPERS,
        "setup": _SETUP,
        "stand_in": "",
    }
    if facts.no_enroot:  # then only a rehearsal can run
        url = f"{{state}}/rehearsal/{stand_ins.REPOSITORY_NAME}"
        commit = f"ref {stand_ins.REPOSITORY_REF}, sha {stand_ins.REPOSITORY_SHA}"
        values |= {
            "tools": f"# TODO no enroot on {login.name}, nor on {node.name if node else 'a node'}: install it, "
            "then take out `tools`.\n"
            "# Until then images, srtctl and the engine are stand-ins, and results say so.\n"
            "tools: rehearsal",
            "helpers": "  helpers: {nginx-sqsh: nginx:1.27.4}",
            "setup": "  setup: [[sh, setup]]   # the stand-in's own",
            "stand_in": f"  rehearsal: {json.dumps(url)}   # the stand-in: {commit}",
        }
    lines = [(line, Template(line).substitute(values)) for line in _TEMPLATE.splitlines()]
    return "".join(f"{text}\n" for line, text in lines if text or not line)


def todos(text: str) -> list[tuple[int, str]]:
    """What a draft leaves to do: line and text."""
    lines = enumerate(text.splitlines(), 1)
    return [(i, line.partition("TODO")[2].strip()) for i, line in lines if "TODO" in line]


def _account(request: DraftRequest, facts: ClusterFacts) -> str:
    slurm, accounts = facts.slurm, ", ".join(facts.slurm.accounts)
    if request.account is not None:
        why = f"{slurm.user} may use {accounts}" if accounts else "as asked for"
        return f"  account: {_text(request.account)}   # {why}"
    if slurm.accounting is False:
        return "  # No accounting here: Slurm takes a job of any account. srtctl always names one."
    unknown = slurm.associations
    return f"  # TODO account: {unknown if isinstance(unknown, Unknown) else f'one of {accounts}'}"


def _partition(request: DraftRequest, facts: ClusterFacts) -> dict[str, str]:
    """The partition, its time limit, and how many nodes it has."""
    found, note, limit, count = facts.partition, "", None, ""
    others = [each.name for each in known(facts.slurm.partitions) if each.name != request.partition]
    if not isinstance(found, Unknown):
        limit = found.max_time
        note = f"{found.nodes} nodes, {found.state.lower()}" + (", Slurm's default" if found.default else "")
        out = [node.name for node in known(facts.nodes) if not node.usable]
        if found.nodes:
            count = f"  count: {found.nodes}" + (f"   # out of use now: {', '.join(out[:8])}" if out else "")
    if others:
        note += f"; there are also {', '.join(others[:8])}{' …' if len(others) > 8 else ''}"
    if limit is not None and limit < 4 * 3600:
        time_limit = f'"{duration(limit)}"   # MaxTime of the partition'
    else:
        why = "the partition has no MaxTime" if limit is None else f"MaxTime is {limit / 3600:g} h"
        time_limit = f'"4:00:00"   # {why}'
    return {"partition": f"{_text(request.partition)}   # {note}", "time_limit": time_limit, "count": count}


def _gpus(facts: ClusterFacts) -> tuple[int, str]:
    """The GPUs of a node, and how that is known."""
    fact = gpus(facts)
    if isinstance(fact, Unknown):
        return 1, f"TODO how many? {fact}; 1 is a place-holder"
    found, counts = fact
    likely = max(counts, key=lambda number: (number > 0, counts[number]))
    return likely, found if len(counts) == 1 else f"TODO the partition is mixed: {found}"


def _architectures(facts: ClusterFacts) -> str:
    found = architectures(facts)
    archs, login = [] if isinstance(found, Unknown) else list(found), facts.login
    if len(archs) != 1 or archs[0] not in _ARCHITECTURES:
        what = ", ".join(archs) or "not known"
        return f"  # TODO arch: x86_64 or aarch64; the nodes of the partition: {what}; {login.name}: {login.arch}"
    line = f"  arch: {archs[0]}   # of the compute nodes"
    other = login.arch in _ARCHITECTURES and login.arch != archs[0]
    return f"{line}\n  login-arch: {login.arch}   # {login.name}" if other else line


def _storage(request: DraftRequest, facts: ClusterFacts) -> str:
    """The file systems that hosts share, the disks of a node, and where both are one machine its own."""
    node, rows = facts.node, {}
    here = {mount.target: mount for mount in facts.login.shares}
    there = {mount.target: mount for mount in node.shares} if node else here
    for target in {**here, **there}:
        mount = here.get(target) or there[target]
        kind = "lustre" if mount.type == "lustre" else "nfs"
        why = mount.source if kind == mount.type.rstrip("4") else f"{mount.source}, as which {mount.type} counts here"
        alone = "" if target in here and target in there else "login" if target in here else "compute"
        unsure = "" if node else "; TODO no node was looked at"
        rows[target] = kind + (f", seen-by: [{alone}]" if alone else ""), why + unsure
    if node:
        for disk in node.disks:
            why = f"{disk.type} on {disk.source} of {node.name}"
            rows.setdefault(disk.target, ("node-local, seen-by: [compute]", why))
    for path in request.paths:
        if not any(path == target or path.startswith(target.rstrip("/") + "/") for target in rows):
            seen, by_node = facts.login.directory(path), facts.on_node(path)
            if isinstance(seen, Unknown) or isinstance(by_node, Unknown) or not by_node.shared:
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
    gpus, _ = _gpus(facts)
    form = next((name for name, t in facts.submissions.items() if name.startswith("--gres=") and t.accepted), None)
    if form is None:
        return "  # No GRES is taken either: nodes are had whole."
    value = f"{form.removeprefix('--gres=').rpartition(':')[0]}:{gpus}"
    return f"  default_sbatch_directives: {{gres: {json.dumps(value)}}}   # sbatch takes {form}"


def _text(value: str) -> str:
    """A string as YAML: bare where it can mean nothing else, quoted otherwise (JSON's strings are YAML's)."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
