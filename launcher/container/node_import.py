"""Imports of images into nodes' own directories, by hand and beforehand: no job then holds GPUs while it imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.container.job_script import import_alone
from launcher.core.errors import ImageError
from launcher.core.process import CommandRunner
from launcher.image.reference import PlannedImage

SLACK = 600
"""Seconds that a job of an import may wait for its node, beside those of lock and import."""


def import_on_node(
    image: PlannedImage, node: str, options: Sequence[str], run: CommandRunner, environment: Mapping[str, str]
) -> str:
    """Have an image in a node's own directory, by a job there that asks for no GPU; what the job said.

    ``options`` are srun's. A whole image that is there is left alone. Raises ImageError.
    """
    argv = ["srun", f"--nodelist={node}", "--nodes=1", "--ntasks=1", "--gres=none", "--export=ALL", *options]
    limit = image.lock_wait + image.import_timeout + SLACK
    done = run([*argv, "bash", "-c", import_alone(image)], timeout=limit, env=environment)
    if not done.ok:
        said = done.tail(20, [line for line in (done.stdout + done.stderr).splitlines() if line.strip()])
        raise ImageError(
            f"{image.reference} was not imported on {node}: srun exited with {done.returncode}\n{said}",
            where=f"{node}:{image.squash}",
            hint="is the node up, and is its disk full? (sinfo -n NODE, df)",
        )
    return done.stdout.strip()
