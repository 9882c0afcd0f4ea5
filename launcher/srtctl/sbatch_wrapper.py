"""The `sbatch` that srtctl runs: it calls the real one, and prints an answer that srtctl reads correctly.

srtctl takes the last word that sbatch prints as the job's id, and writes the job's configuration only afterwards
(srt-slurm c88ef731, cli/submit.py). After a lost answer, a banner or ``id;cluster`` the job would start without its
configuration and its log directory, and fail (0:53). `wrapper_on_path` puts this program before the real one on
srtctl's PATH. It submits the job held. The launcher releases the job once the run's record has its id and its directory
is complete (`launcher.run.loop`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import launcher
from launcher.core.errors import LauncherError
from launcher.core.process import run
from launcher.slurm.submission import LOST_ANSWER, find_new_jobs, parse_cluster, parse_job_ids

VARIABLE = "LAUNCHER_SBATCH"
"""The program's input, as JSON: ``token``, ``earlier`` (ids of jobs that carried it before), ``hold``, ``directory``
(where the program itself lies)."""

CLUSTER = "cluster"
"""The file beside the program, to which it writes the cluster that sbatch named: srtctl reads only the id."""

TIMEOUT = 240.0
"""Seconds for sbatch itself; `submit.Submission.timeout` is longer."""

_OUTPUT = re.compile(r"^#SBATCH --output=(\S+%j\S*)$", re.MULTILINE)
_PAUSES = [2.0, 2.0]


@contextlib.contextmanager
def wrapper_on_path(token: str, earlier: frozenset[str], path: str, *, hold: bool = False) -> Iterator[dict[str, str]]:
    """Variables that make ``sbatch`` this program: a PATH that begins with its directory, and its input.

    With ``hold`` jobs are submitted held.
    """
    if shutil.which("sbatch", path=path) is None:  # srtctl reports that itself
        yield {"PATH": path}
        return
    with tempfile.TemporaryDirectory(prefix="launcher-sbatch-") as directory:
        program = Path(directory, "sbatch")
        # sys.path, not PYTHONPATH, which sbatch would pass on to the job.
        package = str(Path(launcher.__file__).parents[1])
        start = "from launcher.srtctl.sbatch_wrapper import main; sys.exit(main())"
        code = f"import sys; sys.path.insert(0, {package!r}); {start}"
        # -S: the program rarely needs site's packages, and starts in half the time without them.
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", "-E", "-c", code])} "$@"\n')
        program.chmod(0o755)
        request = {"token": token, "earlier": sorted(earlier), "hold": hold, "directory": directory}
        yield {"PATH": f"{directory}:{path}", VARIABLE: json.dumps(request)}


def reported_cluster(environ: Mapping[str, str]) -> str:
    """The cluster that sbatch named to the program with these variables; "" for none."""
    with contextlib.suppress(KeyError, OSError, ValueError):
        return Path(json.loads(environ[VARIABLE])["directory"], CLUSTER).read_text()
    return ""


def main() -> int:
    """Run the real sbatch with our arguments, and print ``Submitted batch job ID`` when there is exactly one job."""
    code, out, err = submit(sys.argv[1:], os.environ)
    os.write(2, err.encode())
    os.write(1, out.encode())
    os._exit(code)  # Python's clean-up would delay srtctl while the job may be starting


def submit(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Submit once, whatever the answer is. Return exit code, standard output and standard error."""
    request = json.loads(environ[VARIABLE])
    token, earlier = request["token"], frozenset(request["earlier"])
    path = os.pathsep.join(p for p in environ["PATH"].split(os.pathsep) if p != request["directory"])
    real = {**{k: v for k, v in environ.items() if k != VARIABLE}, "PATH": path}
    # --hold must come before the script: words after it are the script's arguments.
    done = run(["sbatch", *(["--hold"] if request["hold"] else []), *arguments], timeout=TIMEOUT, env=real)
    ids = parse_job_ids(done.stdout)
    if done.ok and len(ids) == 1:
        if cluster := parse_cluster(done.stdout):
            with contextlib.suppress(OSError):
                Path(request["directory"], CLUSTER).write_text(cluster)
        _make_output_directory(arguments, ids[0])
        return 0, f"Submitted batch job {ids[0]}\n", done.stderr
    if sys.flags.no_site:  # the code below imports packages
        import site

        site.main()
    jobs = _jobs_in_queue(token, earlier, real)
    if len(jobs) == 1:
        _make_output_directory(arguments, jobs[0])
    elif not jobs:
        may_come = done.ok or done.timed_out or bool(LOST_ANSWER.search(done.stderr))
        from launcher.slurm.commands import SlurmCommands

        with contextlib.suppress(LauncherError):
            jobs = [*find_new_jobs(token, earlier, SlurmCommands(environ=real), _PAUSES if may_come else [])]
    if len(jobs) == 1:
        error = done.stderr + f"sbatch did not print the job's id ({done}); Slurm has it as {jobs[0]}\n"
        return 0, f"Submitted batch job {jobs[0]}\n", error
    return done.returncode or 1, done.stdout, done.stderr


def _jobs_in_queue(token: str, earlier: frozenset[str], environ: Mapping[str, str]) -> list[str]:
    """The ids of new jobs with this token by squeue, which answers in milliseconds; none if it does not answer."""
    from launcher.slurm.client import Phase, has_token
    from launcher.slurm.commands import SlurmCommands

    answer = SlurmCommands(environ=environ, timeout=5.0).query_controller(user=str(os.getuid()))
    new = (r for records in answer.records.values() for r in records if r.id not in earlier)
    ours = (r for r in new if has_token(r.comment, token))
    return [r.id for r in ours if r.state.phase is not Phase.TERMINAL or r.state.nodes]


def _make_output_directory(arguments: list[str], job: str) -> None:
    """Make the directory of the script's ``--output``.

    srtctl makes it only when it has the id. A job that is not held may start before that, and fails without it.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for script in (Path(a) for a in arguments if not a.startswith("-")):
            if script.is_file() and (output := _OUTPUT.search(script.read_text())):
                Path(output[1].replace("%j", job)).parent.mkdir(parents=True, exist_ok=True)
