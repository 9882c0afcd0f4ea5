"""The short form of `scripts/faults images`, part by part, so that a wrong outcome names its part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.images import TITLES, areas


@pytest.mark.parametrize("part", TITLES, ids=lambda part: TITLES[part])
def test_nothing_is_wrong(part: int, tmp_path: Path) -> None:
    if part in (1, 2) and not shutil.which("strace"):
        pytest.skip("strace is not installed")
    counts = areas(short=True)[part](tmp_path)
    for count in counts:
        print(count)
    assert [line for count in counts for line in count.wrong] == []
    assert any(count.trials for count in counts) or "left out" in counts[0].what
