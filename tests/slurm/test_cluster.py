"""What the commands cost on a real Slurm; what they must answer is in test_contract.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SlurmCluster
from tests.slurm.following import follow
from tests.slurm.live import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(slurm_cluster, tmp_path)
    yield cluster
    cluster.close()


def test_fifty_jobs_cost_few_calls(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [cluster.submit(f"sleep {n % 10}; exit {n % 2}") for n in range(50)]
    cluster.runner.forget()
    began = time.monotonic()
    states = follow(cluster.scheduler, jobs)
    seconds = time.monotonic() - began
    programs = [call[0] for call in cluster.runner.calls]
    with capsys.disabled():
        counts = ", ".join(f"{programs.count(name)} {name}" for name in sorted(set(programs)))
        busy = sum(answer.seconds for answer in cluster.runner.answers)
        print(f"\n50 jobs that end within {seconds:.0f} s: {counts}, {busy:.2f} s of them running")
    assert [states[job].succeeded for job in jobs] == [n % 2 == 0 for n in range(50)]
    assert all(states[job].word == ("FAILED" if n % 2 else "COMPLETED") for n, job in enumerate(jobs))
    assert programs.count("squeue") <= 2 + seconds / 1.6, "two seconds, less the jitter, at the shortest"
    # Once a question, and once more where accounting lagged so that the controller was asked of a job.
    assert programs.count("sacct") <= programs.count("squeue") + programs.count("scontrol")
    assert len(programs) < len(jobs)
    assert programs.count("scontrol") < 25, "only while accounting lags"
