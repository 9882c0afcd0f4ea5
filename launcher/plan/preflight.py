"""Which looks a plan asks for, as commands of a script on the node. Open preflight.sh for what each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from launcher.core.shell_words import quote_word
from launcher.plan.plan import Plan, PlannedModel

ROOM = 1024
"""Mebibytes that a directory must have left which a job writes to."""


@cache
def shell_functions() -> str:
    """The functions, in bash."""
    return Path(__file__).with_name("preflight.sh").read_text()


def model_checks(model: PlannedModel) -> list[str]:
    """Whether the checkpoint is there, whole, and the declared one; nothing where the benchmark downloads it."""
    path = model.path
    if path is None or path.startswith("hf:") or model.downloads:
        return []
    # What takes more than a look at config.json is not known on the node.
    declared = {k: str(v) for k, v in model.fingerprint.items() if k not in ("quantisation", "weights")}
    identity = "fact checkpoint_identity 'not known: the runner file declares no fingerprint'"
    if declared:
        identity = " ".join(["check_identity", *(quote_word(text) for pair in declared.items() for text in pair)])
    mounted = f"mounted=({' '.join(map(quote_word, model.mounted))})"
    return [f"model={quote_word(path)}", mounted, "check_checkpoint", identity]


def image_checks(plan: Plan) -> list[str]:
    """Whether the squash files that all nodes share can be read here; a node's own are imported by the job."""
    return [f"look_at_image {quote_word(image.squash)}" for image in plan.images if image.shared and image.squash]


def clock_checks(directory: str) -> list[str]:
    """Whether the clock is the login node's, in a directory (a word) that both see."""
    return [f"look_at_clock {directory}"]


def declare_local_locks(*, local: bool) -> list[str]:
    """What the runner file says of locks: those that are ``local`` to each host are told, and not judged."""
    return ["locks_local=yes"] if local else []


def with_lock_check(directory: str, looks: Sequence[str], *, local: bool = False) -> list[str]:
    """The looks, while the login node is asked whether locks hold in the directory: it may take seconds to answer."""
    return [*declare_local_locks(local=local), f"ask_login {directory}", *looks, f"hear_login {directory}"]


def with_login_checks(directory: str, looks: Sequence[str], *, local: bool = False) -> list[str]:
    """The looks, beside those at what this node and the login node agree about."""
    return [*clock_checks(directory), *with_lock_check(directory, looks, local=local)]


def node_checks(gpus: int, *, alone: bool, patience: int = 0, directories: Sequence[str] = ()) -> list[str]:
    """Whether the node has its GPUs, free where the job has the node for itself, and room in what it writes to."""
    looks = [f"look_at_gpus {gpus} {'yes' if alone else 'no'} {patience}"] if gpus else []
    if directories:
        looks.append(f"look_at_directories {ROOM} {' '.join(map(quote_word, directories))}")
    return looks
