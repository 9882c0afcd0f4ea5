"""Figures of sweeps on an emulated cluster: ``python -m scripts.measure_sweeps CASE …``.

emulated POINTS JOBS   a sweep whose jobs end at once, by the stand-in controller: CPU of the driver's own process, in
                       all and a job, greatest memory at a tenth of the jobs and at the end, calls by kind
idle JOBS SECONDS      as many jobs that live all the time: CPU of the driver, for an hour
real POINTS JOBS [N]   a sweep of kind srtctl on a real Slurm (scripts/cluster), N jobs at once, which end at once: CPU
                       of driver and children, questions, distance of submissions, `status`, `resume`
status POINTS RECORDS  `launcher sweep status`, and `resume` of a finished sweep, beside so many other run records
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from launcher.benchmark.benchmark import Benchmark, Role
from launcher.core.stop import Stop
from launcher.slurm.poller import Pace
from launcher.sweep.schema import Policy
from scripts.measure_sweeps.emulation import PACE, drive, make_sweep
from scripts.measure_sweeps.real import real
from tests.benchmarks import a_benchmark

SLOW = Pace(refill=27.5, burst=10, release_at_once=True, tick=5.0, rest=0.25)
"""The pace of real sweeps (launcher/cli/sweep_driving.py)."""


def rows(points: int, jobs: int, seconds: float = 0.0) -> list[Benchmark]:
    said = {"CONFIG_FILE": "recipes/r.yaml", "SECONDS": str(seconds)}
    each = max(1, points // jobs)
    concurrencies = tuple(2**n for n in range(each))
    return [
        a_benchmark(
            prefill=Role(1 + n // 50, 1 + n % 50), decode=Role(1, 4), concurrencies=concurrencies, settings=said
        )
        for n in range(jobs)
    ]


def cpu() -> float:
    return time.process_time()


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def emulated(root: Path, points: int, jobs: int) -> dict[str, Any]:
    make_sweep(root, "s", rows(points, jobs), Policy(max_jobs=50))
    seen: dict[str, float] = {}
    ended = 0

    def say(kind: str, text: str) -> None:
        nonlocal ended
        ended += kind == "end"
        if ended == jobs // 10:
            seen.setdefault("MB at a tenth", round(megabytes(), 1))

    began, used = time.monotonic(), cpu()
    driver = drive(root, "s", pace=PACE, say=say)
    controller = driver._maker._project.controller  # type: ignore[attr-defined]
    return {
        "points": points,
        "jobs": jobs,
        "ended": ended,
        "CPU s": round(cpu() - used, 2),
        "CPU ms a job": round((cpu() - used) * 1000 / jobs, 1),
        **seen,
        "MB": round(megabytes(), 1),
        "wall s": round(time.monotonic() - began, 1),
        "calls": controller.calls,
    }


def idle(root: Path, jobs: int, seconds: float) -> dict[str, Any]:
    make_sweep(root, "s", rows(jobs, jobs, seconds=1e6), Policy(max_jobs=jobs))
    stop = threading.Event()
    used: list[float] = []
    threading.Timer(20.0, lambda: used.append(cpu())).start()
    threading.Timer(20.0 + seconds, lambda: (used.append(cpu()), stop.set())).start()
    driver = drive(root, "s", Stop(stop.wait), pace=SLOW)
    controller = driver._maker._project.controller  # type: ignore[attr-defined]
    an_hour = (used[1] - used[0]) * 3600 / seconds
    return {"living jobs": jobs, "CPU s an hour": round(an_hour, 1), "calls": controller.calls}


def status(root: Path, points: int, records: int) -> dict[str, Any]:
    make_sweep(root, "s", rows(points, points // 5), Policy(max_jobs=50))
    drive(root, "s", pace=PACE)
    runs = sorted((root / "state" / "runs").iterdir())
    for number in range(records):
        source, target = runs[number % len(runs)], root / "state" / "runs" / f"other-{number}"
        shutil.copytree(source, target)
        document = json.loads((target / "run.json").read_text())
        (target / "run.json").write_text(json.dumps({**document, "id": target.name}))
    found: dict[str, Any] = {"points": points, "run records": records + len(runs)}
    for words in (["status", "s"], ["resume", "s"]):
        best = 1e9
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            argv = [sys.executable, "-m", "launcher", "sweep", *words, "--state", str(root / "state")]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HOME": str(root)})
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        found[f"sweep {words[0]}, CPU s"] = round(best, 2)
    return found


def main(argv: list[str]) -> int:
    cases = {"emulated": emulated, "idle": idle, "status": status, "real": real}
    if not argv or argv[0] not in cases:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        case: Any = cases[argv[0]]
        print(json.dumps(case(Path(directory), *map(int, argv[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
