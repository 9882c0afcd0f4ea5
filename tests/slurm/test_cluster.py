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
    # Of twenty good jobs scontrol can be asked in one round, which is its limit (SCONTROL_CALLS_PER_POLL).
    good = [n % 5 < 2 for n in range(50)]
    jobs = [cluster.submit(f"sleep {n % 10}; exit {0 if good[n] else 1}") for n in range(50)]
    cluster.runner.forget()
    began = time.monotonic()
    states = follow(cluster.scheduler, jobs)
    seconds = time.monotonic() - began
    programs = [call[0] for call in cluster.runner.calls]
    with capsys.disabled():
        counts = ", ".join(f"{programs.count(name)} {name}" for name in sorted(set(programs)))
        busy = sum(answer.seconds for answer in cluster.runner.answers)
        print(f"\n50 jobs that end within {seconds:.0f} s: {counts}, {busy:.2f} s of them running")
    assert [states[job].word for job in jobs] == ["COMPLETED" if g else "FAILED" for g in good]
    assert [states[job].succeeded for job in jobs] == good
    # However slow the machine, and however late accounting is:
    assert programs.count("squeue") <= 2 + seconds / 1.6, "two seconds, less the jitter, at the shortest"
    assert programs.count("sacct") <= programs.count("squeue"), "no job has a failed step, so that one answer is enough"
    assert programs.count("scontrol") <= len(jobs), "each job once at most, and only while accounting lags"
