"""Imports on compute nodes, by a real srun: the stand-in enroot, and what becomes of the job when something goes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import clean_environment, run
from launcher.core.shipped import shipped
from launcher.image import enroot
from launcher.image.enroot import ImportPolicy
from launcher.image.reference import PlannedImage
from launcher.image.squash import PlacedImage
from launcher.image.store import ensure_image
from launcher.plan.derive import Context, planned_image
from launcher.rehearsal.stand_ins import REGISTRIES, stand_in_environment
from launcher.runner.schema import Images
from tests.conftest import SlurmCluster
from tests.run.driving import ONE, LauncherUser

pytestmark = pytest.mark.slurm


@pytest.fixture
def user(tmp_path: Path, slurm_cluster: SlurmCluster) -> LauncherUser:
    """A runner whose images are imported on nodes."""
    extra = {k: v for k, v in slurm_cluster.env.items() if k.startswith(("SLURM", "MUNGE"))}
    user = LauncherUser(tmp_path, runner="one-machine", extra=extra)
    text = (shipped("runners") / "one-machine.yaml").read_text()
    (user.root / "runners").mkdir()
    changed = text.replace("import-on: login", f"import-on: compute\n  temporary: {user.root}/node")
    (user.root / "runners/one-machine.yaml").write_text(changed)
    (user.root / "node").mkdir()
    return user


def slurm(user: LauncherUser, *argv: str) -> str:
    return subprocess.run(argv, env=user.environment(), capture_output=True, text=True, timeout=60).stdout.strip()


def imports(user: LauncherUser, name: str, states: str = "R,PD,CG") -> list[list[str]]:
    """Id, node, comment and time limit of the imports' jobs of that name."""
    output = slurm(user, "squeue", "-h", "-t", states, "-n", name, "-o", "%i|%N|%k|%l")
    return [line.split("|") for line in output.splitlines()]


