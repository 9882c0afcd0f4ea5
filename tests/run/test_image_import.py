"""From a planned image to the store: which enroot, with what, and which runs use an image."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import Completed, run
from launcher.core.shipped import shipped
from launcher.plan.derive import Context, planned_image
from launcher.plan.plan import Plan, PlannedImage
from launcher.run.image_import import Importing, _line_of, _on_node, _registry, _srun, have_image, images_in_use
from launcher.run.record import RunRecord
from launcher.run.stages import rehearsal_tools
from launcher.runner import Fleet
from launcher.runner.schema import Images
from launcher.srtctl.locate import RecipeFinder
from launcher.srtctl.planned import SrtctlJob
from launcher.srtctl.resolve import plan_benchmark
from tests.benchmarks import a_benchmark
from tests.image.support import Scripted
from tests.plans import with_job
from tests.run.test_stages import effects


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
    found = image(tmp_path, squash_options="-comp lz4", processors=4, environment=own).environment
    assert found == {
        "ENROOT_SQUASH_OPTIONS": "-comp lz4",
        "ENROOT_TRANSFER_RETRIES": "9",
        "ENROOT_MAX_PROCESSORS": "4",
        "ENROOT_CACHE_PATH": "/h/cache",
    }


def test_a_compute_node_is_asked_for_processors_and_no_gpu(tmp_path: Path) -> None:
    how = Importing("system", "slurm", "batch", "me")
    plain = _srun(image(tmp_path, import_on="compute"), how, "r1", "job")
    assert {"--partition=batch", "--account=me", "--comment=r1-import", "--time=60"} <= set(plain)
    assert not any("gpu" in word or "gres" in word or "cpus" in word for word in plain)
    rule = image(tmp_path, import_partition="cpu", processors=16, import_options=["--gres=none"])
    asked = _srun(rule, how, "r1", "job")
    assert {"--partition=cpu", "--cpus-per-task=16", "--gres=none"} <= set(asked)


def test_an_import_on_a_node_leaves_nothing_there(tmp_path: Path) -> None:
    """With an srun that is here, and the rehearsal's enroot."""
    tools = rehearsal_tools(tmp_path, "slurm", os.environ)
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
        environment=tools,
    )
    asked = Scripted(lambda argv: run(argv, timeout=30, env={**os.environ, **tools, **_on_node(str(node), "r1")}))
    record = have_image(planned, Importing("rehearsal", "slurm", None, None), "r1", effects(run=asked))
    assert (record.how, record.enroot_version) == ("imported", "4.1.2-rehearsal")
    assert ["srun" in argv for argv in asked.asked] == [True, False], "one job, and no question"
    assert list(node.iterdir()) == []


def test_stand_ins_are_in_no_registry(tmp_path: Path) -> None:
    planned = image(tmp_path)
    assert _registry(planned, Importing("rehearsal", "local", None, None), effects()) is None
    assert _registry(planned, Importing("system", "slurm", None, None), effects()) is not None


def a_plan(root: Path, key: str) -> Plan:
    return plan_benchmark(a_benchmark(), Fleet([shipped("runners")]).get("local"), RecipeFinder(), context(root, key))


def test_an_image_is_in_use_until_its_run_has_ended(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = (RunRecord.create(runs, a_plan(tmp_path, key)) for key in ("r1", "r2"))
    squash = first.plan.images[0].squash
    assert images_in_use(runs) == {squash: ["r1", "r2"]}
    first.update(state="succeeded")
    second.set_stage("images", "done", images=[{"squash": squash}, {"squash": "/squash/refreshed.sqsh"}])
    assert images_in_use(runs) == {squash: ["r2"], "/squash/refreshed.sqsh": ["r2"]}
    second.update(state="failed")
    assert images_in_use(runs) == {}


def test_a_refreshed_image_is_what_the_plan_says_everywhere(tmp_path: Path) -> None:
    plan = a_plan(tmp_path, "r1")
    old, new = plan.images[0].squash, "/squash/x@0123456789ab.sqsh"
    plan = with_job(
        plan,
        srtslurm={"containers": {"dynamo-vllm": old, "nginx-sqsh": "/n"}},
        recipe=dataclasses.replace(SrtctlJob.of(plan).recipe, document={"model": {"container": old}, "list": [old, 1]}),
    )
    used = plan.with_squash({old: new})
    assert used.images[0].squash == new
    assert SrtctlJob.of(used).srtslurm == {"containers": {"dynamo-vllm": new, "nginx-sqsh": "/n"}}
    assert SrtctlJob.of(used).recipe.document == {"model": {"container": new}, "list": [new, 1]}
    assert Plan.from_dict(used.as_dict()).as_dict() == used.as_dict()


@pytest.mark.parametrize("policy", ["keep", "refresh", "fail"])
def test_the_policy_of_moved_tags_is_the_runners(tmp_path: Path, policy: str) -> None:
    assert image(tmp_path, moved_tag=policy).moved_tag == policy


def test_an_error_names_the_line_of_the_image(tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text("other: {image: a/b:1}\nkey-1:\n  framework: x\n  image: a/b:1\n")
    runner = tmp_path / "x.yaml"
    runner.write_text("name: x\nimages:\n  directory: /d\n  helpers:\n    nginx: nginx:1\n    other: a/b:1\n")
    assert _line_of(f"{matrix} (key-1)", "a/b:1") == f"{matrix}:4"
    assert _line_of(f"{matrix} (key-1)", "c/d:1") == f"{matrix}:2"
    assert _line_of(f"{runner} (images.helpers)", "a/b:1") == f"{runner}:6"
    for where in (f"{matrix}:7", f"{tmp_path}/gone.yaml (key-1)", f"{matrix} (no-such)", "environment (IMAGE)"):
        assert _line_of(where, "a/b:1") == where
    (tmp_path / "sq").mkdir()
    planned = dataclasses.replace(
        image(tmp_path), squash=str(tmp_path / "sq/x.sqsh"), lock=str(tmp_path / "sq/x.lock"), where=f"{matrix} (key-1)"
    )
    answer = Scripted(lambda argv: Completed(tuple(argv), 1, "", "[ERROR] Invalid image reference: x", 0.0))
    with pytest.raises(ImageError) as caught:
        have_image(planned, Importing("rehearsal", "local", None, None), "r1", effects(run=answer))
    assert caught.value.where == f"{matrix}:4"
