"""The rule that a skipped test fails the session in CI, by running sessions of pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest
def test_runs(): pass
@pytest.mark.skip(reason="left out")
def test_is_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail(): assert False
"""


@pytest.mark.parametrize(
    ("ci", "content", "code", "said"),
    [
        ("true", SKIPS, 1, "SKIPPED test_it.py::test_is_skipped\n1 skipped\n"),
        ("true", "import pytest\npytest.importorskip('no_such_module')\n", 5, "SKIPPED test_it.py\n1 skipped\n"),
        ("true", SKIPS.replace('@pytest.mark.skip(reason="left out")', ""), 0, None),
        ("false", SKIPS, 0, None),
    ],
)
def test_what_a_skip_does(tmp_path: Path, ci: str, content: str, code: int, said: str | None) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(content)
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "CI": ci},
    )
    assert answer.returncode == code, answer.stdout
    assert (said in answer.stdout) if said else ("fails the session" not in answer.stdout)
    assert answer.stdout.splitlines()[-1].startswith("=")
