"""A first runner file out of what was found: every line says how it is known, or that it is to do. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.doctor.facts import Fact, Host, Mount, Node, Seen, Site, Unknown
from launcher.doctor.scheduling import SWITCHES
from launcher.rehearsal.srt_slurm_stand_in import REF, SHA
from launcher.runner.json_schema import MODELINE

SRT_SLURM = "https://github.com/NVIDIA/srt-slurm.git"

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})

_EXAMPLES = """\
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
"""


@dataclass(frozen=True)
class Wanted:
    """What was asked for: ``directory`` is where squash files may go; ``state`` the launcher's own directory."""

    name: str
    partition: str
    account: str | None
    directory: str | None
    state: str


def draft(wanted: Wanted, site: Site) -> str:
    """The file's text. It loads, and claims only what was found; what is to be decided stands behind ``TODO``."""
    return "\n".join([*_head(wanted, site), "", *_slurm(wanted, site), "", *_node(wanted, site), "",
                      *_storage(wanted, site), "", *_directories(wanted, site), "", _EXAMPLES,
                      *_srtslurm(wanted, site)]) + "\n"  # fmt: skip


def todos(text: str) -> list[tuple[int, str]]:
    """What a draft leaves to do: line and text."""
    lines = enumerate(text.splitlines(), 1)
    return [(i, line.partition("TODO")[2].strip()) for i, line in lines if "TODO" in line]


def is_rehearsal(site: Site) -> bool:
    """Whether no enroot was found, here and on a node: then only a rehearsal can run."""
    compute = site.compute
    return isinstance(site.login.enroot, Unknown) and isinstance(compute, Host) and isinstance(compute.enroot, Unknown)


def _head(wanted: Wanted, site: Site) -> Iterator[str]:
    cluster = site.cluster
    looked = f"from {site.login.name} as {cluster.user}, and on node {site.compute.name}" if isinstance(
        site.compute, Host) else f"from {site.login.name} as {cluster.user}; on no node: {site.compute}"  # fmt: skip
    named = cluster.setting("ClusterName")
    yield MODELINE
    yield f"# Written by `launcher runner new {wanted.name}`: asked {looked}."
    yield f"# Slurm {cluster.version}, cluster {named}. `launcher runner doctor {wanted.name}` compares it again."
    yield f"name: {wanted.name}"
    yield f"description: {_text(f'partition {wanted.partition}')}   # TODO what this cluster is"
    yield f"sku: {wanted.name}   # TODO the accelerator as results are published under it: gb200, h200, …"
    yield f"runners: [{wanted.name}]   # GitHub runners named {wanted.name}_01, {wanted.name}_02 … are this cluster"
    yield f"labels: [{wanted.name}]   # TODO the `runner:` values of matrix rows that it serves"
    if is_rehearsal(site):
        yield f"# TODO no enroot on {site.login.name}, nor on {_name(site.compute)}: install it, then take out `tools`."
        yield "# Until then images, srtctl and the engine are stand-ins, and results say so."
        yield "tools: rehearsal"


