"""Rendered scripts with real podman, as this user and rootless: an image of bash and little else, in a store of the
test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.plan.plan import Plan
from tests.container.jobs import ID, JobHost, wait_for
from tests.container.plans import RESULT, a_container, a_job
from tests.people import People, Person, given

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

STORAGE = """[storage]
driver = "vfs"
graphroot = "{root}/graph"
rootless_storage_path = "{root}/graph"
runroot = "{root}/run"
"""


class PodmanHost(JobHost):
    """A node with podman."""

    def podman(self, *arguments: str, code: int = 0) -> str:
        environment = {**os.environ, **self.environment}
        argv = ["podman", *arguments]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            argv, env=environment, cwd="/", capture_output=True, text=True, timeout=120, **self.identity()
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def podman_plan(self) -> Plan:
        container = a_container(engine="podman", image=IMAGE, mounts={"/workspace": "{workspace}"})
        return self.plan(a_job(allocation=None, container=container))

    def names(self) -> list[str]:
        return self.podman("ps", "--all", "--format", "{{.Names}}").split()


@pytest.fixture(scope="module", params=["as this user", "rootless"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodmanHost]:
    """A host whose podman has the image. Another user of this machine has no rights at all: podman is rootless then."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("podman and runc are not installed")
    user: Person | None = None
    if request.param == "rootless":
        people: People = request.getfixturevalue("people")
        user = people.alice
        # Where the paths of its sockets are too long for sockets, rootless podman waits 20 s at each container's end.
        root = Path(tempfile.mkdtemp(dir="/tmp"))
        request.addfinalizer(lambda: shutil.rmtree(root))
        root.chmod(0o755)
    else:
        root = tmp_path_factory.mktemp("podman")
    texts = {"": CONTAINERS, "_STORAGE": STORAGE.format(root=root), "_REGISTRIES": REGISTRIES}
    variables = {"XDG_RUNTIME_DIR": str(root / "runtime"), "HOME": str(root)} if user else {}
    for name, text in texts.items():
        path = root / f"containers{name}.conf"
        path.write_text(text)
        variables[f"CONTAINERS{name}_CONF"] = str(path)
    for path in (root / "graph", root / "run", root / "runtime") if user else ():
        path.mkdir(mode=0o700)
    archive = root / "image.tar"
    subprocess.run(["tar", "-chf", archive, *programs("bash", "sleep")], cwd="/", timeout=60, check=True)
    host = PodmanHost(root, variables, user)
    if user is not None:
        for path in (root, *root.rglob("*")):
            given(user, path, path.stat().st_mode)
    try:
        host.podman("import", str(archive), IMAGE)
        host.podman("run", "--rm", "--entrypoint=bash", IMAGE, "-c", "true")
    except AssertionError as error:
        pytest.skip(f"podman cannot run a container here, {request.param}: {error}")
    yield host
    if user:
        host.podman("system", "migrate")  # ends the process that keeps the user's namespace


@pytest.fixture
def host(store: PodmanHost, tmp_path: Path) -> PodmanHost:
    root = tmp_path if store.user is None else store.root / tmp_path.name
    return PodmanHost(root, dict(store.environment), store.user)


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
