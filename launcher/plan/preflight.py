"""Which looks a plan asks for, as commands of a script on the node. Open preflight.sh for what each of them does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from launcher.core.shell_words import word
from launcher.plan.plan import Plan

ROOM = 1024
"""Mebibytes that a directory must have left which a job writes to."""


@cache
def functions() -> str:
    """The functions, in bash."""
    return Path(__file__).with_name("preflight.sh").read_text()


def look_at_model(plan: Plan) -> list[str]:
    """Whether the checkpoint is there, whole, and the declared one; nothing where the benchmark downloads it."""
    path = plan.model.path
    if path is None or path.startswith("hf:") or plan.model.downloads:
        return []
    # What takes more than a look at config.json is not known on the node.
    declared = {k: str(v) for k, v in plan.model.fingerprint.items() if k not in ("quantisation", "weights")}
    identity = "fact checkpoint_identity 'not known: the runner file declares no fingerprint'"
    if declared:
        identity = " ".join(["check_identity", *(word(text) for pair in declared.items() for text in pair)])
    mounted = f"mounted=({' '.join(map(word, plan.model.mounted))})"
    return [f"model={word(path)}", mounted, "check_checkpoint", identity]


def look_at_images(plan: Plan) -> list[str]:
    """Whether the squash files that all nodes share can be read here; a node's own are imported by the job."""
    return [f"look_at_image {word(image.squash)}" for image in plan.images if image.shared and image.squash]


def with_login(directory: str, looks: Sequence[str]) -> list[str]:
    """The looks, while the login node is asked about clock and locks in a directory (a word) that both see: it may take
    seconds to answer."""
    return [f"ask_login {directory}", *looks, f"hear_login {directory}"]


def look_at_node(gpus: int, *, alone: bool, patience: int = 0, directories: Sequence[str] = ()) -> list[str]:
    """Whether the node has its GPUs, free where the job has the node for itself, and room in what it writes to."""
    looks = [f"look_at_gpus {gpus} {'yes' if alone else 'no'} {patience}"] if gpus else []
    if directories:
        looks.append(f"look_at_directories {ROOM} {' '.join(map(word, directories))}")
    return looks
