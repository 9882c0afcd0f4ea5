"""Where and how a planned image is imported: which enroot, with what environment, in which job."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import Completed, clean_environment, run
from launcher.image.enroot import ImportPolicy
from launcher.image.reference import PlannedImage
from launcher.image.store import ensure_image
from launcher.plan.derive import Context, planned_image
from launcher.rehearsal.stand_ins import REGISTRIES, stand_in_environment
from launcher.runner.schema import Images
from tests.commands import ScriptedCommands
from tests.image.support import until
from tests.run.driving import LauncherUser

LOCAL = ImportPolicy("local", None, None, "job", "r1", REGISTRIES)
SLURM = ImportPolicy("slurm", "batch", "me", "job", "r1", REGISTRIES)


def context(root: Path, key: str = "r1") -> Context:
    return Context(
        workspace=str(root), runner_name="x_0", run_key=key, today="20260101", state=str(root), host={"HOME": "/h"}
    )


def image(root: Path, **rule: object) -> PlannedImage:
    return planned_image("a/b:1", "image", Images(directory="/squash", **rule), "aarch64", context(root))  # type: ignore[arg-type]


def test_an_import_is_compressed_as_the_runner_says(tmp_path: Path) -> None:
    assert image(tmp_path).environment == {
        "ENROOT_SQUASH_OPTIONS": "-comp zstd -Xcompression-level 3 -b 1M -exit-on-error",
        "ENROOT_TRANSFER_RETRIES": "3",
    }
    own = {"ENROOT_TRANSFER_RETRIES": "9", "ENROOT_CACHE_PATH": "{home}/cache"}
    environment = image(tmp_path, squash_options="-comp lz4", processors=4, environment=own).environment
    assert environment == {
        "ENROOT_SQUASH_OPTIONS": "-comp lz4",
        "ENROOT_TRANSFER_RETRIES": "9",
        "ENROOT_MAX_PROCESSORS": "4",
        "ENROOT_CACHE_PATH": "/h/cache",
    }


def test_a_compute_node_is_asked_for_processors_and_no_gpu(tmp_path: Path) -> None:
    plain = SLURM.node_command(image(tmp_path, import_on="compute"))
    assert {"--partition=batch", "--account=me", "--comment=r1-import", "--time=60"} <= set(plain)
    assert not any("gpu" in word or "gres" in word or "cpus" in word for word in plain)
    rule = image(tmp_path, import_partition="cpu", processors=16, import_options=["--gres=none"])
    command = SLURM.node_command(rule)
    assert {"--partition=cpu", "--cpus-per-task=16", "--gres=none"} <= set(command)


def test_an_import_on_a_node_leaves_nothing_there(tmp_path: Path) -> None:
    """With an srun that is here, and the rehearsal's enroot."""
    tools = stand_in_environment(tmp_path, "slurm", os.environ)
    directory = Path(tools["PATH"].partition(os.pathsep)[0])
    srun = directory / "srun"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    node = tmp_path / "node"
    node.mkdir()
    (tmp_path / "squash").mkdir()
    planned = dataclasses.replace(
        image(tmp_path, import_on="compute", temporary=str(node)),
        squash=str(tmp_path / "squash/x.sqsh"),
        lock=str(tmp_path / "squash/x.lock"),
    )
    asked: list[Sequence[str]] = []

    def recording(argv: Sequence[str], **more: Any) -> Completed:
        asked.append(argv)
        return run(argv, **more)

    environment = {**clean_environment(os.environ), **tools}
    record = ensure_image(planned, SLURM, environment, run=recording, log=print)
    assert (record.how, record.sidecar.enroot_version) == ("imported", "4.1.2-rehearsal")
    assert ["srun" in argv for argv in asked] == [True, False], "one job, and no question"
    assert list(node.iterdir()) == []


@pytest.mark.parametrize(("scheduler", "on_node"), [("slurm", True), ("local", False)])
def test_an_import_is_on_a_node_where_there_are_nodes(
    tmp_path: Path, scheduler: Literal["slurm", "local"], on_node: bool
) -> None:
    policy = dataclasses.replace(SLURM, scheduler=scheduler)
    assert policy.is_on_node(image(tmp_path, import_on="compute")) is on_node
    assert policy.is_on_node(image(tmp_path, import_on="login")) is False


def test_only_registries_that_may_be_asked_are_asked() -> None:
    """Stand-in images are in none, and a test's own is on this machine."""
    everywhere = dataclasses.replace(LOCAL, registries=None)
    hub, local = "docker://registry-1.docker.io#a/b:1", "docker://127.0.0.1:5000#a/b:1"
    assert [policy.may_query_registry(uri) for policy in (LOCAL, everywhere) for uri in (hub, local)] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("policy", ["keep", "refresh", "fail"])
def test_the_policy_of_moved_tags_is_the_runners(tmp_path: Path, policy: str) -> None:
    assert image(tmp_path, moved_tag=policy).moved_tag == policy


def test_an_error_names_the_line_of_the_image(tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text("other: {image: a/b:1}\nkey-1:\n  framework: x\n  image: a/b:1\n")
    runner = tmp_path / "x.yaml"
    runner.write_text("name: x\nimages:\n  directory: /d\n  helpers:\n    nginx: nginx:1\n    other: a/b:1\n")
    (tmp_path / "sq").mkdir()

    def refused(where: str, reference: str = "a/b:1") -> str | None:
        squash, lock = str(tmp_path / "sq/x.sqsh"), str(tmp_path / "sq/x.lock")
        planned = dataclasses.replace(image(tmp_path), reference=reference, squash=squash, lock=lock, where=where)
        answer = ScriptedCommands(lambda argv: Completed(tuple(argv), 1, "", "[ERROR] Invalid image reference: x", 0.0))
        with pytest.raises(ImageError) as caught:
            ensure_image(planned, LOCAL, {}, run=answer, log=print)
        return caught.value.where

    assert refused(f"{matrix} (key-1)") == f"{matrix}:4"
    assert refused(f"{matrix} (key-1)", "c/d:1") == f"{matrix}:2"
    assert refused(f"{runner} (images.helpers)") == f"{runner}:6"
    for where in (f"{matrix}:7", f"{tmp_path}/gone.yaml (key-1)", f"{matrix} (no-such)", "environment (IMAGE)"):
        assert refused(where) == where


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_by_hand_that_is_stopped_ends_its_enroot_and_leaves_nothing(
    tmp_path: Path, how: signal.Signals
) -> None:
    user = LauncherUser(tmp_path)
    squash = user.state / "squash"
    with user.start("image", "import", "a/b:1", "--runner", "local", LAUNCHER_REHEARSAL_ENROOT="slow=60") as process:
        until(lambda: next(squash.glob(".*.owner"), None) and next(squash.glob(".*.part"), None), 30)
        process.send_signal(how)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + how, out
    assert f"cancelled: stopped by {how.name} while importing a/b:1" in out
    assert [path.name for path in squash.iterdir() if path.name.startswith(".")] == []
    assert list(squash.glob("*.sqsh")) == []
