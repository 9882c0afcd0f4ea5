"""A sweep of kind srtctl on a real Slurm whose jobs end at once: `launcher sweep start` in this process, counted.

The cluster is the one-machine Slurm of the environment (``eval "$(scripts/cluster env)"``). Stand-ins, named so: srtctl
is a shell script that submits (the real sbatch, by the launcher's own program before it), and its job copies results
that were made beforehand. Everything else is what a person's sweep does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from launcher.cli import main as launcher
from launcher.rehearsal import stand_ins
from launcher.rehearsal.results import Topology, benchmark_result

KEY = "minimaxm3-fp8-gb200-dynamo-vllm"
TOPOLOGY = Topology(1, 4, 1, 4)
QUESTIONS = {"squeue", "sacct", "scontrol", "sinfo", "sacctmgr"}

SRTCTL = r"""#!/bin/sh
# Stand-in for srtctl: submits a job that copies results which are there already.
set -eu
case " $* " in *" --help "*) echo "--file --output --yes --tags --setup-script --json --no-preflight"; exit 0;; esac
while [ "$1" != -f ]; do shift; done
file=${2%%:*}
name=$(sed -n 's/^ *comment: *//p' "$file" | head -1 | tr -d "'\"")
script=$(mktemp)
cat > "$script" <<END
#!/bin/sh
#SBATCH --job-name=measured
#SBATCH --comment=$name
#SBATCH --partition=batch
#SBATCH --account=benchmark
#SBATCH --nodes=2
#SBATCH --time=10
#SBATCH --output=$PWD/outputs/%j/logs/sweep_%j.log
echo "srtctl Sweep Orchestrator"
to=$PWD/outputs/\$SLURM_JOB_ID/logs/sa-bench_isl_1024_osl_1024
mkdir -p \$to
for c in $CONC_LIST; do
  cp TEMPLATES/\$c.json \$to/results_concurrency_\${c}_gpus_8_ctx_4_gen_4.json
