"""What all tests share: a real Slurm cluster on this machine, and the rule that nothing is skipped in CI."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.people import people as people

# How long an example takes is the machine's business, which others use too.
hypothesis.settings.register_profile("here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("here")

CLUSTER = Path(__file__).resolve().parents[1] / "scripts" / "cluster"
NOT_INSTALLED = 3
"""Exit code of scripts/cluster where Slurm's programs are missing."""

CANNOT_RUN = 4
"""Its exit code where slurmd ends at once, as in a container without a cgroup file system; slurmd's reason is said."""

IN_CI = os.environ.get("CI") == "true"

LONGEST = (
    "docs/test_commands.py",
    "run/test_rehearsed_containers.py",
    "run/test_endings_slurm.py",
    "container/test_multinode_kind.py",
    "run/test_rehearsed_runs.py",
    "container/test_kind.py",
    "sweep/test_crash.py",
    "docs/test_site.py",
    "run/test_end_to_end_slurm.py",
    "run/test_end_to_end.py",
    "test_release.py",
    "container/test_multinode_script_runs.py",
    "run/test_orphans_slurm.py",
    "faults/test_short.py",
    "sweep/test_driver.py",
    "cli/test_on.py",
    "container/test_agreement.py",
    "run/test_several_people.py",
    "sweep/test_commands.py",
    "cli/test_workflow.py",
    "run/test_damaged_records.py",
    "scripts/test_cluster.py",
    "slurm/test_contract.py",
    "container/test_podman.py",
    "model/test_two_users.py",
    "remote/test_install.py",
    "model/test_nodes.py",
    "slurm/test_local.py",
    "cli/test_on_slurm.py",
    "docs/test_mentions.py",
    "rehearsal/test_container_stand_ins.py",
    "run/test_two_users.py",
    "faults/test_images_short.py",
    "model/test_quantisation.py",
    "remote/test_connection.py",
    "docs/test_remote_page.py",
)
"""Files of more than half a minute on a machine that others use too, the longest first: none is left for the end."""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster. ``env`` is a whole environment for its client programs."""

    env: dict[str, str]
    directory: Path
    nodes: int


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """One cluster of 18 nodes with accounting for all tests, started when the first one asks for it."""
    directory, nodes = tmp_path_factory.mktemp("slurm"), 18
    require_up(cluster("up", directory, "--nodes", str(nodes), "--port", str(free_ports(nodes + 2))))
    try:
        yield SlurmCluster(cluster_environment(directory), directory, nodes)
    finally:
        cluster("down", directory)


def pytest_configure() -> None:
    """Refuse an environment whose launcher is that of another directory, as of one that was copied: what tests import
    and what they start would be two."""
    # Not of the whole path: a build leaves launcher.egg-info in the tree, which says nothing of that.
    found = importlib.metadata.distributions(name="launcher", path=[sysconfig.get_path("purelib")])
    installed = next((json.loads(one.read_text("direct_url.json") or "{}").get("url") for one in found), None)
    root = Path(__file__).resolve().parents[1]
    if installed != (here := root.as_uri()) and (root / "pyproject.toml").is_file():  # else this is a copy, under test
        raise pytest.UsageError(f"{sys.prefix} has the launcher of {installed}, and not {here}: scripts/setup dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def require_up(answer: subprocess.CompletedProcess[str]) -> None:
    """Go on after a `scripts/cluster up` that did it; skip the test, or fail it in CI, where Slurm cannot be had."""
    if answer.returncode in (NOT_INSTALLED, CANNOT_RUN):
        (pytest.fail if IN_CI else pytest.skip)(answer.stderr.strip())
    assert answer.returncode == 0, answer.stderr


def cluster(command: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/cluster`, and take what it says."""
    argv = [sys.executable, str(CLUSTER), command, "--dir", str(directory), *options]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180)


def cluster_environment(directory: Path) -> dict[str, str]:
    """Our environment without another cluster's variables, and with those of the cluster in ``directory``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_"))}
    exports = cluster("env", directory).stdout.splitlines()
    return {**kept, **dict(line.removeprefix("export ").split("=", 1) for line in exports)}


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on, below the range that the kernel hands out."""
    for _ in range(100):
        first = random.randrange(20000, 32000 - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    pytest.fail(f"no {count} free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


# In CI a skipped test would be a test that nobody knows is not run.
_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker of pytest-xdist has ended: it alone knows which files were skipped when they were collected."""
    _skipped.extend(getattr(node, "workeroutput", {}).get("skipped files", []))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["skipped files"] = [name for name in _skipped if "::" not in name]
    elif IN_CI and _skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for said in ("passed", "failed") for report in terminalreporter.getreports(said)]
    if any("test_contract.py" in report.nodeid for report in reports) and not importlib.util.find_spec("pyslurm"):
        terminalreporter.line("pyslurm is not importable: the backends' contract was tested by Slurm's commands only")
    if IN_CI and _skipped:
        terminalreporter.section("skipped, which fails the session in CI", red=True)
        for nodeid in dict.fromkeys(_skipped):  # each worker collects every file
            terminalreporter.line(f"SKIPPED {nodeid}")
        terminalreporter.line(f"{len(_skipped)} skipped")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, mounted as root or by sudo."""
    from tests.image.support import as_root

    mounted = tmp_path / "images"
    mounted.mkdir()
    done = as_root("mount", "-t", "tmpfs", "-o", f"size=256k,uid={os.geteuid()}", "tmpfs", str(mounted))
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr}")
    try:
        yield mounted
    finally:
        assert as_root("umount", str(mounted)).returncode == 0
