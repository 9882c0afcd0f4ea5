"""Submits a script to the embedded scheduler, and has the function that the job runs.

``python -m launcher.container.embedded JOBS NAME TOKEN LOG SECONDS SCRIPT`` prints the job's id. It is a separate
program because a job inherits the environment of the submitting process: so no file contains variables or secrets.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from launcher.core.errors import LauncherError


def run_script(path: str) -> None:
    """The job: bash runs the script. Raises SystemExit with its exit code."""
    with subprocess.Popen(["bash", path], stdin=subprocess.DEVNULL) as script:
        try:
            code = script.wait()
        except SystemExit:
            # The scheduler sent TERM to the whole process group. The script ends its container, and we wait for it.
            script.terminate()
            script.wait()
            raise
    raise SystemExit(128 - code if code < 0 else code)


def main(arguments: list[str]) -> int:
    """Submit, and print the id."""
    from launcher.container.embedded import run_script as job_function  # pickled by this name, not by ``__main__``
    from launcher.slurm.local import submit

    jobs, name, token, log, seconds, script = arguments
    limit = float(seconds) if seconds else None
    run = functools.partial(job_function, script)
    try:
        job = submit(Path(jobs), run, name=name, token=token, log=Path(log), time_limit=limit)
    except LauncherError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{job.id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
