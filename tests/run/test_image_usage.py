"""Which images runs use, by their records."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from launcher.plan.plan import Plan
from launcher.run.image_usage import images_in_use
from launcher.run.record import RunRecord
from launcher.srtctl.planned import SrtctlJob
from tests.plans import with_job
from tests.run.runs import plan_on


def test_an_image_is_in_use_until_its_run_has_ended(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = (RunRecord.create(runs, plan_on("local", tmp_path, run_key=key)) for key in ("r1", "r2"))
    squash = first.plan.images[0].squash
    assert images_in_use(runs) == {squash: ["r1", "r2"]}
    first.update(state="succeeded")
    second.set_step("images", "done", images=[{"squash": squash}, {"squash": "/squash/refreshed.sqsh"}])
    assert images_in_use(runs) == {squash: ["r2"], "/squash/refreshed.sqsh": ["r2"]}
    second.update(state="failed")
    assert images_in_use(runs) == {}


def test_a_refreshed_image_is_what_the_plan_says_everywhere(tmp_path: Path) -> None:
    plan = plan_on("local", tmp_path)
    old, new = plan.images[0].squash, "/squash/x@0123456789ab.sqsh"
    recipe = structs.replace(SrtctlJob.of(plan).recipe, document={"model": {"container": old}, "list": [old, 1]})
    plan = with_job(plan, srtslurm={"containers": {"dynamo-vllm": old, "nginx-sqsh": "/n"}}, recipe=recipe)
    used = plan.with_squash({old: new})
    assert used.images[0].squash == new
    assert SrtctlJob.of(used).srtslurm == {"containers": {"dynamo-vllm": new, "nginx-sqsh": "/n"}}
    assert SrtctlJob.of(used).recipe.document == {"model": {"container": new}, "list": [new, 1]}
    assert Plan.from_dict(used.as_dict()).as_dict() == used.as_dict()
