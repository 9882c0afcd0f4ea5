"""Checks images and checkpoint from a node of the partition, in a short job without GPUs, before srtctl submits.

A good answer is used again for `KEPT` seconds by every run that checks the same on the same partition.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from launcher.core.errors import ImageError, LauncherError, ModelError, NodeError
from launcher.core.node_partner import answering_nodes
from launcher.core.process import CommandRunner
from launcher.core.publish import make_private, write_text
from launcher.core.reading import read_file
from launcher.core.shell_words import quote_word
from launcher.plan.plan import Plan
from launcher.plan.preflight import image_checks, model_checks, shell_functions, with_login_checks

KEPT = 3600.0
"""Seconds for which an answer is used again."""

WAIT = 300.0
"""Seconds to wait for a node. A partition without a free node must not keep a run from queueing."""

_ERRORS: dict[int, type[LauncherError]] = {3: ImageError, 4: ModelError, 8: NodeError}

_FRAME = r"""set -u -o pipefail
say() { :; }
fact() { :; }
fail() { printf 'launcher: error: %s\n' "${*:2}" >&2; exit "$1"; }
"""


def check_from_node(
    plan: Plan, state: Path, run: CommandRunner, environment: Mapping[str, str], now: float | None = None
) -> str:
    """Have a node check images, checkpoint, this host's clock, and locks beside the images; the result as a sentence.

    ``state`` is the directory of kept answers. The sentence also says if no node answered in time. Raises ImageError,
    ModelError, NodeError when a check fails.
    """
    checks = [*image_checks(plan), *model_checks(plan.model)]
    if not checks:
        return "nothing of this plan can be looked at from a node"
    planned, now = plan.scheduler, time.time() if now is None else now
    key = hashlib.sha256(f"{plan.runner}\0{planned.partition}\0{shell_functions()}{checks}".encode()).hexdigest()[:24]
    answer = state / key
    try:
        if 0 <= now - answer.stat().st_mtime < KEPT:
            node = read_file(answer, 4096).decode().strip()
            return f"{node} looked {round((now - answer.stat().st_mtime) / 60)} minutes ago"
    except (OSError, UnicodeDecodeError):
        pass
    argv = ["srun", "--nodes=1", "--ntasks=1", "--gres=none", "--time=5", "--export=ALL"]
    argv += [f"--job-name={plan.job_name}", f"--immediate={WAIT:.0f}"]
    argv += [f"--{name}={value}" for name in ("partition", "account") if (value := getattr(planned, name))]
    shared = next((Path(image.squash).parent for image in plan.images if image.shared and image.squash), None)
    with answering_nodes(shared) if shared is not None else nullcontext() as directory:
        if directory is not None:
            checks = with_login_checks(quote_word(str(directory)), checks, local=plan.locks_are_local(str(shared)))
        script = "\n".join([_FRAME, shell_functions(), *checks, "uname -n"])
        done = run([*argv, "bash", "-c", script], timeout=2 * WAIT, env=environment)
    error = re.search(r"launcher: error: (.*)", done.stderr)
    if done.returncode in _ERRORS and error:
        raise _ERRORS[done.returncode](
            error[1], where=f"partition {planned.partition}", hint="looked at before a GPU is held"
        )
    if not done.ok:
        return f"no node looked at images and checkpoint: {' '.join(done.stderr.split())[-200:]}"
    node = (done.stdout.split() or ["a node"])[-1]
    try:
        make_private(state)
        write_text(answer, f"{node}\n")
    except OSError as error:
        return f"{node} looked at images and checkpoint, which is not kept: {error.strerror}"
    return f"{node} looked at images and checkpoint"
