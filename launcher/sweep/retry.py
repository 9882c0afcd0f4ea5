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


def class_of(seen: Facts) -> RetryClass | None:
    """The class of a failed attempt; None for one that is never tried again."""
    text = f"{seen.word} {seen.text}"
    of_layer = (c for c in CLASSES if seen.layer in c.layers)
    return next((c for c in of_layer if any(re.search(word, text) for word in c.words)), None)


def named_node(seen: Facts) -> str:
    """The one node that a verdict names, or the only one that the job had; "" for none or several."""
    nodes = node_names(seen.nodes) if seen.nodes else []
    if len(nodes) == 1:
        return nodes[0]
    named = {node for node in nodes if re.search(rf"(?<![\w-]){re.escape(node)}(?![\w-])", seen.text)}
    return named.pop() if len(named) == 1 else ""


def allowed_retry(seen: Facts, before: int, policy: Policy) -> AllowedRetry | None:
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
    return AllowedRetry(found.name, wait, avoid, node if nodes == "exclude" else "")