def until(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def planned(user: LauncherUser, **rule: object) -> PlannedImage:
    context = Context(workspace=str(user.root), runner_name="x_0", run_key="r", today="20260101")
    rules = Images(directory=str(user.root / "squash"), import_on="compute", temporary=str(user.root / "node"), **rule)  # type: ignore[arg-type]
    return planned_image("a/b:1", "image", rules, "x86_64", context)


Ensure = Callable[[PlannedImage, str], PlacedImage]


def ensuring(user: LauncherUser, said: list[str], monkeypatch: pytest.MonkeyPatch, **more: str) -> Ensure:
    """A function that has an image by jobs of a name, and does not sleep."""
    for name, value in {**user.extra, **more}.items():
        monkeypatch.setenv(name, value)
    environment = {**clean_environment(os.environ), **stand_in_environment(user.state, "slurm", os.environ)}

    def ensure(image: PlannedImage, job_name: str) -> PlacedImage:
        policy = ImportPolicy("slurm", "batch", "benchmark", job_name, job_name, REGISTRIES, make_directory=True)
        return ensure_image(image, policy, environment, run=run, log=said.append, sleep=lambda seconds: None)

    return ensure


def test_two_who_need_an_image_make_one_job_without_a_gpu(user: LauncherUser) -> None:
    arguments = ("image", "import", "a/b:1", "--runner", "one-machine", "--runners", str(user.root / "runners"))
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    both = [user.start(*arguments, LAUNCHER_REHEARSAL_ENROOT="slow=1.5") for _ in range(2)]
    messages = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert sum("imported in" in text for text in messages) == 1
    assert sum("hit in" in text for text in messages) == 1
    (squash,) = (user.state / "squash").glob("*.sqsh")
    assert str(squash) in messages[0] and str(squash) in messages[1]
    fields = "JobName,State,AllocTRES,TimelimitRaw,Comment,User"
    mine: list[list[str]] = []

    def accounted() -> bool:
        lines = slurm(user, "sacct", "-X", "-n", "-P", "-S", began, "-o", fields).splitlines()
        mine[:] = [line.split("|") for line in lines if "-import|" in line and line.startswith("launcher|")]
        return bool(mine) and all(job[1] == "COMPLETED" for job in mine)

    until(accounted)
    assert len(mine) == 1
    name, _, resources, minutes, comment, _ = mine[0]
    assert (name, minutes) == ("launcher", "60")
    assert comment.startswith("image-") and comment.endswith("-import")
    assert "gpu" not in resources and "cpu=" in resources
    assert list((user.root / "node").iterdir()) == [], "layers are of no use there"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_goes_leaves_no_job(user: LauncherUser, how: signal.Signals) -> None:
    more = ("--runners", str(user.root / "runners"), "--run-id", f"gone-{how.name}")
    process = user.start("run", *ONE, "--runner", "one-machine", *more, LAUNCHER_REHEARSAL_ENROOT="slow=60")
    comment = f"gone-{how.name}-import"

    def ours(states: str) -> list[list[str]]:
        output = slurm(user, "squeue", "-h", "-t", states, "-o", "%i|%N|%k|%l").splitlines()
        return [line.split("|") for line in output if f"|{comment}|" in line]

    until(lambda: ours("R"))
    ((_, _, _, limit),) = ours("R")
    assert limit == "1:00:00"
    process.send_signal(how)
    process.communicate(timeout=30)
    until(lambda: not ours("R,PD"))
    assert not list((user.state / "squash").glob("*.sqsh"))


def test_what_is_left_when_srun_dies_too_is_ended_by_cleanup(user: LauncherUser) -> None:
    more = ("--runners", str(user.root / "runners"), "--run-id", "lost")
    process = user.start("run", *ONE, "--runner", "one-machine", *more, LAUNCHER_REHEARSAL_ENROOT="slow=60")

    def ours() -> bool:
        return "lost-import" in slurm(user, "squeue", "-h", "-t", "R", "-o", "%k").splitlines()

    until(ours)
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    sruns = [int(pid) for path in children for pid in path.read_text().split()]
    process.send_signal(signal.SIGSTOP)
    for pid in sruns:
        os.killpg(pid, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=30)
    assert ours(), "nobody told Slurm"
    assert "lost" in user.launcher("cleanup", "--runners", str(user.root / "runners"))
    assert not ours()
    assert user.record("lost")["state"] == "cancelled"


def test_a_node_that_fails_and_one_that_never_comes(user: LauncherUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enroot, "NODE_PATIENCE", 1)
    messages: list[str] = []
    ensure = ensuring(user, messages, monkeypatch, LAUNCHER_REHEARSAL_ENROOT="slow=2.5")
    slurm(user, "scontrol", "update", "nodename=node18", "state=drain", "reason=test")
    failing = dataclasses.replace(planned(user), reference="a/c:1", squash=str(user.root / "squash/c.sqsh"))
    waiting = planned(user, import_options=["--nodelist=node18"], import_timeout=60)
    done: list[PlacedImage | ImageError] = []

    def wait() -> None:
        try:
            done.append(ensure(waiting, "waits"))
        except ImageError as error:
            done.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    down: list[str] = []

    def fail() -> None:
        until(lambda: imports(user, "fails", "R"))
        down.append(imports(user, "fails", "R")[0][1])
        slurm(user, "scontrol", "update", f"nodename={down[0]}", "state=down", "reason=test")

    killer = threading.Thread(target=fail)
    killer.start()
    try:
        assert ensure(failing, "fails").how == "imported"
        killer.join()
        assert any("attempt 1 of 4" in line and "its node failed" in line for line in messages), messages
        thread.join(30)
    finally:
        slurm(user, "scontrol", "update", f"nodename=node18,{down[0] if down else 'node18'}", "state=resume")
    (error,) = done
    assert isinstance(error, ImageError)
    assert "did not start in time" in error.message and "images.import-partition" in (error.hint or "")
    assert not imports(user, "waits", "R,PD")


def test_what_slurm_refuses_is_said_in_its_words(user: LauncherUser, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure = ensuring(user, [], monkeypatch)
    with pytest.raises(ImageError, match="Slurm gives it no job") as caught:
        ensure(planned(user, import_partition="nowhere"), "r")
    assert "nvalid partition" in caught.value.message
