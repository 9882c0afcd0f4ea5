"""The short form of `scripts/faults models`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.models import SHORT, points, sample, traced_staging, trials


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_faults_of_staging() -> None:
    # A disk adds waiting to this and nothing else: what is lost in a kill is the process, not the page cache.
    with traced_staging("/dev/shm" if Path("/dev/shm").is_dir() else None) as traced:
        every = list(points(traced))
        assert len(every) > 10 * SHORT
        done = [(str(point), *rest) for point, *rest in trials(traced, sample(every, SHORT))]
    assert len(done) == SHORT
    assert [trial for trial in done if trial[-1]] == []
    assert {trial[2] for trial in done} >= {"killed", "said what was wrong"}  # faults did happen
