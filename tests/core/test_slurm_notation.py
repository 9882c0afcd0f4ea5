from __future__ import annotations

import pytest

from launcher.core.slurm_notation import limit_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("4:30", 270),
        ("30:30", 1830),
        ("1:00:00", 3600),
        ("8:00:00", 28800),
        ("1-0", 86400),
        ("2-4", 187200),
        ("1-00:30", 88200),
        ("1-02:30", 95400),
        ("1-00:00:01", 86401),
    ],
)
def test_a_time_limit(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "INFINITE", "NONE", "", "4h", "::", "-", "1:2:3:4", "٤", None])
def test_what_is_no_time_limit(text: str | None) -> None:
    assert limit_seconds(text) is None
