"""The stand-ins for srun with pyxis and for docker: what they keep of the real programs, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.rehearsal.stand_ins import PROGRAMS_WITHOUT_SLURM, tools_directory

PASSES = ("MODEL", "UNSET", "RESULT_DIR", "HF_HUB_CACHE", "LINES")
REFERENCE = "org/image:tag"


@dataclass
class Host:
    """A host with the stand-ins, a workspace with a script, and an environment of which not all is passed."""

    root: Path

    def __post_init__(self) -> None:
        self.bin = tools_directory(self.root / "bin")
        self.srun = tools_directory(self.root / "without slurm", PROGRAMS_WITHOUT_SLURM) / "srun"
        self.workspace = self.root / "work space"
        self.workspace.mkdir()
        self.image = self.root / "image.sqsh"
        self.image.touch()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "MODEL": "org/m",
            "RESULT_DIR": "/workspace/results",
            "HF_HUB_CACHE": "/cache/",
            "LINES": '{\n  "a": "b, c"\n}',
            "NOT_PASSED": "x",
        }

    def script(self, text: str) -> None:
        (self.workspace / "b.sh").write_text(text)

    def call(self, *argv: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            argv, env=self.environ, capture_output=True, text=True, timeout=120, cwd=self.root, stdin=subprocess.DEVNULL
        )
        assert done.returncode == code, f"exit {done.returncode}, expected {code}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def srun_argv(self, *more: str, command: tuple[str, ...] = ("bash", "b.sh")) -> list[str | Path]:
        mounts = f"{self.workspace}:/workspace,{self.root}:/cache:ro"
        return [
            *(self.srun, "--nodes=1", "--ntasks=1", "--export=ALL", f"--container-image={self.image}"),
            *(f"--container-mounts={mounts}", "--container-workdir=/workspace", "--no-container-entrypoint"),
            *(*more, *command),
        ]

    def docker_argv(self, *more: str, name: str = "n", command: tuple[str, ...] = ("b.sh",)) -> list[str | Path]:
        return [
            *(self.bin / "docker", "run", "--rm", f"--name={name}", f"--label=launcher.job={name}.1", *more),
            *(f"--volume={self.workspace}:/workspace", f"--volume={self.root}/cache:/cache", "--workdir=/workspace"),
            *(word for name in PASSES for word in ("--env", name)),
            *("--entrypoint=bash", REFERENCE, *command),
        ]

    def docker(self, *words: str, code: int = 0) -> str:
        return self.call(self.bin / "docker", *words, code=code)

    def running(self) -> list[str]:
        return self.docker("ps", "--all", "--quiet").split()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


SEEN = 'printf "%s|" "$MODEL" "$RESULT_DIR" "$LINES" "${UNSET-absent}" "${NOT_PASSED-absent}" "$PWD" "$HF_HUB_CACHE"'


def test_a_step_has_the_whole_environment_and_the_mounts(host: Host) -> None:
    host.script(f"{SEEN}; command -v vllm; exit 7")
    output = host.call(*host.srun_argv("--cpus-per-task=4", "--mpi=none", "--container-writable"), code=7)
    *seen, program = output.split("|")
    workspace = str(host.workspace)
    own = ["org/m", f"{workspace}/results", host.environ["LINES"], "absent", "x", workspace, f"{host.root}/"]
    assert seen == own
    assert program.strip() == str(host.root / "image/vllm")


def test_a_container_has_the_variables_that_are_named_and_no_others(host: Host) -> None:
    host.script(f"{SEEN}; exit 7")
    host.docker("pull", "--quiet", REFERENCE)
    seen = host.call(*host.docker_argv("--gpus=4", "--ulimit=memlock=-1", "--privileged"), code=7).split("|")
    workspace = str(host.workspace)
    own = ["org/m", f"{workspace}/results", host.environ["LINES"], "absent", "absent", workspace]
    assert seen[:6] == own and seen[6] == f"{host.root}/cache/"
    assert (host.root / "cache").is_dir() and not host.running()


@pytest.mark.parametrize(
    ("option", "command", "says"),
    [
        ("--gres=none", ("bash", "b.sh"), "unrecognized arguments: --gres=none"),
        ("--container-image=/nowhere.sqsh", ("bash", "b.sh"), "couldn't open container image /nowhere.sqsh"),
        ("--container-mounts=/nowhere:/workspace", ("bash", "b.sh"), "couldn't mount /nowhere"),
        ("--container-workdir=/elsewhere", ("bash", "b.sh"), "/elsewhere is no mounted directory"),
        ("--mpi=none", ("rm", "b.sh"), "nothing else in a container: rm b.sh"),
        ("--mpi=none", ("bash", "../b.sh"), "is below no mounted directory"),
        ("--mpi=none", ("bash", "-c", "true"), "nothing else in a container"),
        ("--mpi=none", ("bash", "/etc/profile"), "is below no mounted directory"),
    ],
)
def test_a_step_that_is_none_of_a_rehearsal_is_refused(
    host: Host, option: str, command: tuple[str, ...], says: str
) -> None:
    host.script("echo ran")
    output = host.call(*host.srun_argv(option, command=command), code=1)
    assert says in output and "ran" not in output


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("build", "."), 1, "'build' is not a docker command"),
        (("pull", "nvcr.io#nvidia/x:1"), 1, "invalid reference format"),
        (("pull", "--all-tags", "x"), 1, "unrecognized arguments: --all-tags"),
        (("image", "inspect", "org/other:1"), 1, "No such image: org/other:1"),
        (("image", "inspect", "--format={{.Size}}", REFERENCE), 1, "the format"),
        (("ps", "--filter=name=x"), 1, "invalid filter 'name=x'"),
        (("rm", "--force", "nobody"), 1, "No such container: nobody"),
        (("run", "--rm", REFERENCE), 125, "runs containers with --rm, --name"),
    ],
)
def test_commands_of_docker_that_are_not_kept_are_refused(
    host: Host, words: tuple[str, ...], code: int, says: str
) -> None:
    host.docker("pull", REFERENCE)
    assert says in host.docker(*words, code=code)


@pytest.mark.parametrize(
    ("option", "command", "says"),
    [
        ("--detach", ("b.sh",), "unrecognized arguments"),
        ("--env=HF_TOKEN=secret", ("b.sh",), "with a value"),
        ("--init", ("b.sh", "more"), "nothing else in a container"),
        ("--init", ("missing.sh",), "missing.sh: No such file"),
        ("--volume=relative:/x", ("b.sh",), "invalid mount"),
    ],
)
def test_a_container_that_is_none_of_a_rehearsal_is_refused(
    host: Host, option: str, command: tuple[str, ...], says: str
) -> None:
    host.script("echo ran")
    host.docker("pull", REFERENCE)
    done = subprocess.run(
        host.docker_argv(option, command=command), env=host.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (1, 125, 127) and says in done.stderr and "ran" not in done.stdout
    assert "secret" not in done.stderr


def test_an_image_is_known_by_its_digest(host: Host) -> None:
    host.script("true")
    assert "Unable to find image" in host.call(*host.docker_argv(), code=125)
    assert host.docker("pull", "--quiet", REFERENCE) == f"{REFERENCE}\n"
    (digest,) = host.docker(
        "image", "inspect", "--format={{range .RepoDigests}}{{println .}}{{end}}", REFERENCE
    ).split()
    assert digest.startswith("org/image@sha256:")
    identity = host.docker("image", "inspect", "--format", "{{.Id}}", REFERENCE).strip()
    assert json.loads(host.docker("image", "inspect", digest))[0]["Id"] == identity
    by_digest = [digest if word == REFERENCE else word for word in host.docker_argv()]
    host.call(*by_digest)


def test_a_container_outlives_signals_to_its_client_and_is_ended_by_its_label(host: Host) -> None:
    host.script("sleep 600 & echo $! > child; wait")
    host.docker("pull", REFERENCE)
    clients = [
        subprocess.Popen(host.docker_argv(name=name), env=host.environ, stdin=subprocess.DEVNULL, cwd=host.root)
        for name in ("ours", "theirs")
    ]
    deadline = time.monotonic() + 120
    while len(host.running()) < 2:
        assert time.monotonic() < deadline
    clients[0].terminate()
    assert "Conflict. The container name" in host.call(*host.docker_argv(name="ours"), code=125)
    (ours,) = host.docker("ps", "--quiet", "--filter=label=launcher.job=ours.1").split()
    assert "is running" in host.docker("rm", ours, code=1)
    host.docker("rm", "--force", ours)
    assert clients[0].wait(120) == 137
    (theirs,) = host.running()
    clients[1].kill()  # as the client of a job that is killed: dockerd keeps the container
    clients[1].wait(120)
    assert host.running() == [theirs] and "theirs" in host.docker("ps")
    host.docker("rm", "--force", "theirs")
    assert not host.running()
    child = int((host.workspace / "child").read_text())
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_containers_of_one_port_meet_on_no_port_of_the_host(host: Host) -> None:
    """Rows of whole nodes all name 8888, and a rehearsal has one host for all of them."""
    host.environ["PORT"] = "8888"
    host.script('echo "$PORT"')
    host.docker("pull", "--quiet", REFERENCE)
    ports = {host.call(*argv).strip() for argv in (host.srun_argv(), host.docker_argv("--env", "PORT"))}
    assert "8888" not in ports and all(port.isdigit() for port in ports)