def _slurm(wanted: Wanted, site: Site) -> Iterator[str]:
    cluster = site.cluster
    found = cluster.partition(wanted.partition)
    yield "scheduler:"
    others = [] if isinstance(cluster.partitions, Unknown) else [
        p.name for p in cluster.partitions if p.name != wanted.partition]  # fmt: skip
    note = (
        f"{found.nodes} nodes, {found.state.lower()}" + (", Slurm's default" if found.default else "") if found else ""
    )
    note += f"; there are also {', '.join(others[:8])}{' …' if len(others) > 8 else ''}" if others else ""
    yield f"  partition: {_text(wanted.partition)}   # {note}"
    accounts = [] if isinstance(cluster.associations, Unknown) else list(
        dict.fromkeys(a.account for a in cluster.associations))  # fmt: skip
    if wanted.account is not None:
        yield f"  account: {_text(wanted.account)}   # " + (
            f"{cluster.user} may use {', '.join(accounts)}" if accounts else "as asked for"
        )
    elif cluster.accounting is False:
        yield "  # No accounting here: Slurm takes a job of any account. srtctl always names one."
    else:
        why = cluster.associations if isinstance(cluster.associations, Unknown) else f"one of {', '.join(accounts)}"
        yield f"  # TODO account: {why}"
    limit = found.max_time if found is not None else None
    if limit is not None and limit < 4 * 3600:
        minutes = int(limit // 60)
        yield f'  time-limit: "{minutes // 60}:{minutes % 60:02}:00"   # MaxTime of the partition'
    else:
        of = "the partition has no MaxTime" if limit is None else f"MaxTime is {limit / 3600:g} h"
        yield f'  time-limit: "4:00:00"   # {of}'


def _node(wanted: Wanted, site: Site) -> Iterator[str]:
    found = site.cluster.nodes_of(wanted.partition)
    nodes: Sequence[Node] = () if isinstance(found, Unknown) else found
    gpus, note = _gpus(nodes, found, site.compute)
    yield "node:"
    yield f"  gpus: {gpus}   # {note}"
    archs = Counter(node.arch for node in nodes if node.arch)
    if isinstance(site.compute, Host) and isinstance(site.compute.arch, str):
        archs[site.compute.arch] += 1
    login = site.login.arch if isinstance(site.login.arch, str) else None
    known = [arch for arch in archs if arch in ("x86_64", "aarch64")]
    if len(known) == 1 and len(archs) == 1:
        yield f"  arch: {known[0]}   # of the compute nodes"
        if login in ("x86_64", "aarch64") and login != known[0]:
            yield f"  login-arch: {login}   # {site.login.name}"
    else:
        what = ", ".join(archs) or "not known"
        yield f"  # TODO arch: x86_64 or aarch64; the nodes of the partition: {what}; {site.login.name}: {login}"
    partition = site.cluster.partition(wanted.partition)
    if partition is not None and partition.nodes:
        out = [node.name for node in nodes if not node.usable]
        yield f"  count: {partition.nodes}" + (f"   # out of use now: {', '.join(out[:8])}" if out else "")


def _gpus(nodes: Sequence[Node], found: Fact[tuple[Node, ...]], compute: Fact[Host]) -> tuple[int, str]:
    counts = Counter(node.gpus for node in nodes)
    types = ", ".join(dict.fromkeys(g.type for n in nodes for g in n.gres if g.name == "gpu" and g.type))
    if len(counts) == 1 and (only := next(iter(counts))):
        return only, f"by Slurm's GRES, on each of {len(nodes)} nodes" + (f" ({types})" if types else "")
    if any(counts):
        each = ", ".join(f"{gpus} on {count} nodes" for gpus, count in counts.most_common())
        return max(counts, key=lambda gpus: (gpus > 0, counts[gpus])), f"TODO the partition is mixed: {each}"
    if isinstance(compute, Host) and isinstance(compute.devices, int) and compute.devices:
        return compute.devices, f"/dev/nvidia devices of {compute.name}; Slurm has no GRES for them"
    why = found if isinstance(found, Unknown) else "Slurm shows no GRES, and no /dev/nvidia was seen"
    return 1, f"TODO how many? {why}; 1 is a place-holder"


def _storage(wanted: Wanted, site: Site) -> Iterator[str]:
    """The file systems: those that both sides see, and the disks of a node."""
    rows = list(_storage_rows(wanted, site))
    yield "# Which file systems there are, and who sees them: it decides what is checked and staged from where."
    if rows:
        yield "storage:"
        yield from rows
    else:
        yield "# TODO storage, such as:  - {path: /lustre, kind: lustre}"


def _storage_rows(wanted: Wanted, site: Site) -> Iterator[str]:
    compute = site.compute
    seen = isinstance(compute, Host)
    there = {m.target: m for m in compute.shares} if isinstance(compute, Host) else {}
    mine = {m.target: m for m in site.login.shares}
    rows: dict[str, tuple[str, str, str]] = {}
    for target in dict.fromkeys([*mine, *there]):
        mount = mine.get(target) or there[target]
        kind = "lustre" if mount.type == "lustre" else "nfs"
        names = [s for s, on in (("login", target in mine), ("compute", not seen or target in there)) if on]
        word = "" if kind == mount.type.rstrip("4") else f", as which {mount.type} counts here"
        rows[target] = (
            kind,
            f"[{', '.join(names)}]",
            f"{mount.source}{word}" + ("" if seen else "; TODO no node was looked at"),
        )
    if isinstance(compute, Host):
        for disk in compute.disks:
            if disk.target not in rows:
                rows[disk.target] = "node-local", "[compute]", f"{disk.type} on {disk.source} of {compute.name}"
        for path in _paths(wanted):
            row = _local_row(path, site.login.directory(path), compute.directory(path))
            if row is not None and not _below(path, rows):
                rows.setdefault(row[0], row[1])
    for target, (kind, sides, why) in rows.items():
        more = "" if sides == "[login, compute]" else f", seen-by: {sides}"
        yield f"  - {{path: {_text(target)}, kind: {kind}{more}}}   # {why}"


def _local_row(path: str, login: Fact[Seen], compute: Fact[Seen]) -> tuple[str, tuple[str, str, str]] | None:
    """A local file system that both sides share: they are one machine."""
    if isinstance(login, Unknown) or isinstance(compute, Unknown) or not compute.shared:
        return None
    if not isinstance(login.mount, Mount) or login.mount.network:
        return None
    why = f"{login.mount.type} on {login.mount.source}; the node sees what is written here: one machine"
    return login.mount.target, ("local", "[login, compute]", why)


def _below(path: str, targets: dict[str, tuple[str, str, str]]) -> bool:
    return any(path == t or path.startswith(t.rstrip("/") + "/") for t in targets)


def _paths(wanted: Wanted) -> list[str]:
    return [*([wanted.directory] if wanted.directory else []), wanted.state]


def _directories(wanted: Wanted, site: Site) -> Iterator[str]:
    rehearsal = is_rehearsal(site)
    root = wanted.directory
    enroot_here = isinstance(site.login.enroot, str)
    side = "login" if enroot_here or rehearsal else "compute"
    why = f"enroot {site.login.enroot} on {site.login.name}" if enroot_here else f"no enroot on {site.login.name}"
    yield "images:"
    if root is None:
        shares = ", ".join(m.target for m in site.login.shares) or "none was seen"
        yield f"  # TODO squash files lie where compute nodes see them; network file systems here: {shares}"
    yield f"  directory: {_text(root or '{state}/squash')}{_state_of(root or wanted.state, site)}"
    yield f"  import-on: {side}   # {why}"
    if rehearsal:
        yield "  helpers: {nginx-sqsh: nginx:1.27.4}"
    else:
        yield '  # TODO helpers: images that recipes name by an alias, such as {nginx-sqsh: "nginx:1.27.4"}'
        yield "  # TODO aliases: names in recipes that mean the benchmark's own image, such as [dynamo-sglang]"
    yield ""
    base = f"{root.rstrip('/')}/launcher" if root else "{state}"
    yield "# One work tree of srt-slurm for each run, seen by compute nodes, and what runs share."
    yield "checkout:"
    yield f"  directory: {_text(f'{base}/srt-slurm')}"
    yield f"  cache: {_text(f'{base}/cache/srt-slurm')}"
    if rehearsal:
        yield "  setup: [[sh, setup]]   # the stand-in's own"
    else:
        yield "  # TODO once for each commit, in its tree; the interpreter must be there on compute nodes too"
        yield "  setup:"
        yield "    - [uv, venv, --python, /usr/bin/python3, --seed, .venv]"
        yield "    - [uv, pip, install, --python, .venv/bin/python, -e, .]"
        yield '    - [make, setup, "ARCH={arch}"]'
    yield ""
    yield "repositories:"
    yield f"  nvidia: {SRT_SLURM}"
    if rehearsal:
        yield f'  rehearsal: "{{state}}/rehearsal/srt-slurm-{SHA[:12]}"   # the stand-in: ref {REF}, sha {SHA}'


def _state_of(path: str, site: Site) -> str:
    found = site.login.directory(path)
    if isinstance(found, Unknown):
        return f"   # TODO not looked at: {found}"
    if not found.writable:
        return f"   # TODO cannot be written from here: {found.refused}"
    free = "" if found.free is None else f"{found.free / 1024**3:.0f} GiB free"
    there = site.compute.directory(path) if isinstance(site.compute, Host) else site.compute
    if isinstance(there, Unknown):
        return f"   # {free}; TODO whether compute nodes see it is not known: {there}"
    return f"   # {free}, " + ("seen by compute nodes" if there.shared else "TODO not what compute nodes see there")


def _srtslurm(wanted: Wanted, site: Site) -> Iterator[str]:
    """The switches, as `sbatch --test-only` took them."""
    job = site.tried.get("job")
    yield "# Keys of srtslurm.yaml; what sbatch takes here was tried with `sbatch --test-only`."
    yield "srtslurm:"
    if job is None or not job.accepted:
        said = job.said if job is not None else "sbatch was not asked"
        yield f"  # TODO nothing could be tried: {said}"
    yield '  network_interface: ""   # TODO eth0, bond0 …: by which nodes find each other; empty, srtctl looks for one'
    if job is None or not job.accepted:
        return
    for key in SWITCHES:
        tried = site.tried.get(key)
        if key == "use_exclusive_sbatch_directive":
            yield f"  {key}: false   # TODO true where nodes are shared by jobs"
        elif tried is None or tried.accepted is None:
            yield f"  # TODO {key}: {tried.said if tried else 'not asked'}"
        else:
            yield f"  {key}: {'true' if tried.accepted else 'false'}   # {_one_line(tried.options[-1], tried.said)}"
            if "gpus" in key and not tried.accepted:
                yield from _gres(wanted, site)


def _gres(wanted: Wanted, site: Site) -> Iterator[str]:
    found = site.cluster.nodes_of(wanted.partition)
    gpus, _ = _gpus(() if isinstance(found, Unknown) else found, found, site.compute)
    form = next((name for name, t in site.tried.items() if name.startswith("--gres=") and t.accepted), None)
    if form is not None:
        value = f"{form.removeprefix('--gres=').rpartition(':')[0]}:{gpus}"
        yield f"  default_sbatch_directives: {{gres: {json.dumps(value)}}}   # sbatch takes {form}"
    else:
        yield "  # No GRES is taken either: nodes are had whole."


def _one_line(option: str, said: str) -> str:
    taken = f"takes {option}" if said.startswith("Job ") or not said else f"{option}: {said}"
    return f"sbatch {taken}"


def _name(host: Fact[Host]) -> str:
    return host.name if isinstance(host, Host) else "a node"


def _text(value: str) -> str:
    """A string as YAML: bare where it can mean nothing else, quoted otherwise (JSON's strings are YAML's)."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
