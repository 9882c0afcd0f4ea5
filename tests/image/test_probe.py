"""Do locks hold? Told apart from a lock that everybody gets, and one that nobody gets, which strace makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.errors import ImageError
from launcher.core.process import run
from launcher.image.probe import GRANTED_TO_BOTH, HOLDS, describe_file_system, probe_nodes, probe_processes
from tests.commands import ScriptedCommands

REFUSED = (1, "srun: error: invalid partition")

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


def spoiled(inject: str) -> ScriptedCommands:
    """Starts programs under strace, which spoils some of their system calls."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}"]
    return ScriptedCommands(lambda argv: run([*strace, *argv], timeout=60))


def test_locks_hold_between_processes_of_a_local_file_system(tmp_path: Path) -> None:
    probe = probe_processes(tmp_path)
    assert (probe.flock, probe.lockf, probe.owner_file) == (HOLDS, HOLDS, HOLDS)
    assert probe.heartbeat is not None and probe.heartbeat < 5
    assert probe.one_at_a_time
    assert list(tmp_path.iterdir()) == []


@needs_strace
@pytest.mark.parametrize(
    ("inject", "flock", "one"),
    [
        ("flock:retval=0", GRANTED_TO_BOTH, True),
        ("flock:error=ENOSYS", "does not work: Function not implemented", True),
    ],
)
def test_a_flock_that_is_none_is_told(tmp_path: Path, inject: str, flock: str, one: bool) -> None:
    probe = probe_processes(tmp_path, spoiled(inject))
    assert (probe.flock, probe.owner_file, probe.one_at_a_time) == (flock, HOLDS, one)


@needs_strace
@pytest.mark.parametrize("calls", ["link,linkat", "link,linkat,renameat2"])
def test_an_owner_file_holds_without_links(tmp_path: Path, calls: str) -> None:
    probe = probe_processes(tmp_path, spoiled(f"{calls}:error=EINVAL"))
    assert (probe.flock, probe.owner_file, probe.one_at_a_time) == (HOLDS, HOLDS, True)
    assert probe.heartbeat is not None


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        probe_processes(tmp_path / "none")


def test_nodes_that_are_not_given_are_said(tmp_path: Path) -> None:
    runner = ScriptedCommands(srun=REFUSED)
    with pytest.raises(ImageError, match="invalid partition"):
        probe_nodes(tmp_path, ["--partition=x"], runner)
    assert all(call[:4] == ("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1") for call in runner.calls)
    assert list(tmp_path.iterdir()) == []


def test_the_file_system_is_named(tmp_path: Path) -> None:
    assert describe_file_system(Path("/proc/self")).startswith("proc from ")
    assert " on " in describe_file_system(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "locks", str(tmp_path), "--no-nodes", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["probes"][0]["flock"] == HOLDS
