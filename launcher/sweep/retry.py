"""What follows from a failed attempt: whether the same may be tried again, how often, after how long, on which nodes.

The classes are those of the layers of verdicts (`launcher.run.verdict`), told apart by the verdict's own words. What is
the benchmark's, the server's or the configuration's own doing is never tried again by itself.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from launcher.core.slurm_notation import node_names
from launcher.sweep.schema import Policy
from launcher.sweep.state import Facts


@dataclass(frozen=True)
class RetryClass:
    """Failures that are alike: ``times`` further attempts at most, the first after ``wait`` seconds and each later one
    after twice as long. ``nodes`` says what becomes of nodes: ``exclude`` the one that is named, ``avoid`` all of the
    attempt for once."""

    name: str
    layers: frozenset[str]
    words: str
    times: int = 0
    wait: float = 0.0
    nodes: str = ""


def _class(name: str, layers: str, words: str = "", times: int = 0, wait: float = 0.0, nodes: str = "") -> RetryClass:
    return RetryClass(name, frozenset(layers.split()), words, times, wait, nodes)


TIME_LIMIT = "time limit"

_NETWORK = (
    r"[Cc]onnection (?:reset|refused|timed out|aborted)|timed out|[Tt]imeout|\b(?:429|50[0-9])\b|[Tt]oo many requests"
    r"|truncat|unexpected EOF|[Uu]nreachable|[Tt]emporary failure|[Cc]ould not resolve|TLS handshake|ended early"
)

_NOT_TO_BE_HAD = r"not found|no such|unauthori[sz]ed|denied|\b40[134]\b|architecture|no space"
_REFUSED = r"[Ii]nvalid (?:account|partition|qos)|QOS|Assoc|not allowed|will not start by waiting"
_SILENT = rf"{_NETWORK}|[Uu]nable to contact|did not answer|no definite answer"
_FABRIC = r"NCCL|NVLS|UCX|[Ii]nfiniBand|\bib_|ncclSystemError|fabric|rendezvous"

CLASSES = (
    _class("cancelled", "cancelled"),
    _class("image not to be had", "image", _NOT_TO_BE_HAD),
    _class("image transfer", "image checkout", _NETWORK, 3, 30.0),
    _class("model copy", "model", r"EIO|ESTALE|[Ii]nput/output|[Ss]tale|interrupted|ended early", 2, 60.0),
    _class("preempted", "scheduler", r"PREEMPTED|another job took its place|requeue", 3),
    _class(TIME_LIMIT, "scheduler", r"time limit was reached|deadline was reached"),
    _class("refused", "scheduler", _REFUSED),
    _class("controller silent", "scheduler", _SILENT, 3, 30.0),
    _class("node", "node", "", 2, 0.0, "exclude"),
    _class("fabric", "server", _FABRIC, 1, 0.0, "avoid"),
    _class("server", "server"),
)
"""In order: the first that fits. Nothing else is tried again."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.:,/-]\d+)*")
_PATH = re.compile(r"(?:/[\w.+@%=,~-]+){2,}/?")
_HOST = re.compile(r"\bon [\w.-]+|\b(?=[\w-]*[0-9])[a-zA-Z][\w]*-[\w.-]*[0-9]+\b")


def signature(layer: str, text: str) -> str:
    """What failures with one cause have in common: the layer, and the verdict without paths, numbers and hosts."""
    first = text.splitlines()[0] if text else ""
    for pattern, instead in ((_PATH, "PATH"), (_HOST, "HOST"), (_NUMBER, "N")):
        first = pattern.sub(instead, first)
    return f"{layer}: {first[:160]}".strip()


@dataclass(frozen=True)
class Further:
    """A further attempt: of which class, after how many seconds, without which nodes; ``excluded`` is the one node that
    the sweep uses no more."""

    kind: str
    wait: float
    avoid: tuple[str, ...] = ()
    excluded: str = ""


def class_of(seen: Facts) -> RetryClass | None:
    """The class of a failed attempt; None for one that is never tried again."""
    text = f"{seen.word} {seen.text}"
    return next((c for c in CLASSES if seen.layer in c.layers and re.search(c.words, text)), None)


def named_node(seen: Facts) -> str:
    """The one node that a verdict names, or the only one that the job had; "" for none or several."""
    nodes = node_names(seen.nodes) if seen.nodes else []
    if len(nodes) == 1:
        return nodes[0]
    named = {node for node in nodes if re.search(rf"(?<![\w-]){re.escape(node)}(?![\w-])", seen.text)}
    return named.pop() if len(named) == 1 else ""


def further(seen: Facts, before: int, policy: Policy) -> Further | None:
    """The further attempt that a failure allows, when ``before`` such attempts of its class were made; None for none.

    Its wait is longer or shorter by up to a fifth, at random.
    """
    found = class_of(seen)
    if found is None:
        return None
    times = found.times
    if found.name == TIME_LIMIT and policy.retry_timeout:
        times = 1
    if found.name == "server" and policy.confirm:
        times = 1
    nodes, node = found.nodes, named_node(seen)
    if nodes == "exclude" and not node:
        nodes, times = "avoid", min(times, 1)
    if before >= times:
        return None
    wait = found.wait * 2**before * random.uniform(0.8, 1.2)
    avoid = tuple(node_names(seen.nodes)) if nodes == "avoid" and seen.nodes else ()
    return Further(found.name, wait, avoid, node if nodes == "exclude" else "")
