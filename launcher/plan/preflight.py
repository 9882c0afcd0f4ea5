"""The checks that a plan needs on a node, as commands of a job's script; preflight.sh defines what each one does."""

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
    """Check that the checkpoint is there, complete, and the declared one; no checks when the benchmark downloads it."""
    path = model.path
    if path is None or path.startswith("hf:") or model.downloads:
        return []
    # The node reads only config.json, which does not tell these two.
    declared = {k: str(v) for k, v in model.fingerprint.items() if k not in ("quantisation", "weights")}
    identity = "fact checkpoint_identity 'not known: the runner file declares no fingerprint'"
    if declared:
        identity = " ".join(["check_identity", *(quote_word(text) for pair in declared.items() for text in pair)])
    mounted = f"mounted=({' '.join(map(quote_word, model.mounted))})"
    return [f"model={quote_word(path)}", mounted, "check_checkpoint", identity]


def image_checks(plan: Plan) -> list[str]:
    """Check that shared squash files can be read here; the job itself imports those of a single node."""
    return [f"look_at_image {quote_word(image.squash)}" for image in plan.images if image.shared and image.squash]


def clock_checks(directory: str) -> list[str]:
    """Check the clock against the login node's, by a directory (a quoted word) that both see."""
    return [f"look_at_clock {directory}"]


def declare_local_locks(*, local: bool) -> list[str]:
    """Tell the script what the runner file says: locks that are ``local`` to each host are reported, not judged."""
    return ["locks_local=yes"] if local else []


def with_lock_check(directory: str, checks: Sequence[str], *, local: bool = False) -> list[str]:
    """The checks ``checks``, while the login node checks locks in the directory, which may take seconds."""
    return [*declare_local_locks(local=local), f"ask_login {directory}", *checks, f"hear_login {directory}"]


def with_login_checks(directory: str, checks: Sequence[str], *, local: bool = False) -> list[str]:
    """The checks ``checks`` with those of clock and locks, which compare this node with the login node."""
    return [*clock_checks(directory), *with_lock_check(directory, checks, local=local)]


def node_checks(gpus: int, *, alone: bool, patience: int = 0, directories: Sequence[str] = ()) -> list[str]:
    """Check that the node has its GPUs, free when the job has the node ``alone``, and room in its directories."""
    checks = [f"look_at_gpus {gpus} {'yes' if alone else 'no'} {patience}"] if gpus else []
    if directories:
        checks.append(f"look_at_directories {ROOM} {' '.join(map(quote_word, directories))}")
    return checks
