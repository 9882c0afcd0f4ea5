"""scripts/cluster, by starting real clusters: as the user of the tests, and as an ordinary one where that is root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CANNOT_RUN, CLUSTER, IN_CI, NOT_INSTALLED, SlurmCluster, cluster, free_ports, require_up

USERS = [pwd.getpwuid(os.getuid()).pw_name, *(["nobody"] if os.getuid() == 0 else [])]
NODES = 2


@dataclass(frozen=True)
class UserDirectory:
    """A directory of a user, and that user's way of running things there."""

    directory: Path
    user: pwd.struct_passwd
    program: tuple[str, ...]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        other = self.user.pw_uid != os.getuid()
        return subprocess.run(
            argv,
            user=self.user.pw_uid if other else None,
            group=self.user.pw_gid if other else None,
            extra_groups=[] if other else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.directory,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        )

    def cluster(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(*self.program, command, "--dir", str(self.directory / "c"), *options)

    def up(self, port: int, *options: str) -> None:
        require_up(self.cluster("up", "--nodes", str(NODES), "--port", str(port), *options))

    def slurm(self, *argv: str) -> str:
        """Run a client program in the environment that `cluster env` prints."""
        exports = self.cluster("env").stdout
        answer = self.run("sh", "-c", f'{exports}exec "$@"', "sh", *argv)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def pids(self) -> dict[str, int]:
        return {f.name: int(f.read_text().split()[0]) for f in (self.directory / "c" / "pids").iterdir()}


@pytest.fixture(params=USERS)
def user_directory(request: pytest.FixtureRequest) -> Iterator[UserDirectory]:
    """A fresh directory that the user can enter, with a copy of the scripts: the checkout may be closed to others."""
    user = pwd.getpwnam(request.param)
    with tempfile.TemporaryDirectory(prefix="cluster-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copytree(CLUSTER.parent, directory / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        home = directory / "home"
        home.mkdir()
        os.chown(home, user.pw_uid, user.pw_gid)
        python = (
            sys.executable if user.pw_uid == os.getuid() else shutil.which("python3", path="/usr/bin:/usr/local/bin")
        )
        user_directory = UserDirectory(home, user, (python or "python3", str(directory / "scripts/cluster")))
        try:
            yield user_directory
        finally:
            user_directory.cluster("down")


@pytest.mark.slurm
def test_a_cluster_runs_jobs_and_leaves_nothing(user_directory: UserDirectory) -> None:
    port = free_ports(NODES + 2)
    user_directory.up(port)
    assert user_directory.cluster("status").returncode == 0
    assert listening(port, port + NODES + 2) == {"127.0.0.1"}

    job = user_directory.slurm(
        "sbatch", "--parsable", "--nodes=2", "--exclusive", "--gpus-per-node=3", "--comment=run-7f3a",
        "--output=out", "--wrap=srun sh -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'",
    ).strip()  # fmt: skip
    asked = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Comment,User,Account,NNodes")
    expected = f"COMPLETED|0:0|run-7f3a|{user_directory.user.pw_name}|benchmark|2"
    assert eventually(lambda: user_directory.slurm(*asked).strip(), expected) == expected
    assert sorted((user_directory.directory / "out").read_text().splitlines()) == ["node01 0,1,2", "node02 0,1,2"]

    user_directory.slurm("sbatch", "--nodes=2", "--output=/dev/null", "--wrap=trap '' TERM; srun sleep 300 & sleep 300")
    running = ("squeue", "-h", "-t", "RUNNING", "-o", "%D")
    assert eventually(lambda: user_directory.slurm(*running).strip(), "2") == "2"
    assert processes_of(user_directory.directory / "c")
    assert user_directory.cluster("down").returncode == 0
    assert processes_of(user_directory.directory / "c") == []
    assert listening(port, port + NODES + 2) == set()
    assert user_directory.cluster("status").returncode == 1
    assert user_directory.cluster("down").returncode == 0


@pytest.mark.slurm
@pytest.mark.parametrize("user_directory", USERS[:1], indirect=True)
def test_up_starts_what_is_missing_and_nothing_else(user_directory: UserDirectory, slurm_cluster: SlurmCluster) -> None:
    port = free_ports(NODES + 2)
    user_directory.up(port)
    job = user_directory.slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap=true").strip()
    asked = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State")
    assert eventually(lambda: user_directory.slurm(*asked).strip(), "COMPLETED") == "COMPLETED"
    before = user_directory.pids()
    os.kill(before["node02"], signal.SIGKILL)
    assert user_directory.cluster("status").returncode == 1
    user_directory.up(port)
    after = user_directory.pids()
    assert {name for name in before if before[name] != after[name]} == {"node02"}

    another = user_directory.cluster("up", "--nodes", str(NODES + 1), "--port", str(port))
    assert another.returncode == 1
    assert "other settings" in another.stderr
    taken = cluster("up", user_directory.directory / "d", "--nodes", "1", "--port", str(port))
    assert taken.returncode == 1
    assert f"port {port}" in taken.stderr

    os.kill(after["slurmctld"], signal.SIGKILL)
    user_directory.cluster("down")
    assert processes_of(user_directory.directory / "c") == []
    assert cluster("status", slurm_cluster.directory).returncode == 0

    user_directory.up(port)
    assert eventually(lambda: user_directory.slurm(*asked).strip(), "COMPLETED") == "COMPLETED"


@pytest.mark.slurm
@pytest.mark.parametrize("user_directory", USERS[:1], indirect=True)
def test_down_spares_a_process_that_got_an_old_pid(user_directory: UserDirectory) -> None:
    user_directory.up(free_ports(NODES + 2), "--no-accounting")
    user_directory.cluster("down")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text()
            (user_directory.directory / "c" / "pids" / "slurmctld").write_text(f"{stranger.pid} 1 {boot}")
            assert user_directory.cluster("down").returncode == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.slurm
@pytest.mark.parametrize("user_directory", USERS[:1], indirect=True)
def test_a_slurmd_that_cannot_run_here_is_said_in_its_own_words(user_directory: UserDirectory) -> None:
    """As in a container without a cgroup file system: only the node's log has the reason."""
    program = user_directory.directory / "bin/slurmd"
    program.parent.mkdir()
    said = "slurmd: fatal: Unable to initialize cgroup plugin"
    program.write_text(f"#!/bin/sh\nsleep 1\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    up = ("up", "--nodes", str(NODES), "--port", str(free_ports(NODES + 2)), "--no-accounting")
    script = f'PATH={program.parent}:$PATH exec "$@" --dir {user_directory.directory}/c'
    require_slurm_programs()
    answer = user_directory.run("sh", "-c", script, "sh", *user_directory.program, *up)
    assert answer.returncode == CANNOT_RUN, answer.stderr
    assert "slurmd of node0" in answer.stderr and said in answer.stderr
    assert processes_of(user_directory.directory / "c") == []


def require_slurm_programs() -> None:
    if not (shutil.which("slurmctld") or shutil.which("slurmctld", path="/usr/sbin")):
        (pytest.fail if IN_CI else pytest.skip)("Slurm is not installed")


def test_missing_programs_are_named(tmp_path: Path) -> None:
    program = (
        "import runpy, shutil, sys; shutil.which = lambda *a, **k: None;"
        f"sys.path.insert(0, {str(CLUSTER.parent)!r}); sys.argv = ['cluster', 'up', '--dir', {str(tmp_path / 'c')!r}];"
        f"runpy.run_path({str(CLUSTER)!r}, run_name='__main__')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert answer.returncode == NOT_INSTALLED
    assert "Slurm is not installed: no munged, slurmctld, slurmd," in answer.stderr
    assert not (tmp_path / "c").exists()


def test_a_directory_that_slurm_cannot_name_is_refused(tmp_path: Path) -> None:
    for name, complaint in (("with space", "slurm.conf can only name"), ("x" * 100, "too long for the sockets")):
        answer = cluster("up", tmp_path / name)
        assert answer.returncode == 1
        assert complaint in answer.stderr


def eventually(ask: Callable[[], str], wanted: str, seconds: float = 15.0) -> str:
    """The last answer, asked for until it is the wanted one: accounting lags behind."""
    deadline = time.monotonic() + seconds
    while (answer := ask()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


def processes_of(directory: Path) -> list[str]:
    """Command lines of the processes that name the directory in their arguments or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            text = command + (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"{directory}/".encode() in text and int(entry.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def listening(first: int, end: int) -> set[str]:
    """IPv4 and IPv6 addresses that somebody listens on, on the ports from ``first`` up to ``end``."""
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            match = re.match(r"\s*\d+: ([0-9A-F]+):([0-9A-F]{4}) \S+ 0A", line)
            if match and first <= int(match[2], 16) < end:
                raw = bytes.fromhex(match[1])[::-1]
                addresses.add(".".join(map(str, raw)) if len(raw) == 4 else raw.hex())
    return addresses


def test_a_setting_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    answer = cluster("up", tmp_path, "--set", "MaxJobId 40")
    assert answer.returncode == 1 and "--set MaxJobId 40" in answer.stderr
