"""`launcher doctor locks` on two nodes of a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.image.probe import HOLDS, probe_nodes
from tests.conftest import SlurmCluster

pytestmark = pytest.mark.slurm


def test_locks_hold_between_nodes(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    found = probe_nodes(tmp_path, [])
    first, _, second = found.where.partition(" and ")
    assert first and second and first != second
    assert (found.flock, found.lockf, found.owner_file) == (HOLDS, HOLDS, HOLDS)
    assert list(tmp_path.iterdir()) == []
