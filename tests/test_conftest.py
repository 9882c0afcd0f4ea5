"""The rules of tests/conftest.py: a skipped test fails the session in CI; what happens where Slurm cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped

from tests import conftest

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


def test_the_longest_files_are_there() -> None:
    assert [file for file in conftest.LONGEST if not (Path(__file__).parent / file).is_file()] == []


@pytest.mark.parametrize(("in_ci", "outcome"), [(False, Skipped), (True, Failed)])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (conftest.NOT_INSTALLED, "cluster: Slurm is not installed: no slurmd"),
        (
            conftest.CANNOT_RUN,
            "cluster: slurmd of node01 ended; it said: \n  fatal: Unable to initialize cgroup plugin",
        ),
    ],
)
def test_where_slurm_cannot_be_had_its_tests_are_skipped_or_fail_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, in_ci: bool, outcome: type[BaseException], code: int, said: str
) -> None:
    monkeypatch.setattr(conftest, "IN_CI", in_ci)
    with pytest.raises(outcome) as caught:
        conftest.require_up(subprocess.CompletedProcess([], code, "", f"{said}\n"))
    assert str(caught.value) == said


def test_another_failure_of_the_cluster_is_an_error_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "IN_CI", False)
    with pytest.raises(AssertionError, match="port 5 cannot be had"):
        conftest.require_up(subprocess.CompletedProcess([], 1, "", "port 5 cannot be had"))
