"""Rules about workers, their parallelism, and whether the cluster can hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.check.engine import Found, Rule, rule
from launcher.srtctl.facts import RoleFacts
from launcher.srtctl.planned import SrtctlResolved


def _pairs(s: SrtctlResolved) -> Iterator[tuple[str, Role, RoleFacts]]:
    """The sides that both the row and the recipe have."""
    b, f = s.benchmark, s.facts
    if f is None:
        return
    if f.aggregated is not None and b.prefill is not None and not _apart(b):
        yield "agg", b.prefill, f.aggregated
        return
    for name, asked, side in (("prefill", b.prefill, f.prefill), ("decode", b.decode, f.decode)):
        if asked is not None and asked.workers and side is not None:
            yield name, asked, side


def _apart(b: Benchmark) -> bool:
    """Whether the row has workers on both sides."""
    return b.decode is not None and b.decode.workers > 0


def _same_replicas(name: str, asked: Role, side: RoleFacts) -> bool:
    """Whether one aggregated worker of dp replicas is what the matrix counts as that many workers."""
    replicas = (side.dp or 1) * (side.workers or 1)
    return name == "agg" and asked.workers > 1 and asked.workers == replicas and asked.tp == side.tp


@rule("disaggregation", "warning", "the row and the recipe differ in whether prefill and decode are apart")
def disaggregation(s: SrtctlResolved) -> Iterator[Found]:
    f = s.facts
    if f is None or (f.prefill is None) == (f.aggregated is None):
        return
    apart = f.prefill is not None
    if apart != s.benchmark.disagg:
        said = ("disaggregated", "aggregated") if apart else ("aggregated", "disaggregated")
        message = f"the recipe is {said[0]}, and the matrix publishes its numbers as {said[1]}"
        yield message, s.place("resources")


@rule("workers", "error", "the recipe starts another number of workers than the row says")
def workers(s: SrtctlResolved) -> Iterator[Found]:
    for name, asked, side in _pairs(s):
        if side.workers is None or side.workers == asked.workers:
            continue
        place = s.place("resources", f"{name}_workers")
        if _same_replicas(name, asked, side):
            message = (
                f"the recipe starts {side.workers} {name} worker of {side.dp} data-parallel replicas, and "
                f"the matrix publishes {asked.workers} workers"
            )
            yield message, place, "warning"
        else:
            yield f"the recipe starts {side.workers} {name} workers, and the matrix says {asked.workers}", place


@rule("parallelism", "error", "the recipe's parallelism is not the row's")
def parallelism(s: SrtctlResolved) -> Iterator[Found]:
    for name, asked, side in _pairs(s):
        has = side.as_role()
        if has is None or _same_replicas(name, asked, side):
            continue
        tp = has.tp
        if asked.dp_attention and has.dp_attention and asked.tp == 1 and asked.ep == has.tp:
            tp = 1  # DEP8 stands in the matrices as tp 8 and as tp 1, ep 8 alike
        pairs = (
            ("TP", tp, asked.tp),
            ("PP", has.pp, asked.pp),
            ("EP", has.ep, asked.ep),
            ("DP attention", _on(has.dp_attention), _on(asked.dp_attention)),
        )
        if different := [f"{what} {its} against {wanted}" for what, its, wanted in pairs if its != wanted]:
            message = f"{name} parallelism of the recipe is not the matrix's: {', '.join(different)}"
            yield message, s.place("backend")


def _on(flag: bool) -> str:
    return "on" if flag else "off"


@rule("gpus-per-node", "error", "the recipe counts other GPUs per node than the cluster has")
def gpus_per_node(s: SrtctlResolved) -> Iterator[Found]:
    node, f = s.file.runner.node, s.facts
    if f is None or f.gpus_per_node is None or f.gpus_per_node == node.gpus:
        return
    # Fewer are no mistake where each worker fits into them: a recipe may want just a part of each node.
    widest = max((side.gpus_per_worker or 0 for side in f.roles.values()), default=0)
    if f.gpus_per_node > node.gpus or widest > f.gpus_per_node:
        message = f"the recipe counts {f.gpus_per_node} GPUs a node, and {s.file.runner.name} has {node.gpus}"
        yield message, s.place("resources", "gpus_per_node")


@rule("nodes", "error", "the recipe needs more nodes than the partition has")
def nodes(s: SrtctlResolved) -> Iterator[Found]:
    count = s.file.runner.node.count
    if s.facts is not None and s.facts.nodes is not None and count is not None and s.facts.nodes > count:
        yield f"the recipe needs {s.facts.nodes} nodes, and the partition has {count}", s.place("resources")


@rule("capacity", "error", "the recipe's nodes cannot hold its workers")
def capacity(s: SrtctlResolved) -> Iterator[Found]:
    gpus = s.file.runner.node.gpus
    for name, side in s.facts.roles.items() if s.facts is not None else ():
        if not (side.nodes and side.workers and side.gpus_per_worker):
            continue
        if side.nodes * gpus < side.workers * side.gpus_per_worker:
            held = f"{side.workers} {name} workers of {side.gpus_per_worker}"
            yield f"{side.nodes} nodes of {gpus} GPUs cannot hold {held}", s.place("resources")


RULES: Sequence[Rule[SrtctlResolved]] = (disaggregation, workers, parallelism, gpus_per_node, nodes, capacity)