done
echo "✓ Sweep completed successfully"; echo "End: now"; echo "=========="
END
echo "Submitting: measured" >&2
job=$(sbatch "$script"); job=${job##* }
rm "$script"
mkdir -p outputs/$job/logs
cp "$file" outputs/$job/config.yaml
echo "{\"status\": \"submitted\", \"slurm_job_id\": \"$job\", \"output_dir\": \"$PWD/outputs/$job\"}"
"""


class Children:
    """Programs that this process starts: how often, and when each sbatch of srtctl began."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        """Questions to Slurm by the thread that asks: ``poll`` is about all jobs."""
        self.submissions: list[float] = []
        self._init = subprocess.Popen.__init__

    def watch(self) -> None:
        def counted(child: Any, argv: Any, *given: Any, **more: Any) -> None:
            name = Path(argv[0]).name
            words = name if name not in ("scontrol", "git", "srtctl") else f"{name} {argv[1]}"
            self.counts[words] += 1
            if name in QUESTIONS and words != "scontrol release":
                self.asked[threading.current_thread().name] += 1
            if words == "srtctl apply":
                self.submissions.append(time.monotonic())
            self._init(child, argv, *given, **more)

        subprocess.Popen.__init__ = counted  # type: ignore[method-assign, assignment]


def matrix(path: Path, points: int, jobs: int) -> None:
    """A row of the shipped matrix as many times, each with concurrencies of its own."""
    shipped = yaml.safe_load((Path(__file__).parents[2] / "recipes/matrix.yaml").read_text())[KEY]
    place = shipped["scenarios"]["fixed-seq-len"][0]
    each, row = max(1, points // jobs), place["search-space"][0]
    place["search-space"] = [{**row, "conc-list": list(range(1 + n * each, 1 + (n + 1) * each))} for n in range(jobs)]
    shipped["scenarios"] = {"fixed-seq-len": [place]}
    path.write_text(yaml.safe_dump({KEY: shipped}))


def make(root: Path, points: int) -> None:
    """The stand-in for srtctl, found first, and the results that its jobs copy."""
    templates, programs = root / "templates", root / "programs"
    templates.mkdir()
    programs.mkdir()
    for concurrency in range(1, points + 1):
        document = benchmark_result(TOPOLOGY, concurrency, 1024, 1024, model="MiniMaxAI/MiniMax-M3-MXFP8")
        (templates / f"{concurrency}.json").write_text(json.dumps(document))
    program = programs / "srtctl"
    program.write_text(SRTCTL.replace("TEMPLATES", str(templates)))
    program.chmod(0o755)
    environment = stand_ins.stand_in_environment

    def with_ours(*given: Any) -> dict[str, str]:
        found = environment(*given)
        return {**found, "PATH": f"{programs}{os.pathsep}{found['PATH']}"}

    stand_ins.stand_in_environment = with_ours


def real(root: Path, points: int, jobs: int, at_once: int = 4) -> dict[str, Any]:
    """One sweep, warm: one job before it has made image, checkpoint and checkout."""
    os.environ.update(LAUNCHER_STATE=str(root / "state"), HOME=str(root), NO_COLOR="1")
    (root / "workspace").mkdir()
    os.chdir(root / "workspace")
    make(root, points)
    words = (
        "-k",
        KEY,
        "--runner",
        "one-machine",
        "--yes",
        "--no-live",
        "--accept",
        "concurrency",
        "--conc",
        *map(str, range(1, points + 1)),
    )
    for name, count in (("warm", 1), ("m", jobs)):
        matrix(root / f"{name}.yaml", points * count // jobs, count)
    with (root / "out").open("w") as out:
        sys.stdout = out
        code = launcher(["sweep", "start", *words, "--matrix", str(root / "warm.yaml"), "--name", "warm"])
        assert code == 0, f"exit {code}: {(root / 'out').read_text()}"
        children, began = Children(), time.monotonic()
        children.watch()
        own, theirs = time.process_time(), _children()
        argv = ["sweep", "start", *words, "--matrix", str(root / "m.yaml"), "--name", "m", "--max-jobs", str(at_once)]
        code = launcher(argv)
        own, theirs, seconds = time.process_time() - own, _children() - theirs, time.monotonic() - began
        sys.stdout = sys.__stdout__
    gaps = [after - before for before, after in pairwise(children.submissions)]
    return {
        "points": points,
        "jobs": jobs,
        "exit": code,
        "wall s": round(seconds, 1),
        "CPU s": round(own, 2),
        "CPU ms a job": round(own * 1000 / jobs, 1),
        "CPU ms of children a job": round(theirs * 1000 / jobs, 1),
        "MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "s to the first srtctl": round(children.submissions[0] - began, 2),
        "s between submissions, mean": round(statistics.mean(gaps), 2) if gaps else None,
        "s between submissions, median": round(statistics.median(gaps), 2) if gaps else None,
        "s between submissions, a tenth below": round(sorted(gaps)[len(gaps) // 10], 2) if gaps else None,
        "questions by polling": children.asked["poll"],
        "an hour": round(children.asked["poll"] * 3600 / seconds),
        "other questions a job": round((children.asked.total() - children.asked["poll"]) / jobs, 2),
        "programs": dict(children.counts.most_common()),
        **{f"sweep {verb}, CPU s": timed(verb) for verb in ("status", "resume")},
        "runs begun by resume": len(list((root / "state" / "runs").glob("m-*"))) - jobs,
    }


def timed(verb: str, tries: int = 3) -> float:
    """CPU seconds of `launcher sweep VERB m` as a process of its own, the least of some."""
    used = []
    for _ in range(tries):
        before = _children()
        argv = [sys.executable, "-m", "launcher", "sweep", verb, "m"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        used.append(_children() - before)
    return round(min(used), 2)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
