"""Whether a failed attempt may be retried: how often, after how long, and on which nodes.

A class of failures (retry_classes.yaml) is recognised by the layer of the verdict (`launcher.run.verdict`) and by words
of its text. Failures of the benchmark, the server or the configuration are not retried by default.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from launcher.core.slurm_notation import node_names
from launcher.sweep.schema import Policy
from launcher.sweep.state import Facts


class RetryClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class of failures; retry_classes.yaml explains the keys."""

    name: str
    layers: frozenset[str]
    words: tuple[str, ...] = ("",)
    times: int = 0
    wait: float = 0.0
    nodes: Literal["", "exclude", "avoid"] = ""


CLASSES = msgspec.yaml.decode(Path(__file__).with_name("retry_classes.yaml").read_bytes(), type=tuple[RetryClass, ...])

TIME_LIMIT = "time limit"

_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.:,/-]\d+)*")
_PATH = re.compile(r"(?:/[\w.+@%=,~-]+){2,}/?")
_HOST = re.compile(r"\bon [\w.-]+|\b(?=[\w-]*[0-9])[a-zA-Z][\w]*-[\w.-]*[0-9]+\b")


def signature(layer: str, text: str) -> str:
    """The text that failures with one cause share: the layer, and the verdict without paths, numbers and hosts."""
    first = text.splitlines()[0] if text else ""
    for pattern, instead in ((_PATH, "PATH"), (_HOST, "HOST"), (_NUMBER, "N")):
        first = pattern.sub(instead, first)
    return f"{layer}: {first[:160]}".strip()


@dataclass(frozen=True)
class AllowedRetry:
    """A retry: its class, the seconds to wait, the nodes to avoid; ``excluded`` is the node that the sweep stops
    using."""

    kind: str
    wait: float
    avoid: tuple[str, ...] = ()
    excluded: str = ""


def class_of(facts: Facts) -> RetryClass | None:
    """The class of a failed attempt; None for one that is never retried."""
    text = f"{facts.word} {facts.text}"
    of_layer = (c for c in CLASSES if facts.layer in c.layers)
    return next((c for c in of_layer if any(re.search(word, text) for word in c.words)), None)


def named_node(facts: Facts) -> str:
    """The only node of the job, or the one node that the verdict names; "" for none or several."""
    nodes = node_names(facts.nodes) if facts.nodes else []
    if len(nodes) == 1:
        return nodes[0]
    named = {node for node in nodes if re.search(rf"(?<![\w-]){re.escape(node)}(?![\w-])", facts.text)}
    return named.pop() if len(named) == 1 else ""


def allowed_retry(facts: Facts, earlier: int, policy: Policy) -> AllowedRetry | None:
    """The retry that a failure allows after ``earlier`` retries of its class; None for none.

    The wait varies at random by up to a fifth.
    """
    failure_class = class_of(facts)
    if failure_class is None:
        return None
    times = failure_class.times
    if failure_class.name == TIME_LIMIT and policy.retry_timeout:
        times = 1
    if failure_class.name == "server" and policy.confirm:
        times = 1
    nodes, node = failure_class.nodes, named_node(facts)
    if nodes == "exclude" and not node:
        nodes, times = "avoid", min(times, 1)
    if earlier >= times:
        return None
    wait = failure_class.wait * 2**earlier * random.uniform(0.8, 1.2)
    avoid = tuple(node_names(facts.nodes)) if nodes == "avoid" and facts.nodes else ()
    return AllowedRetry(failure_class.name, wait, avoid, node if nodes == "exclude" else "")
