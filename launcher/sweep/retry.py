"""What follows from a failed attempt: whether the same may be tried again, how often, after how long, on which nodes.

The classes (retry_classes.yaml) are those of the layers of verdicts (`launcher.run.verdict`), told apart by the
verdict's own words. What is the benchmark's, the server's or the configuration's own doing is never tried again by
itself.
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
    """Failures that are alike; retry_classes.yaml says what its keys mean."""

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
    """What failures with one cause have in common: the layer, and the verdict without paths, numbers and hosts."""
    first = text.splitlines()[0] if text else ""
    for pattern, instead in ((_PATH, "PATH"), (_HOST, "HOST"), (_NUMBER, "N")):
        first = pattern.sub(instead, first)
    return f"{layer}: {first[:160]}".strip()


@dataclass(frozen=True)
class AllowedRetry:
    """A further attempt: of which class, after how many seconds, without which nodes; ``excluded`` is the one node that
    the sweep uses no more."""

    kind: str
    wait: float
    avoid: tuple[str, ...] = ()
    excluded: str = ""


def class_of(facts: Facts) -> RetryClass | None:
    """The class of a failed attempt; None for one that is never tried again."""
    text = f"{facts.word} {facts.text}"
    of_layer = (c for c in CLASSES if facts.layer in c.layers)
    return next((c for c in of_layer if any(re.search(word, text) for word in c.words)), None)


def named_node(facts: Facts) -> str:
    """The one node that a verdict names, or the only one that the job had; "" for none or several."""
    nodes = node_names(facts.nodes) if facts.nodes else []
    if len(nodes) == 1:
        return nodes[0]
    named = {node for node in nodes if re.search(rf"(?<![\w-]){re.escape(node)}(?![\w-])", facts.text)}
    return named.pop() if len(named) == 1 else ""


def allowed_retry(facts: Facts, earlier: int, policy: Policy) -> AllowedRetry | None:
    """The further attempt that a failure allows, when ``earlier`` such attempts of its class were made; None for none.

    Its wait is longer or shorter by up to a fifth, at random.
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
