"""The `sbatch` that srtctl finds: it runs the real one and gives an answer that can be relied on.

srtctl takes the last word that sbatch prints for the job's id, and writes the job's configuration only afterwards
(srt-slurm c88ef731, cli/submit.py). So a lost answer, a banner or ``id;cluster`` costs more than the id: the job starts
without its configuration and its log directory, and fails (0:53). `wrapper_on_path` puts this program before the real
one on srtctl's PATH. It submits the job held. The launcher releases the job once the run's record has its id and its
directory is complete (`launcher.run.loop`).
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
from launcher.slurm.submission import IN_DOUBT, new_jobs, printed_cluster, printed_ids

VARIABLE = "LAUNCHER_SBATCH"
"""The program's input, as JSON: ``token``, ``earlier`` (ids of jobs that carried it before), ``hold``, ``directory``
(where the program itself lies)."""

CLUSTER = "cluster"
"""The file beside the program in which it leaves the cluster that sbatch named: srtctl takes ids alone."""

TIMEOUT = 240.0
"""Seconds for sbatch itself; `submit.Submission.timeout` is longer."""

_OUTPUT = re.compile(r"^#SBATCH --output=(\S+%j\S*)$", re.MULTILINE)
_PAUSES = [2.0, 2.0]


@contextlib.contextmanager
def wrapper_on_path(token: str, earlier: frozenset[str], path: str, *, hold: bool = False) -> Iterator[dict[str, str]]:
    """Variables under which ``sbatch`` is this program: a PATH that begins with it, and its input.

    With ``hold`` jobs are submitted held.
    """
    if shutil.which("sbatch", path=path) is None:  # srtctl's own message says that there is none
        yield {"PATH": path}
        return
    with tempfile.TemporaryDirectory(prefix="launcher-sbatch-") as directory:
        program = Path(directory, "sbatch")
        # A directory in front of sys.path, not PYTHONPATH, which sbatch would hand on to the job.
        package = str(Path(launcher.__file__).parents[1])
        start = "from launcher.srtctl.sbatch_wrapper import main; sys.exit(main())"
        code = f"import sys; sys.path.insert(0, {package!r}); {start}"
        # Without site, whose packages it mostly does not need: it starts in half the time.
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", "-E", "-c", code])} "$@"\n')
        program.chmod(0o755)
        told = {"token": token, "earlier": sorted(earlier), "hold": hold, "directory": directory}
        yield {"PATH": f"{directory}:{path}", VARIABLE: json.dumps(told)}


def cluster_told(environ: Mapping[str, str]) -> str:
    """The cluster that sbatch named, of the program whose variables these are; "" for none."""
    with contextlib.suppress(KeyError, OSError, ValueError):
        return Path(json.loads(environ[VARIABLE])["directory"], CLUSTER).read_text()
    return ""


def main() -> int:
    """Run the real sbatch with our arguments, and print ``Submitted batch job ID`` when there is exactly one job."""
    code, out, err = submit(sys.argv[1:], os.environ)
    os.write(2, err.encode())
    os.write(1, out.encode())
    os._exit(code)  # Python's own clean-up would only delay srtctl, and the job may be starting


def submit(arguments: list[str], environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of the submission. Submits once, whatever the answer is."""
    given = json.loads(environ[VARIABLE])
    token, earlier = given["token"], frozenset(given["earlier"])
    path = os.pathsep.join(p for p in environ["PATH"].split(os.pathsep) if p != given["directory"])
    real = {**{k: v for k, v in environ.items() if k != VARIABLE}, "PATH": path}
    # Options come before the script: what follows it belongs to the script.
    held = ["--hold"] if given["hold"] else []
    done = run(["sbatch", *held, *arguments], timeout=TIMEOUT, env=real)
    ids = printed_ids(done.stdout)
    if done.ok and len(ids) == 1:
        if cluster := printed_cluster(done.stdout):
            with contextlib.suppress(OSError):
                Path(given["directory"], CLUSTER).write_text(cluster)
        _make_output_directory(arguments, ids[0])
        return 0, f"Submitted batch job {ids[0]}\n", done.stderr
    if sys.flags.no_site:  # from here on packages are needed
        import site

        site.main()
    found = _in_queue(token, earlier, real)
    if len(found) == 1:
        _make_output_directory(arguments, found[0])
    elif not found:
        may_come = done.ok or done.timed_out or bool(IN_DOUBT.search(done.stderr))
        from launcher.slurm.commands import SlurmCommands

        with contextlib.suppress(LauncherError):
            found = [*new_jobs(token, earlier, SlurmCommands(environ=real), _PAUSES if may_come else [])]
    if len(found) == 1:
        error = done.stderr + f"sbatch did not print the job's id ({done}); Slurm has it as {found[0]}\n"
        return 0, f"Submitted batch job {found[0]}\n", error
    return done.returncode or 1, done.stdout, done.stderr


def _in_queue(token: str, earlier: frozenset[str], environ: Mapping[str, str]) -> list[str]:
    """The ids of new jobs with this token that squeue shows, which takes milliseconds; none when it does not answer."""
    from launcher.slurm.client import Phase, carries
    from launcher.slurm.commands import SlurmCommands

    answer = SlurmCommands(environ=environ, timeout=5.0).ask_controller(user=str(os.getuid()))
    records = [record for some in answer.records.values() for record in some]
    ours = [r for r in records if carries(r.comment, token) and r.id not in earlier]
    return [r.id for r in ours if r.state.phase is not Phase.TERMINAL or r.state.nodes]


def _make_output_directory(arguments: list[str], job: str) -> None:
    """Make the directory of the ``--output`` that the script names.

    A job that is not held may start at any moment and fails without it, and srtctl makes it only once it has the id.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for script in (Path(a) for a in arguments if not a.startswith("-")):
            if script.is_file() and (output := _OUTPUT.search(script.read_text())):
                Path(output[1].replace("%j", job)).parent.mkdir(parents=True, exist_ok=True)
