"""Rendered scripts with real podman: an image of bash and little else, in a store of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from launcher.plan.plan import Plan
from tests.container.jobs import ID, JobHost, wait_for
from tests.container.plans import RESULT, a_container, a_job

IMAGE = "localhost/launcher-test:tag"

CONTAINERS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""
"""For a podman within a container: limits that it may set, no network, and the runtime that takes hybrid cgroups."""

REGISTRIES = '[[registry]]\nlocation = "localhost"\nblocked = true\n'
"""The image is in no registry, and podman need not try to pull it four times."""

STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n'


class PodmanHost(JobHost):
    """A node with podman."""

    def podman(self, *arguments: str, code: int = 0) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(["podman", *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout

    def podman_plan(self) -> Plan:
        container = a_container(engine="podman", image=IMAGE, mounts={"/workspace": "{workspace}"})
        return self.plan(a_job(allocation=None, container=container))

    def names(self) -> list[str]:
        return self.podman("ps", "--all", "--format", "{{.Names}}").split()


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables by which podman finds a store that has the image."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("podman and runc are not installed")
    root = tmp_path_factory.mktemp("podman")
    texts = {"": CONTAINERS, "_STORAGE": STORAGE.format(root=root), "_REGISTRIES": REGISTRIES}
    variables = {}
    for name, text in texts.items():
        path = root / f"containers{name}.conf"
        path.write_text(text)
        variables[f"CONTAINERS{name}_CONF"] = str(path)
    archive = root / "image.tar"
    subprocess.run(["tar", "-chf", archive, *programs("bash", "sleep")], cwd="/", timeout=60, check=True)
    for arguments in (["import", str(archive), IMAGE], ["run", "--rm", "--entrypoint=bash", IMAGE, "-c", "true"]):
        argv = ["podman", *arguments]
        done = subprocess.run(argv, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"podman cannot run a container here: {done.stderr.strip()}")
    return variables


@pytest.fixture
def host(tmp_path: Path, configuration: dict[str, str]) -> PodmanHost:
    return PodmanHost(tmp_path, dict(configuration))


def programs(*names: str) -> list[str]:
    """Programs of this host with their libraries, as paths below ``/``."""
    found = []
    for name in names:
        path = shutil.which(name)
        assert path is not None
        libraries = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=60, check=True).stdout.split()
        found += [path, *(word for word in libraries if word.startswith("/"))]
    return [path.removeprefix("/") for path in dict.fromkeys(found)]


def test_a_script_in_a_container(host: PodmanHost) -> None:
    host.benchmark('echo "{}" > "$RESULT_FILENAME.json"; echo "$HF_TOKEN|$PORT|$PWD" > seen; exit 9')
    host.environment["HF_TOKEN"] = "hf_secret, with\nlines"
    host.run(host.podman_plan(), code=9)
    assert (host.workspace / f"{RESULT}.json").exists() and host.names() == []
    assert (host.workspace / "seen").read_text() == "hf_secret, with\nlines|40077|/workspace\n"
    assert host.facts()["image"].startswith("localhost/launcher-test@sha256:"), "run by its digest"


def test_term_ends_our_container_and_no_other(host: PodmanHost) -> None:
    host.podman("run", "--detach", "--name=theirs", "--entrypoint=sleep", IMAGE, "600")
    host.benchmark("echo > running; sleep 600")
    try:
        with host.start(host.podman_plan()) as process:
            wait_for((host.workspace / "running").exists)
            os.kill(process.pid, signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 143, said
        assert host.names() == ["theirs"]
    finally:
        host.podman("rm", "--force", "--time=0", "theirs")


def test_a_container_of_the_same_name_is_left_alone(host: PodmanHost) -> None:
    name = f"launcher-r1-{ID}"
    host.podman("run", "--detach", f"--name={name}", "--entrypoint=sleep", IMAGE, "600")
    try:
        said = host.run(host.podman_plan(), code=125)
        assert "already in use" in said and host.names() == [name]
    finally:
        host.podman("rm", "--force", "--time=0", name)
