"""The short forms of the fault runs: the same cases, few trials."""

from __future__ import annotations

import pytest

from tests.faults.slurm import run, select

pytestmark = pytest.mark.slurm


def test_slurm_in_a_minute(slurm_cluster: object) -> None:
    """``slurm_cluster`` only for its rule of what happens where Slurm is not installed."""
    tallies = run(select(None, short=True), short=True)
    assert tallies and all(t.trials for t in tallies)
    assert [f"{t.name}: {text}" for t in tallies for text in t.wrong] == []
